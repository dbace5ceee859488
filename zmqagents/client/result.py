"""`AsyncResult`: what a call gives before its value is there.

It is filled by the thread that carries the reply and read by any other; the value is decoded in the thread that
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
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextvars import Context
from typing import TYPE_CHECKING, Any, TypeVar, cast

from .. import codec, errors
from ..agents.context import Progress, own_call
from ..codec import INLINE_LIMIT_BYTES, TAG, Encoded, TaskRef, decode_plain, lone_values, pickling
from ..wire.link import Link, rebuild_error
from ..wire.messages import Reply
from .loop_inbox import Taskable, inbox_of, renew_lock

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    import asyncio  # at run time only where a loop is running: 20 ms that other programs need not pay

    from ..tracing.spans import ClientCall

__all__ = ["AsyncResult", "decode_reply"]

_CANCELLED, _FINISHED = "CANCELLED", "FINISHED"  # states of `concurrent.futures.Future`
R = TypeVar("R")
_SHOWN = [
    "add_done_callback", "cancel", "cancelled", "done", "exception", "progress", "result", "running", "server_id",
    "task_id",
]  # fmt: skip
MAX_PROGRESS_BYTES = 4096
MAX_WAIT_S = 1e9  # 30 years; below what any platform's time_t can hold
Bind = Callable[..., Any]  # proxy.bind_reference(ref, came_by, scope)


def decode_reply(link: Link, reply: Reply, bind: Bind, scope: codec.Scope) -> Any:
    """The value of a reply that is no error. ``bind`` makes references live, ``scope`` says which classes are known."""
    body = reply.body
    if not body:
        raise errors.RemoteProtocolError(f"{link.address}: a result without a value")
    payload = body[0]
    if len(payload) > INLINE_LIMIT_BYTES:
        codec.check_structure(payload, link.max_structured_bytes, f"a result from {link.address}: ")
    if len(body) == 1 and payload[:1] != TAG:
        return decode_plain(payload)
    if len(body) == 2 and type(payload) is bytes and (read := lone_values.get(payload)) is not None:
        return read(body[1])
    buffers = body[1:]
    unpickler = unpickler_of(link)
    return codec.decode(
        payload, buffers, resolve=lambda ref: bind(ref, link, scope), unpickler=unpickler, scope=scope, root="result"
    )


def unpickler_of(link: Link) -> Callable[[bytes], Any] | None:
    """What reads the pickles of a private host of this program; None for any other host."""
    return pickling.loads if link.takes_pickles else None


# ---------------------------------------------------------------- one value


class Condition:
    """A `threading.Condition` that Ctrl-C cannot leave locked: the thread that brings all replies would wait for it.

    No signal is looked at between a lock's own entering and the block. But `threading.Condition` enters and leaves by
    functions in Python, in which a KeyboardInterrupt may be raised. Here ``with`` finds the methods of the lock itself,
    in slots. Most results are there before a thread waits for them; they never need the condition of the library.
    """

    __slots__ = ("__enter__", "__exit__", "_changed", "_lock")

    if TYPE_CHECKING:

        def __enter__(self) -> bool: ...

        def __exit__(self, *_: object) -> None: ...

    def __init__(self) -> None:
        self._lock = lock = threading.RLock()
        self.__enter__ = lock.__enter__  # type: ignore[method-assign]
        self.__exit__ = lock.__exit__  # type: ignore[method-assign, assignment]
        self._changed: threading.Condition | None = None  # with the same lock, which guards it, too

    def acquire(self) -> bool:
        """As ``with`` does; `concurrent.futures.wait` calls it."""
        return self._lock.acquire()

    def release(self) -> None:
        """The reverse of `acquire`."""
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Release the lock until `notify_all`; False after ``timeout`` seconds."""
        if self._changed is None:
            self._changed = threading.Condition(self._lock)
        return self._changed.wait(timeout)

    def wait_for(self, is_true: Callable[[], bool], timeout: float | None = None) -> bool:
        """`wait` until ``is_true()``; what that said last."""
        if self._changed is None:
            self._changed = threading.Condition(self._lock)
        return self._changed.wait_for(is_true, timeout)

    def notify_all(self) -> None:
        """Wake every thread that waits. The caller has the lock."""
        if self._changed is not None:
            self._changed.notify_all()


class Awaited:
    """What a host may know of a result that its code waits for: see `HostServices.wait_for` and ``awaiting``.

    It is no part of `AsyncResult`, whose public names are those of the value.
    """

    __slots__ = ("_result", "link", "server_id", "task_id")

    def __init__(self, result: AsyncResult[Any], link: Link) -> None:
        self._result = result
        self.link = link
        self.task_id = result.task_id
        self.server_id = result.server_id

    @property
    def inside(self) -> bool:
        """True for a call of a host's own code to an agent of the same host."""
        return self.link.inside

    def ready(self) -> bool:
        """Whether nothing needs to be waited for any more."""
        return self._result.done()

    def add_done_callback(self, function: Callable[[Any], object]) -> None:
        """Call ``function`` with the result when it is finished."""
        self._result.add_done_callback(function)


class _Unseen:
    """The error of a failed call, told in the log when the result is collected and nobody has looked at it."""

    __slots__ = ("_error", "_label")

    def __init__(self, label: str, error: BaseException) -> None:
        self._label = label
        self._error: BaseException | None = error

    def seen(self) -> None:
        """Somebody has looked at the error, or passed it on."""
        self._error = None

    def __del__(self) -> None:
        if self._error is not None and not sys.is_finalizing():
            with contextlib.suppress(Exception):
                log.error("%s failed, and nobody has looked at its result", self._label, exc_info=self._error)


class _Sink:
    """Where the reply to the call of an `AsyncResult` goes; used by the thread that carries the reply."""

    __slots__ = ("_result",)

    def __init__(self, result: AsyncResult[Any]) -> None:
        self._result = result

    def deliver(self, reply: Reply | None) -> None:
        result = self._result
        if reply is None:
            self.fail(errors.CallTimeout(f"{result.task_id} was not finished in time"))
        elif reply.code:
            self.fail(result.__zmqagents_error__(reply))
        else:
            self._settle(result.set_result, reply)

    def fail(self, error: Exception) -> None:
        unseen = self._result.expect_a_look(error)
        if not self._settle(self._result.set_exception, error):
            unseen.seen()

    def _settle(self, setter: Callable[[Any], None], outcome: Any) -> bool:
        """False if the call was cancelled meanwhile."""
        try:
            Context().run(setter, outcome)  # for the done-callbacks: this thread may be in the middle of a call
        except concurrent.futures.InvalidStateError:
            return False
        except BaseException:  # a done-callback raised SystemExit, say: this thread carries the replies of others too
            log.exception("a done-callback of %r failed", self._result)
        return True

    def chunk(self, item: Reply) -> None:
        self._result.hear(item)


class AsyncResult(concurrent.futures.Future[R], Taskable):
    """The result of a call that runs meanwhile: a `concurrent.futures.Future` that can also be awaited.

    ``task_id`` finds it again from any process (`RpcClient.get_result`). As an argument it goes as a reference, and the
    method that gets it sees the value. ``value`` and reading an item wait for the value; it has none of the value's
    attributes. ``result`` and ``exception`` may be called again and again, from any thread. Done-callbacks run on the
    thread that carries the reply, where waiting is refused with `BlockingCallError`. A failed call that nobody has
    looked at is told in the log when its result is collected. A proxy makes it; programs do not.
    """

    def __init__(
        self, link: Link, label: str, bind: Bind, body: Encoded | None, *,
        agent: str = "", method: str = "", flags: int = 0, options: dict[str, Any] | None = None,
        timeout: float | None = None, task_id: str = "", home: str = "", client: object | None = None,
        scope: codec.Scope = codec.NO_SCOPE, span: ClientCall | None = None,
    ) -> None:  # fmt: skip
        """Send the call ``agent.method`` with the arguments ``body``; without them, ask for the result of ``task_id``.

        ``home``: the id of the host that has the call, where it is known before the link is first used. ``client``:
        kept, so that its connection stays open as long as the result is there. ``scope``: which classes the value may
        have. ``span``: of the call, where calls are traced.
        """
        super().__init__()
        self._condition = Condition()  # type: ignore[assignment]  # all that `Future` asks of one
        self._home = home
        self._client = client
        self._link = link
        self._label = label
        self._bind = bind
        self._scope = scope
        self._decode_lock = threading.Lock()
        self._decoded = False
        self.task_id = task_id
        if span is not None:
            options = span.with_options(options)
        if body is None:
            link.fetch(task_id, _Sink(self), timeout=timeout, at_home=bool(home))
        else:
            self.task_id = link.submit(agent, method, body, _Sink(self), flags=flags, options=options, timeout=timeout)
        if span is not None and span.awaited:
            span.note_task(self.task_id)
            self.add_done_callback(span.end_with)

    _unseen: _Unseen | None = None
    _is_passed_on = False

    def expect_a_look(self, error: BaseException) -> _Unseen:
        """For the sink of this result: the call has failed; what is returned tells it unless somebody looks."""
        unseen = self._unseen = _Unseen(self._label, error)
        if self._is_passed_on:
            unseen.seen()
        return unseen

    def _look(self) -> None:
        if self._unseen is not None:
            self._unseen.seen()

    _heard: Reply | None = None  # what the call has told of its progress

    def hear(self, item: Reply) -> None:
        """For the sink of this result: the call tells how far it has come."""
        self._heard = item

    @property
    def progress(self) -> Progress | None:
        """How far the call has come, as its code has told last by `CallContext.progress`; None: it has told nothing.

        Waits for nothing. What comes is at most a tenth of a second old; after the end it stays what was heard last.
        """
        heard = self._heard
        if heard is None:
            return None
        try:
            return Progress(*codec.unpack(heard.body[0], max_bytes=MAX_PROGRESS_BYTES))
        except (errors.RemoteProtocolError, IndexError, TypeError):  # no host of this package sends that
            return None

    @property
    def server_id(self) -> str:
        """The id of the host that has the call; "" until the host has answered for the first time."""
        return self._home or self._link.server_id

    def __zmqagents_error__(self, reply: Reply) -> Exception:
        """The exception of an error reply. Called in the thread that carries the replies, where nothing is imported."""
        scope = self._scope._replace(imports=False)
        return rebuild_error(reply, scope, unpickler_of(self._link))

    def __zmqagents_awaited__(self) -> Awaited:
        return Awaited(self, self._link)

    # ------------------------------------------------------------ the Future protocol

    def result(self, timeout: float | None = None) -> R:
        """The value. Blocks until the call has ended, at most ``timeout`` seconds (None: no limit).

        Raises what the call raised, CallTimeout after ``timeout`` seconds, `concurrent.futures.CancelledError` if it
        was cancelled here, BlockingCallError on an event loop of the host and in a done-callback, DeadlockError where
        the wait could never end.
        """
        if self._state == _FINISHED and self._exception is None:  # without the lock: both were set before the state
            return self._decode()
        try:
            self._wait(timeout)
            try:
                super().result(0)
            except concurrent.futures.TimeoutError:
                if self.done():  # the call itself raised a TimeoutError
                    self._look()
                    raise
                raise errors.CallTimeout(f"{self!r} was not finished within {timeout or 0:.3g} s") from None
            except Exception:
                self._look()
                raise
            return self._decode()
        finally:
            del self  # as in the standard library: the error that is raised here must not refer to itself

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call raised, None if it has returned. Blocks, and may fail to wait, like `result`."""
        self._wait(timeout)
        try:
            error = super().exception(0)
            if error is not None:
                self._look()
            return error
        except concurrent.futures.TimeoutError:
            raise errors.CallTimeout(f"{self!r} was not finished within {timeout or 0:.3g} s") from None

    def cancel(self, *, recursive: bool = True) -> bool:
        """Cancel the call; False if it has ended. Any thread may call this, and it does not block.

        A call that still waits never runs. A call that runs is told (`CallContext.cancelled`). The calls that it has
        made are cancelled with it, unless ``recursive`` is False.
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

    def _invoke_callbacks(self) -> None:
        """Call all done-callbacks: those behind one that raises SystemExit, say, are called as well."""
        for callback in self._done_callbacks:  # type: ignore[attr-defined]
            try:
                callback(self)
            except BaseException:
                log.exception("a done-callback of %r failed", self)

    def _wait(self, timeout: float | None) -> None:
        if self.done():
            return
        timeout = bounded(timeout)
        call = own_call()
        if call is not None and call.host.wait_for(call, [Awaited(self, self._link)], timeout, False):
            return  # the worker slot was given back meanwhile
        self._link.check_may_block("result()")
        with contextlib.suppress(concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            super().exception(timeout)

    def _decode(self) -> R:
        if self._decoded:
            return self._result  # type: ignore[return-value]
        with self._decode_lock:
            value: Any = self._result
            if not self._decoded:
                self._result = value = decode_reply(self._link, value, self._bind, self._scope)
                self._decoded = True
            return cast(R, value)

    def __await__(self) -> Generator[Any, None, R]:
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
        inbox = inbox_of(loop)
        self.add_done_callback(lambda _: inbox.post(future, None))
        call = own_call()
        give_up = None
        if call is not None:
            awaited = Awaited(self, self._link)
            give_up = call.host.awaiting(call, awaited, lambda error: inbox.post(future, error), future.done)
        try:
            yield from future
        except asyncio.CancelledError:  # the task that awaited it was cancelled
            if call is None or not call.spares:
                self.cancel()
            raise
        finally:
            if give_up is not None:
                give_up()

    # ------------------------------------------------------------ reading the value

    @property
    def value(self) -> R:
        """The value, waiting for it as long as the call may take; raises what the call raised."""
        return self.result()

    if not TYPE_CHECKING:  # which finds a wrong name by itself

        def __getattr__(self, name: str) -> Any:
            text = f"AsyncResult has no attribute {name!r}"
            private = name.startswith("_")
            raise AttributeError(text if private else f"{text}: that of the value is .value.{name}, which waits for it")

    def __dir__(self) -> list[str]:
        return _SHOWN  # without ``value``: whoever reads all that is listed, like a debugger, must not wait

    def __getitem__(self, key: Any) -> Any:
        return cast(Any, self.result())[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(cast(Any, self.result()))

    def __len__(self) -> int:
        return len(cast(Any, self.result()))

    def __contains__(self, item: object) -> bool:
        return item in cast(Any, self.result())

    def __bool__(self) -> bool:
        return True  # `if result:` asks whether there is one, and must not wait

    def __repr__(self) -> str:
        return f"<AsyncResult {self._label} {self.task_id} {self._state.lower()}>"

    # ------------------------------------------------------------ it travels as a reference

    def __zmqagents_ref__(self) -> TaskRef:
        self._is_passed_on = True  # whoever gets it will see how it ends
        self._look()
        if not self.server_id:
            self._link.settle()
        return TaskRef(self.task_id, self.server_id, self._link.address)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._bind, (self.__zmqagents_ref__(),)


# ---------------------------------------------------------------- waiting for several


def bounded(timeout: float | None) -> float | None:
    """``timeout`` as the locks of this platform can take it: ``inf`` is a legal wish."""
    return None if timeout is None else min(timeout, MAX_WAIT_S)


# ---------------------------------------------------------------- into an event loop


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=renew_lock)
