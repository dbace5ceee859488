"""Outcomes of ``@once`` calls that their programs have got: of one activation. Pure.

The task id of such a call may say which program has made it, its number, and below which number all calls of that
program to the agent have their answers (`connection.tasks`). What is kept of those is forgotten with the next save. One
number is kept instead for the program, as long as they would have been: below it its calls are over, for a copy of one
may come late, and would be executed a second time.
"""

from __future__ import annotations

import heapq

from ..connection.tasks import is_program, named_in
from ..store.cluster import Outcome

__all__ = ["Held", "Senders"]

FEW = 64
Held = dict[str, tuple[float, bytes]]  # by task id, or program: until when, and what


class _Sender:
    """One program: the numbers and ids of calls whose outcomes are held, and below which number its calls are over."""

    __slots__ = ("below", "numbers")

    def __init__(self) -> None:
        self.numbers: list[tuple[int, str]] = []  # a heap
        self.below = 0


class Senders:
    """The programs whose outcomes an activation holds; see the module's docstring."""

    __slots__ = ("_all", "_changed")

    def __init__(self) -> None:
        self._all: dict[str, _Sender] = {}
        self._changed: dict[str, None] = {}  # programs of whose numbers Redis is to be told

    def __len__(self) -> int:
        return len(self._all)

    def hold(self, task_id: str, value: bytes) -> None:
        """Redis has this outcome, or this number of a program."""
        named = named_in(task_id)
        if named is not None:
            heapq.heappush(self._all.setdefault(named.program, _Sender()).numbers, (named.number, task_id))
        elif is_program(task_id) and value.isdigit():
            sender = self._all.setdefault(task_id, _Sender())
            sender.below = max(sender.below, int(value))

    def is_over(self, task_id: str) -> bool:
        """Whether this is a late copy of a call whose program has had the outcome, which is held no more."""
        named = named_in(task_id)
        sender = self._all.get(named.program) if named is not None else None
        return named is not None and sender is not None and named.number < sender.below

    def confirm(self, task_id: str, held: Held) -> list[str]:
        """Take out of ``held`` what is over, as the id of a call that has come says; the ids of that."""
        named = named_in(task_id)
        sender = self._all.get(named.program) if named is not None else None
        over: list[str] = []
        if named is None or sender is None:
            return over
        until, _ = held.get(named.program, (0.0, b""))
        while sender.numbers and sender.numbers[0][0] < named.lowest:
            _, known = heapq.heappop(sender.numbers)
            if known in held:
                until = max(until, held.pop(known)[0])
                over.append(known)
        if over:
            sender.below = max(sender.below, named.lowest)
            self._changed[named.program] = None
            held[named.program] = until, str(sender.below).encode()
        return over

    def to_be_told(self, held: Held, now: float) -> tuple[Outcome, ...]:
        """The numbers of programs that Redis is to have with the next save."""
        changed, self._changed = self._changed, {}
        if len(self._all) > FEW + 2 * len(held):  # mostly programs that have not called for long
            self._all = {each: it for each, it in self._all.items() if it.numbers or each in held}
        return tuple(Outcome(each, held[each][0] - now, held[each][1]) for each in changed if each in held)
