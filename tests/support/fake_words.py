"""What the fake models of the tests of adapters say: they do what the text of the last message tells them.

    wait PATH      the first word, then nothing before there is a file PATH, then the last word
    call TOOL ARG  a call of a tool, and with its result the answer "TOOL gave RESULT"
    anything       "you said anything"

Nothing here knows a framework.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

FIRST, LAST = "first ", "last"
WAIT_S = 60.0  # longer than any test


class ToolCall(NamedTuple):
    """A call of a tool that a model asks for."""

    tool: str
    argument: str


def tool_call(prompt: str) -> ToolCall | None:
    """The call of a tool that a prompt asks for."""
    word, _, rest = prompt.partition(" ")
    tool, _, argument = rest.partition(" ")
    return ToolCall(tool, argument) if word == "call" else None


def answer(prompt: str) -> list[str]:
    """The words that a model says to a prompt that need not wait."""
    return [f"{word} " for word in f"you said {prompt}".split(" ")[:-1]] + [prompt.split(" ")[-1]]


async def words(prompt: str) -> AsyncIterator[str]:
    """The words that a model says, each when it may."""
    word, _, path = prompt.partition(" ")
    if word != "wait":
        for each in answer(prompt):
            yield each
        return
    yield FIRST
    end = time.monotonic() + WAIT_S
    mark(path)
    while not os.path.exists(path) and time.monotonic() < end:
        await asyncio.sleep(0.005)
    yield LAST


def words_in_thread(prompt: str) -> Iterator[str]:
    """The same in a thread."""
    word, _, path = prompt.partition(" ")
    if word != "wait":
        yield from answer(prompt)
        return
    yield FIRST
    mark(path)
    end = time.monotonic() + WAIT_S
    while not os.path.exists(path) and time.monotonic() < end:
        time.sleep(0.005)
    yield LAST


def mark(path: str) -> None:
    """Say that a model waits for the file ``path``."""
    with open(f"{path}.waits", "w"):
        pass
