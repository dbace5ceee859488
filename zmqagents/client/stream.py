"""`Stream`: the items of a generator method as they are made, for a thread or an event loop.

Items arrive on the thread that carries replies and wait in the stream's inlet; the reader takes them from there. The
host sends a window of items ahead, and each half window taken is granted again (a CREDIT).
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .. import errors
from ..agents.context import own_call
from ..codec import NO_SCOPE, Encoded, Scope
from ..wire.link import Link, rebuild_error
from ..wire.messages import STREAM_WINDOW, Flag, Reply
from .loop_inbox import LoopInbox, inbox_of
from .result import Bind, Condition, decode_reply, unpickler_of

if TYPE_CHECKING:
    import asyncio

    from ..tracing.spans import ClientCall

Y = TypeVar("Y")


class _Inlet:
    """The sink of a stream: what has come and was not taken, and what a host may know of it while its code waits.

    It has no reference to its `Stream`, so that a stream without a reader is collected, and so closed.
    """

    def __init__(self, link: Link, scope: Scope, span: ClientCall | None) -> None:
        self.task_id = ""
        self._span = span
        self._link = link
        self._scope = scope
        self.items: deque[Reply] = deque()
        self.received = 0  # items that have come, in all
        self.error: Exception | None = None
        self.ended = False
        self._on_item: Callable[[], None] | None = None
        self._changed = Condition()
        self._futures: list[tuple[LoopInbox, asyncio.Future[None]]] = []

    @property
    def server_id(self) -> str:
        """The id of the host that makes the items; "" until it has answered."""
        return self._link.server_id

    @property
    def inside(self) -> bool:
        """True for a call of a host's own code to an agent of the same host."""
        return self._link.inside

    def open(
        self, agent: str, method: str, body: Encoded, timeout: float | None, options: dict[str, Any] | None
    ) -> str:
        """Make the call whose items come here; its task id."""
        if self._span is not None:
            options = self._span.with_options(options)
        self.task_id = self._link.submit(agent, method, body, self, flags=Flag.STREAM, options=options, timeout=timeout)
        return self.task_id

    def chunk(self, item: Reply) -> None:
        with self._changed:
            if self.ended:
                return
            self.received += 1
            if self._span is not None and self.received == 1:
                self._span.event("zmqagents.first_item")
            self.items.append(item)
            self._tell()

    def deliver(self, reply: Reply | None) -> None:
        if reply is None or not reply.code:
            self._end(None)
            return
        scope = self._scope._replace(imports=False)
        self._end(rebuild_error(reply, scope, unpickler_of(self._link)))

    def fail(self, error: Exception) -> None:
        self._end(error)

    def close(self) -> bool:
        """Drop what has come and what will; False if it had ended."""
        with self._changed:
            was_open = not self.ended
            self._end_span(None)
            self.ended = True
            self.items.clear()
            self._tell()
            return was_open

    def wait(self, timeout: float | None) -> bool:
        """Until there is an item or the end; False after ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(self.ready, timeout)

    def watch(self, on_item: Callable[[], None] | None) -> None:
        """Call ``on_item`` for the next items and the end, on the thread that brings them, until told otherwise."""
        self._on_item = on_item

    def ready(self) -> bool:
        return bool(self.items) or self.ended

    def pop(self) -> Reply | None:
        """The next item, None if there is none now."""
        with self._changed:
            return self.items.popleft() if self.items else None

    def future(self) -> asyncio.Future[None] | None:
        """Done when there is an item or the end; None if there is."""
        with self._changed:
            if self.ready():
                return None
            import asyncio

            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            self._futures.append((inbox_of(loop), future))
            return future

    async def until(self, future: asyncio.Future[None]) -> None:
        """Await ``future``, which `future` has given; in an agent's call, with its host's knowledge."""
        call = own_call()
        if call is None:
            try:
                await future
            finally:
                self.forget(future)
            return
        inbox = inbox_of(future.get_loop())
        over = call.host.awaiting(call, self, lambda error: inbox.post(future, error), future.done)
        try:
            await future
        finally:
            self.watch(None)
            self.forget(future)
            over()

    def forget(self, future: asyncio.Future[None]) -> None:
        """Note that no task awaits ``future`` any more."""
        with self._changed:
            self._futures = [entry for entry in self._futures if entry[1] is not future]

    def _end(self, error: Exception | None) -> None:
        with self._changed:
            if not self.ended:
                self._end_span(error)
                self.error = error
                self.ended = True
                self._tell()

    def _end_span(self, error: Exception | None) -> None:
        if self._span is not None:
            self._span.end_as(error, **{"zmqagents.stream.items": self.received})

    def _tell(self) -> None:
        on_item = self._on_item
        if on_item is not None:  # before any reader is woken: one that goes on must not count as waiting
            on_item()
        self._changed.notify_all()
        futures, self._futures = self._futures, []
        for inbox, future in futures:
            inbox.post(future, None)


class Stream(Generic[Y]):
    """The items of a generator method, as they are made: an iterator, also an asynchronous one.

    The host makes at most `messages.STREAM_WINDOW` items ahead of the reader. An exception of the generator is raised
    after the last item before it. `close` (or leaving the ``with`` block, or dropping the stream) ends the generator:
    its ``finally`` runs. Reading blocks until there is an item, and raises CallTimeout at the call's deadline and
    BlockingCallError in a done-callback. Any thread or task may read, one at a time.

    An exception out of ``next``, Ctrl-C too, ends the stream as it ends a generator; a cancelled ``anext`` does not,
    so that ``asyncio.wait_for`` may be tried again. An exception in the body of a ``for`` loop drops the stream only if
    the loop alone has it: a variable that holds it lives as long as the traceback. So read one that has a name in a
    ``with`` block.
    """

    __zmqagents_withheld__ = "a stream belongs to its reader and cannot be sent: send its items"

    def __init__(
        self, link: Link, label: str, bind: Bind, body: Encoded, *,
        agent: str, method: str, timeout: float | None, client: object | None = None, scope: Scope = NO_SCOPE,
        options: dict[str, Any] | None = None, span: ClientCall | None = None,
    ) -> None:  # fmt: skip
        """Make the call ``agent.method``. ``client``: kept, so that its connection stays open as long as the stream.

        ``scope``: which classes the items may have; ``options``: of the call, as its host takes them; ``span``: of
        the call, where calls are traced.
        """
        self._client = client
        self._link = link
        self._label = label
        self._bind = bind
        self._scope = scope
        self._taken = 0
        self._finished = False
        self._inlet = _Inlet(link, scope, span)
        self.task_id = ""  # as `close` finds it if the call cannot be made
        self.task_id = self._inlet.open(agent, method, body, timeout, options)

    def __iter__(self) -> Stream[Y]:
        return self

    def __next__(self) -> Y:
        try:
            while True:
                ended = self._inlet.ended  # before the look for an item: one may come, with the end, between the two
                item = self._inlet.pop()
                if item is not None:
                    return self._take(item)
                if ended:
                    self._finish()
                    raise StopIteration
                self._wait()
        except BaseException:  # Ctrl-C, say: the traceback keeps this frame, so nothing would drop the stream
            self.close()
            raise

    def __aiter__(self) -> Stream[Y]:
        return self

    async def __anext__(self) -> Y:
        try:
            while True:
                ended = self._inlet.ended  # before the look for an item: one may come, with the end, between the two
                item = self._inlet.pop()
                if item is not None:
                    return self._take(item)
                if ended:
                    self._finish()
                    raise StopAsyncIteration
                future = self._inlet.future()
                if future is not None:
                    await self._inlet.until(future)
        except (Exception, KeyboardInterrupt):  # not a cancellation: after `asyncio.wait_for` one may read on
            self.close()
            raise
        finally:
            del self  # the traceback of a cancellation keeps this frame: the stream must not stay open for that

    def close(self) -> None:
        """End the stream; the generator on the host is closed. Does not block; a second call does nothing."""
        if self._inlet.close() and self.task_id:
            with contextlib.suppress(errors.ZmqAgentsError):
                self._link.abandon(self.task_id)

    async def aclose(self) -> None:
        """The same as `close`."""
        self.close()

    def __enter__(self) -> Stream[Y]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Stream[Y]:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be going down
            self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(f"{self!r}: {self.__zmqagents_withheld__}")

    def __repr__(self) -> str:
        state = "ended" if self._inlet.ended else "open"
        return f"<Stream {self._label} {self.task_id} {state}, {self._taken} taken>"

    def _take(self, item: Reply) -> Y:
        self._taken += 1
        if self._taken % (STREAM_WINDOW // 2) == 0:  # in halves of the window: half as many messages back
            self._link.credit(self.task_id, STREAM_WINDOW // 2)
        value: Y = decode_reply(self._link, item, self._bind, self._scope)
        return value

    def _finish(self) -> None:
        error, self._inlet.error = self._inlet.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame, and this frame the stream: it would not be closed

    def _wait(self) -> None:
        call = own_call()
        if call is not None and call.host.wait_for_item(call, self._inlet, None):
            return
        self._link.check_may_block("reading a stream")
        self._inlet.wait(None)
