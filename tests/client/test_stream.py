"""An item and the end that come at any moment of a read: between each two lines that the reading thread executes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, cast

import pytest

from zmqagents import codec
from zmqagents.client.stream import Stream
from zmqagents.wire.messages import Reply

MOMENTS = 40  # more than a read has lines


class Source:
    """The link of a stream: it gives one item and the end when it is told to."""

    server_id, address, inside, takes_pickles = "there", "there:1", False, False
    _has_finished = False

    def submit(self, agent: str, method: str, body: Any, sink: Any, **_: Any) -> str:
        self._sink = sink
        return "task-1"

    def finish(self) -> None:
        """As the thread that carries replies does, which has the item and the end by one read of the socket. Once."""
        if self._has_finished:
            return
        self._has_finished = True
        encoded = codec.encode("item")
        self._sink.chunk(Reply(0, (encoded.payload, *encoded.buffers)))
        self._sink.deliver(Reply(0, ()))

    def abandon(self, task_id: str) -> None:
        """The reader wants no more."""

    def check_may_block(self, what: str) -> None:
        """The thread is about to sleep: nothing else would wake it."""
        self.finish()


def at_line(number: int, of: Callable[..., Any], do: Callable[[], None]) -> Any:
    """A trace function (`sys.settrace`) that calls ``do`` before line ``number`` of the first run of ``of``."""
    lines = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code is not of.__code__:
            return None

        def each(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal lines
            if event == "line":
                lines += 1
                if lines == number:
                    do()
            return each

        return each

    return trace


def stream_of(source: Source) -> Stream[str]:
    body = codec.encode_call((), {})
    return Stream(cast(Any, source), "a.read", cast(Any, None), body, agent="a", method="read", timeout=None)


@pytest.mark.parametrize("moment", range(1, MOMENTS))
def test_an_item_that_comes_with_the_end_at_any_moment_of_a_read_is_read(moment: int) -> None:
    source = Source()
    stream = stream_of(source)
    before = sys.gettrace()
    sys.settrace(at_line(moment, Stream.__next__, source.finish))
    try:
        read = list(stream)
    finally:
        sys.settrace(before)
    assert read == ["item"]


@pytest.mark.parametrize("moment", range(1, MOMENTS))
def test_the_same_on_an_event_loop(moment: int) -> None:
    source = Source()

    async def read() -> list[str]:
        stream = stream_of(source)
        asyncio.get_running_loop().call_later(0.01, source.finish)  # if the read has fewer lines
        before = sys.gettrace()
        sys.settrace(at_line(moment, Stream.__anext__, source.finish))
        try:
            return [item async for item in stream]
        finally:
            sys.settrace(before)

    assert asyncio.run(read()) == ["item"]
