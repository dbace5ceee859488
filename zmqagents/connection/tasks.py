"""Task ids that a call keeps when it is sent again, by whatever connection and to whatever host.

The id that a host makes of a connection and a number is another one for each connection. Calls of methods marked
``@once`` have one of their program's instead: ``PROGRAM-NUMBER-BACK``. The program is a random number that each HELLO
shows, and a host takes no other one from a client. Numbers rise. ``NUMBER - BACK`` is the lowest of all calls of the
program to that agent which have no answer yet: what is kept of those below is needed by nobody any more.
"""

from __future__ import annotations

import itertools
import os
import threading
from typing import NamedTuple

__all__ = ["Named", "begin_task", "end_task", "is_program", "named_in", "program_id"]

PROGRAM_BYTES = 16
_MOST_DIGITS = 18


class Named(NamedTuple):
    """What such an id says: see the module's docstring. ``lowest``: without an answer."""

    program: str
    number: int
    lowest: int


class _Program:
    """The calls of one process; a forked child is another program."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.id = os.urandom(PROGRAM_BYTES).hex()
        self.numbers = itertools.count(1)
        self.open: dict[str, dict[int, None]] = {}  # numbers by agent, the lowest first


def program_id() -> str:
    """The number of this program."""
    return _this.id


def begin_task(agent: str) -> str:
    """The task id of one more call to the agent; `end_task` it when it has its answer, or will get none."""
    this = _this
    with this.lock:
        number = next(this.numbers)
        row = this.open.setdefault(agent, {})
        row[number] = None
        return f"{this.id}-{number}-{number - next(iter(row))}"


def end_task(agent: str, task_id: str) -> None:
    """The call is over."""
    this, named = _this, named_in(task_id)
    if named is None or named.program != this.id:  # of the process that has forked this one
        return
    with this.lock:
        row = this.open.get(agent, {})
        row.pop(named.number, None)
        if not row:
            this.open.pop(agent, None)


def named_in(task_id: str) -> Named | None:
    """What ``task_id`` says, if it is one of these."""
    program, _, rest = task_id.partition("-")
    number, _, back = rest.partition("-")
    if not is_program(program) or not (_is_count(number) and _is_count(back)):
        return None
    return Named(program, int(number), int(number) - int(back))


def is_program(text: str) -> bool:
    """Whether it is the number of a program, with which such ids begin."""
    return len(text) == 2 * PROGRAM_BYTES and text.isalnum()


def _is_count(text: str) -> bool:
    return 0 < len(text) <= _MOST_DIGITS and text.isascii() and text.isdecimal()


def _after_fork() -> None:
    """In the child."""
    global _this
    _this = _Program()


_this = _Program()
if hasattr(os, "register_at_fork"):  # not on Windows, where there is no fork
    os.register_at_fork(after_in_child=_after_fork)
