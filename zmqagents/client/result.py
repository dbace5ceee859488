"""What a call gives before its value is there: `AsyncResult` for one value, `Stream` for many.

Both are filled by the thread that carries the reply and read by any other; a value is decoded in the thread that
first reads it. Reading waits, and a wait inside an agent's call goes through its host (`HostServices`), so that it
gives the worker slot back and a wait that could never end is refused.

Awaiting. Results enter an event loop in batches: one `call_soon_threadsafe` for all that have come since the last
turn, because the loop's self-pipe costs more than a small call.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextvars import Context
from typing import TYPE_CHECKING, Any, cast

from .. import codec, errors
from ..agents.context import current_call
from ..codec import TaskRef, pickling
from ..wire.link import Link, rebuild_error
from ..wire.messages import STREAM_WINDOW, Reply

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    import asyncio  # at run time only where a loop is running: 20 ms that other programs need not pay

__all__ = ["AsyncResult", "Stream", "as_completed", "decode_reply", "wait"]

_CANCELLED = concurrent.futures._base.CANCELLED
_FINISHED = concurrent.futures._base.FINISHED
MAX_WAIT_S = 1e9  # 30 years; below what any platform's time_t can hold
Bind = Callable[..., Any]  # proxy.bind_reference(ref, came_by)


def decode_reply(link: Link, reply: Reply, bind: Bind) -> Any:
    """The value of a reply that is no error. ``bind`` makes references live."""
    body = reply.body
    payload = body[0]
    if len(body) == 1 and payload[:1] != codec.TAG:
        return codec.decode(payload)
    buffers = body[1:]
    unpickler = pickling.loads if link.takes_pickles else None
    return codec.decode(payload, buffers, resolve=lambda ref: bind(ref, link), unpickler=unpickler)


# ---------------------------------------------------------------- one value


class _Condition(type(threading.RLock())):  # type: ignore[misc]
    """A `threading.Condition` that Ctrl-C cannot leave locked: the thread that brings all replies would wait for it.

    No signal is looked at between a lock's own entering and the block. But `threading.Condition` enters and leaves by
    functions in Python, in which a KeyboardInterrupt may be raised.
    """

    def __init__(self) -> None:
        self._waiters: deque[Any] = deque()

    wait = threading.Condition.wait
    wait_for = threading.Condition.wait_for
    notify = threading.Condition.notify
    notify_all = threading.Condition.notify_all


class AsyncResult(concurrent.futures.Future):  # type: ignore[type-arg]
    """The result of a call that runs meanwhile: a `concurrent.futures.Future` that can also be awaited.

    ``task_id`` finds it again from any process (`RpcClient.get_result`). As an argument it goes as a reference,
    and the method that gets it sees the value. Reading an attribute or an item of it waits for the value.
    ``result`` and ``exception`` may be called again and again, from any thread.
    """

    def __init__(self, link: Link, label: str, bind: Bind, home: str = "") -> None:
        super().__init__()
        self._condition = _Condition()
        self._home = home  # the host's id, where it was known before the link was first used
        self._link = link
        self._label = label
        self._bind = bind
        self._decode_lock = threading.Lock()
        self._decoded = False
        self.task_id = ""

    @classmethod
    def attach(cls, link: Link, task_id: str, bind: Bind, timeout: float | None = None) -> AsyncResult:
        """The result of a call that somebody else made. Sends the request for it."""
        result = cls(link, task_id, bind)
        result.task_id = task_id
        link.fetch(task_id, result, timeout=timeout)
        return result

    @property
    def server_id(self) -> str:
        """The host that has the call; "" until it has answered for the first time."""
        return self._home or self._link.server_id

    @property
    def inside(self) -> bool:
        """True for a call of a host's own code to an agent of the same host."""
        return self._link.inside

    def ready(self) -> bool:
        """The same as `done`; what a `Stream` has, too."""
        return self.done()

    # ------------------------------------------------------------ the thread that carries the reply

    def deliver(self, reply: Reply | None) -> None:
        if reply is None:
            self.fail(errors.CallTimeout(f"{self.task_id} was not finished in time"))
        elif reply.code:
            self.fail(rebuild_error(reply))
        else:
            self._settle(self.set_result, reply)

    def fail(self, error: Exception) -> None:
        self._settle(self.set_exception, error)

    def _settle(self, setter: Callable[[Any], None], outcome: Any) -> None:
        try:
            Context().run(setter, outcome)  # for the done-callbacks: this thread may be in the middle of a call
        except concurrent.futures.InvalidStateError:  # cancelled meanwhile
            pass
        except BaseException:  # a done-callback raised SystemExit, say: this thread carries the replies of others too
            log.exception("a done-callback of %r failed", self)

    def chunk(self, item: Reply) -> None:
        """Never comes: a result is no stream."""

    # ------------------------------------------------------------ the Future protocol

    def result(self, timeout: float | None = None) -> Any:
        """The value, waiting at most ``timeout`` seconds for it (CallTimeout); raises what the call raised."""
        if self._state == _FINISHED and self._exception is None:  # without the lock: both were set before the state
            return self._decode()
        try:
            self._wait(timeout)
            try:
                super().result(0)
            except concurrent.futures.TimeoutError:
                if self.done():  # the call itself raised a TimeoutError
                    raise
                raise errors.CallTimeout(f"{self!r} was not finished within {timeout or 0:.3g} s") from None
            return self._decode()
        finally:
            del self  # as in the standard library: the error that is raised here must not refer to itself

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call raised, None if nothing; waits like `result`."""
        self._wait(timeout)
        try:
            return super().exception(0)
        except concurrent.futures.TimeoutError:
            raise errors.CallTimeout(f"{self!r} was not finished within {timeout or 0:.3g} s") from None

    def cancel(self, *, recursive: bool = True) -> bool:
        """Cancel the call: one that waits never runs, one that runs is told. False if it is finished.

        The calls that it has made are cancelled with it, unless ``recursive`` is False.
        """
        if self.cancelled():
            return True
        if not super().cancel():
            return False
        with self._condition:
            if self._state == _CANCELLED:  # else another thread has come as far
                self.set_running_or_notify_cancel()  # so that concurrent.futures.wait sees it
        with contextlib.suppress(errors.ZmqAgentsError):
            self._link.cancel(self.task_id, alone=not recursive)
        return True

    def _wait(self, timeout: float | None) -> None:
        if self.done():
            return
        timeout = _bounded(timeout)
        call = current_call()
        if call is not None and call.host.wait_for(call, [self], timeout, False):
            return  # the worker slot was given back meanwhile
        self._link.check_may_block("result()")
        with contextlib.suppress(concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            super().exception(timeout)

    def _decode(self) -> Any:
        if self._decoded:
            return self._result
        with self._decode_lock:
            if not self._decoded:
                self._result = decode_reply(self._link, cast(Reply, self._result), self._bind)
                self._decoded = True
            return self._result

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            if not self.done():
                yield from self._until_done()
            return self.result()
        finally:
            del self

    def _until_done(self) -> Generator[Any, None, None]:
        import asyncio

        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        inbox = _inbox_of(loop)
        self.add_done_callback(lambda _: inbox.post(future, None))
        call = current_call()
        give_up = (
            None
            if call is None
            else call.host.awaiting(call, self, lambda error: inbox.post(future, error), future.done)
        )
        try:
            yield from future
        except asyncio.CancelledError:  # whoever awaited it has gone
            if call is None or not call.spares:
                self.cancel()
            raise
        finally:
            if give_up is not None:
                give_up()

    # ------------------------------------------------------------ it reads like its value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"AsyncResult has no attribute {name!r}")
        return getattr(self.result(), name)

    def __getitem__(self, key: Any) -> Any:
        return self.result()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.result())

    def __len__(self) -> int:
        return len(self.result())

    def __contains__(self, item: object) -> bool:
        return item in self.result()

    def __bool__(self) -> bool:
        return True  # `if result:` asks whether there is one, and must not wait

    def __repr__(self) -> str:
        return f"<AsyncResult {self._label} {self.task_id} {self._state.lower()}>"

    # ------------------------------------------------------------ it travels as a reference

    def __zmqagents_ref__(self) -> TaskRef:
        if not self.server_id:
            self._link.settle()
        return TaskRef(self.task_id, self.server_id, self._link.address)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._bind, (self.__zmqagents_ref__(),)


# ---------------------------------------------------------------- many values


class _Inlet:
    """The sink of a stream: what has come and was not taken. It does not know its `Stream`, so that one may go."""

    def __init__(self) -> None:
        self.items: deque[Reply] = deque()
        self.error: Exception | None = None
        self.ended = False
        self.on_item: Callable[[], None] | None = None
        self._changed = _Condition()
        self._futures: list[tuple[_LoopInbox, asyncio.Future[None]]] = []

    def chunk(self, item: Reply) -> None:
        with self._changed:
            if self.ended:
                return
            self.items.append(item)
            self._tell()

    def deliver(self, reply: Reply | None) -> None:
        self._end(rebuild_error(reply) if reply is not None and reply.code else None)

    def fail(self, error: Exception) -> None:
        self._end(error)

    def close(self) -> bool:
        """Drop what has come and what will; False if it had ended."""
        with self._changed:
            was_open = not self.ended
            self.ended = True
            self.items.clear()
            self._tell()
            return was_open

    def wait(self, timeout: float | None) -> bool:
        """Until there is an item or the end; False after ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(self.ready, timeout)

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
            self._futures.append((_inbox_of(loop), future))
            return future

    def forget(self, future: asyncio.Future[None]) -> None:
        """Nobody awaits ``future`` any more."""
        with self._changed:
            self._futures = [entry for entry in self._futures if entry[1] is not future]

    def _end(self, error: Exception | None) -> None:
        with self._changed:
            if not self.ended:
                self.error = error
                self.ended = True
                self._tell()

    def _tell(self) -> None:
        on_item = self.on_item
        if on_item is not None:  # before anybody is woken: a reader that goes on must not count as waiting
            on_item()
        self._changed.notify_all()
        futures, self._futures = self._futures, []
        for inbox, future in futures:
            inbox.post(future, None)


class Stream:
    """The items of a generator method, as they are made: an iterator, also an asynchronous one.

    The host makes at most `frames.STREAM_WINDOW` items ahead of the reader. An exception of the generator comes at its
    place. `close` (or leaving the ``with`` block, or dropping the stream) ends the generator: its ``finally`` runs.
    One reader at a time.
    """

    def __init__(self, link: Link, label: str, bind: Bind) -> None:
        self._link = link
        self._label = label
        self._bind = bind
        self._taken = 0
        self._finished = False
        self.inlet = _Inlet()
        self.task_id = ""

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Any:
        while True:
            item = self.inlet.pop()
            if item is not None:
                return self._take(item)
            if self.inlet.ended:
                self._finish()
                raise StopIteration
            self._wait()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        while True:
            item = self.inlet.pop()
            if item is not None:
                return self._take(item)
            if self.inlet.ended:
                self._finish()
                raise StopAsyncIteration
            future = self.inlet.future()
            if future is not None:
                await self._until(future)

    async def _until(self, future: asyncio.Future[None]) -> None:
        call = current_call()
        if call is None:
            try:
                await future
            finally:
                self.inlet.forget(future)
            return
        inbox = _inbox_of(future.get_loop())
        over = call.host.awaiting(call, self, lambda error: inbox.post(future, error), future.done)
        try:
            await future
        finally:
            self.inlet.on_item = None
            self.inlet.forget(future)
            over()

    def close(self) -> None:
        """End the stream; the generator on the host is closed. Idempotent."""
        if self.inlet.close():
            with contextlib.suppress(errors.ZmqAgentsError):
                self._link.abandon(self.task_id)

    async def aclose(self) -> None:
        """The same as `close`."""
        self.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be going down
            self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(f"{self!r} belongs to its reader and cannot be sent: send its items")

    def __repr__(self) -> str:
        state = "ended" if self.inlet.ended else "open"
        return f"<Stream {self._label} {self.task_id} {state}, {self._taken} taken>"

    def _take(self, item: Reply) -> Any:
        self._taken += 1
        if self._taken % (STREAM_WINDOW // 2) == 0:  # in halves of the window: half as many messages back
            self._link.credit(self.task_id, STREAM_WINDOW // 2)
        return decode_reply(self._link, item, self._bind)

    def _finish(self) -> None:
        error, self.inlet.error = self.inlet.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame, and this frame the stream: it would not be closed

    def _wait(self) -> None:
        call = current_call()
        if call is not None and call.host.wait_for_item(call, self, None):
            return
        self._link.check_may_block("reading a stream")
        self.inlet.wait(None)

    # What `HostServices.wait_for_item` looks at.

    @property
    def server_id(self) -> str:
        return self._link.server_id

    @property
    def inside(self) -> bool:
        return self._link.inside

    def ready(self) -> bool:
        return self.inlet.ready()

    @property
    def on_item(self) -> Callable[[], None] | None:
        return self.inlet.on_item

    @on_item.setter
    def on_item(self, callback: Callable[[], None] | None) -> None:
        self.inlet.on_item = callback


# ---------------------------------------------------------------- waiting for several


def wait(
    results: Iterable[AsyncResult], timeout: float | None = None, return_when: str = concurrent.futures.ALL_COMPLETED
) -> Any:
    """`concurrent.futures.wait`, which inside an agent's call also gives the worker slot back while it waits."""
    everything = list(results)
    timeout = _bounded(timeout)
    end = None if timeout is None else time.monotonic() + timeout
    call = current_call()
    while call is not None:
        pending = [result for result in everything if not result.done()]
        if not pending or _enough(everything, pending, return_when):
            break
        left = None if end is None else max(0.0, end - time.monotonic())
        any_of = return_when != concurrent.futures.ALL_COMPLETED
        if left == 0.0 or not call.host.wait_for(call, pending, left, any_of):
            break
    left = None if end is None else max(0.0, end - time.monotonic())
    unfinished = next((result for result in everything if not result.done()), None)
    if unfinished is not None:
        _check_may_block(unfinished, "wait()")
    return concurrent.futures.wait(everything, left, return_when)


def _enough(everything: list[AsyncResult], pending: list[AsyncResult], return_when: str) -> bool:
    if return_when == concurrent.futures.FIRST_COMPLETED:
        return len(pending) < len(everything)
    if return_when == concurrent.futures.FIRST_EXCEPTION:
        finished = [result for result in everything if result.done() and not result.cancelled()]
        return any(result.exception() is not None for result in finished)
    return False


def as_completed(results: Iterable[AsyncResult], timeout: float | None = None) -> Iterator[AsyncResult]:
    """The results in the order in which they finish; CallTimeout when ``timeout`` seconds are over before the last."""
    pending = dict.fromkeys(results)
    end = None if timeout is None else time.monotonic() + timeout
    finished = _Finished(pending)
    while pending:
        while not finished.done:
            left = None if end is None else max(0.0, end - time.monotonic())
            if left == 0.0 or not finished.wait(next(iter(pending)), left):
                raise errors.CallTimeout(f"{len(pending)} results were not finished within {timeout:.3g} s")
        result = finished.done.popleft()
        del pending[result]
        yield result


class _Finished:
    """Results as they finish. Each is registered once, so that waiting for n of them costs n, not n squared.

    In an agent's call it stands, one after the other, for one result that is not there yet: the call needs them all,
    so for the wait-for graph any will do.
    """

    def __init__(self, results: Iterable[AsyncResult]) -> None:
        self.done: deque[AsyncResult] = deque()
        self.on_item: Callable[[], None] | None = None
        self.task_id = self.server_id = ""
        self.inside = False
        self._changed = threading.Condition()
        for result in results:
            result.add_done_callback(self._add)

    def ready(self) -> bool:
        return bool(self.done)

    def wait(self, pending: AsyncResult, timeout: float | None) -> bool:
        """Until another one is done; False after ``timeout`` seconds."""
        call = current_call()
        self.task_id, self.server_id = pending.task_id, getattr(pending, "server_id", "")
        self.inside = getattr(pending, "inside", False)
        if call is not None and call.host.wait_for_item(call, self, _bounded(timeout)):
            return self.ready() or timeout is None
        _check_may_block(pending, "as_completed()")
        with self._changed:
            return self._changed.wait_for(self.ready, _bounded(timeout))

    def _add(self, result: Any) -> None:
        with self._changed:
            self.done.append(result)
            self._changed.notify_all()
        on_item = self.on_item
        if on_item is not None:
            on_item()


def _check_may_block(result: Any, what: str) -> None:
    link = getattr(result, "_link", None)  # a Future of somebody else's has none
    if isinstance(link, Link):
        link.check_may_block(what)


def _bounded(timeout: float | None) -> float | None:
    """``timeout`` as the locks of this platform can take it: ``inf`` is a legal wish."""
    return None if timeout is None else min(timeout, MAX_WAIT_S)


# ---------------------------------------------------------------- into an event loop


class _LoopInbox:
    """Futures of one event loop that are to be woken; filled by any thread, emptied by the loop's own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._items: deque[tuple[asyncio.Future[None], Exception | None]] = deque()
        self._posted = False

    def post(self, future: asyncio.Future[None], error: Exception | None) -> None:
        self._items.append((future, error))
        if self._posted:
            return
        self._posted = True
        loop = self._loop()
        try:
            if loop is not None:
                loop.call_soon_threadsafe(self._drain)
        except RuntimeError:  # the loop is closed: nobody awaits in it any more
            self._items.clear()
            self._posted = False

    def _drain(self) -> None:
        self._posted = False  # first: what is appended from here on posts again
        while self._items:
            future, error = self._items.popleft()
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)


_inboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopInbox] = weakref.WeakKeyDictionary()
_inboxes_lock = threading.Lock()


def _renew_lock() -> None:
    """In a forked child: a thread that is not here may hold it."""
    global _inboxes_lock
    _inboxes_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def _inbox_of(loop: asyncio.AbstractEventLoop) -> _LoopInbox:
    with _inboxes_lock:
        found = _inboxes.get(loop)
        if found is None:
            found = _inboxes[loop] = _LoopInbox(loop)
        return found
