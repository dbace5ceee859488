"""What the tests of factories make agents of: no class here knows anything of hosts."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from zmqagents import AgentBase, agent, async_func


class Tally:
    """Counts. Has nothing to do with agents."""

    def __init__(self, start: int = 0) -> None:
        self.value = start
        self.unit = "apples"

    def add(self, more: int, *, times: int = 1) -> int:
        """Add ``more``."""
        self.value += more * times
        return self.value

    def count_to(self, last: int) -> Iterator[int]:
        yield from range(1, last + 1)

    async def later(self) -> int:
        await asyncio.sleep(0)
        return self.value

    def _hidden(self) -> None:
        raise NotImplementedError


def tally(start: int = 0) -> Tally:
    """Makes a tally."""
    return Tally(start)


from_ten = functools.partial(tally, 10)
shared = Tally(100)


async def slow_tally(start: int = 0) -> Tally:
    await asyncio.sleep(0.01)
    return Tally(start)


class Diary(Tally):
    """Writes into a file when and in which task it is entered and left."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._task: Any = None

    def note(self, what: str) -> None:
        with open(self._path, "a") as file:
            file.write(f"{what}\n")

    async def __aenter__(self) -> Diary:
        self._task = asyncio.current_task()
        self.note("enter")
        return self

    async def __aexit__(self, *error: Any) -> None:
        self.note("exit in the same task" if asyncio.current_task() is self._task else "exit in another task")


def diary(path: str) -> Diary:
    return Diary(path)


@asynccontextmanager
async def opened(path: str) -> AsyncIterator[Tally]:
    """A tally that lives between the two halves of a context manager."""
    book = Diary(path)
    async with book:
        yield Tally(7)
    book.note("closed")


class Hooked(AgentBase, max_concurrency=3):
    """An agent with hooks that are not async."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self.order = ["init"]
        self._barrier = threading.Barrier(3)

    def on_start(self) -> None:
        self.order.append("start")

    def on_stop(self) -> None:
        with open(self._path, "a") as file:
            file.write("stop\n")

    def steps(self) -> list[str]:
        return self.order

    @async_func
    def meet(self) -> int:
        """How many calls there are when the third has come."""
        self._barrier.wait(20)
        return 3

    def who(self) -> str:
        return self.agent_id


def hooked(path: str) -> Hooked:
    return Hooked(path)


@agent
class Marked:
    """Under ``@agent``: its hooks count."""

    async def on_start(self) -> None:
        self.started = True

    def has_started(self) -> bool:
        return self.started


def patient(gate: str) -> Tally:
    """Waits for a file."""
    end = time.monotonic() + 20
    while not os.path.exists(gate) and time.monotonic() < end:
        time.sleep(0.01)
    return Tally(1)


def fails() -> Tally:
    raise LookupError("no tally today")


def gives_nothing() -> None:
    return None


def takes_agent_id(agent_id: str) -> list[str]:
    return [agent_id]
