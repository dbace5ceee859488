"""The call that a thread or coroutine runs: what its code may know of it, and what the host keeps about it.

Agents see a `CallContext`, which `current_call` makes on demand. Behind it stands one `RunningCall` for each call that
has started. It is the value of a context variable, so that the other packages find the host and the deadline of the
code that calls them; agents never get hold of it.

Each call (making an agent and reading an attribute are calls, too) runs in a `contextvars.Context` of its own, which
is empty when it begins, as that of a new thread is. What a call sets, such as the digits of `decimal.getcontext`, no
other call sees, and it sees nothing that other calls or the host's program have set. A generator has one context for
all its steps; a coroutine that a plain method returns goes on in a copy of the method's context.
"""

from __future__ import annotations

import contextvars
import itertools
import math
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, NamedTuple, Protocol

from ..errors import CallCancelled, CallTimeout

__all__ = [
    "CHAIN_HEADER", "CallContext", "HostServices", "Outgoing", "Progress", "RunningCall", "Told", "current_call",
    "own_call", "read_running_call", "running_call",
]  # fmt: skip

MAX_PROGRESS_TEXT = 200  # characters; what is longer is cut


class Progress(NamedTuple):
    """How far a call has come, as its code says: ``done`` of ``total`` (None: it cannot tell), and what it does."""

    done: float
    total: float | None = None
    text: str = ""

    @property
    def fraction(self) -> float | None:
        """``done / total`` from 0.0 to 1.0, None without a total."""
        return None if not self.total else min(1.0, max(0.0, self.done / self.total))

    def __str__(self) -> str:
        of = f"{self.done:g}" if self.total is None else f"{self.done:g} of {self.total:g}"
        return f"{of} {self.text}" if self.text else of


class Told:
    """What the code of a call has told of its progress; `CallContext.progress` writes it, the router thread sends it.

    ``is_posted``: the router thread will look at ``progress``, which may change until it does. ``next_s``: when it may
    send again.
    """

    __slots__ = ("is_posted", "next_s", "progress")

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.is_posted = False
        self.next_s = 0.0

    def send_next_at(self, when_s: float) -> None:
        """The router thread sends what is there now."""
        self.next_s = when_s
        self.is_posted = False


class HostServices(Protocol):
    """What agent code may ask of its host, from the thread or coroutine that runs a call.

    ``wait_for``, ``wait_for_item`` and ``outside`` wait without keeping the worker slot: for results, for the next
    item of a stream, and for whatever the host cannot see. ``awaiting`` reports what a coroutine waits for.
    """

    server_id: str

    def model_config(self, name: str) -> dict[str, Any]: ...
    def model(self, name: str) -> Any: ...
    def save(self, call: RunningCall) -> Awaitable[None]: ...
    def remind(
        self, call: RunningCall, name: str, method: str, args: Sequence[Any], after: float | None, every: float | None
    ) -> None:
        """See `CallContext.remind`; ``method`` "": `CallContext.cancel_reminder`."""

    def fence_of(self, call: RunningCall) -> int: ...
    def client(self) -> Any: ...
    def wait_for(self, call: RunningCall, results: Sequence[Any], timeout: float | None, any_of: bool) -> bool: ...
    def wait_for_item(self, call: RunningCall, stream: Any, timeout: float | None) -> bool: ...
    def check_blocking(self, what: str) -> None: ...
    def show_progress(self, call: RunningCall) -> None: ...
    def awaiting(
        self, call: RunningCall, result: Any, fail: Callable[[Any], None], ready: Callable[[], bool]
    ) -> Callable[[], None]: ...
    def outside(self, call: RunningCall) -> AbstractContextManager[None]: ...
    def chain_of(self, call: RunningCall, *further: str) -> list[str]:
        """The calls that a call made by ``call`` is made in, for another host: sealed, the nearest ones.

        ``further``: names of what stands between the two.
        """


class RunningCall:
    """A call whose code runs. Made by the host's router thread when it starts the call.

    The router thread calls `cancel`; `begin` and `end` are called by the thread that runs the code. ``deadline`` is on
    ``time.monotonic``'s clock, None: no deadline.
    """

    __slots__ = (
        "_event", "_has_reminded", "_is_cancelled", "_told", "agent", "call_id", "chain", "deadline", "host", "method",
        "over", "rest", "sender", "spares", "thread", "ticket",
    )  # fmt: skip

    def __init__(
        self, host: HostServices, call_id: str, agent: str, method: str, deadline: float | None = None,
        chain: tuple[str, ...] = (), ticket: Any = None, sender: Any = None,
    ) -> None:  # fmt: skip
        self.host = host
        self.call_id = call_id
        self.agent = agent
        self.method = method
        self.deadline = deadline
        self.chain = chain  # the task ids of the calls that it was made in, outermost first
        self.ticket = ticket  # the dispatcher's record of the call
        self.sender = sender  # where the items of a stream go
        self.spares = False  # it was cancelled alone: what its coroutine awaits goes on
        self.over = False  # the method has returned: no call waits for the code that it left behind
        self.thread = 0  # the ident of the thread that runs it
        self._is_cancelled = False
        self._event: threading.Event | None = None  # made by the first wait_cancelled: most calls have none

    def begin(self) -> None:
        """The calling thread or coroutine runs the code from now on, in a new `contextvars.Context`."""
        running_call.set(self)
        self.thread = threading.get_ident()

    def end_by(self, seconds: float) -> None:
        """It has ``seconds`` from now, if its deadline is not nearer."""
        end = time.monotonic() + seconds
        self.deadline = end if self.deadline is None else min(self.deadline, end)

    def end(self) -> None:
        """The method has returned."""
        self.over = True

    def pause(self) -> None:
        """No thread runs the code for now."""
        self.thread = 0

    def put_off(self, rest: Callable[[], Awaitable[Any]]) -> None:
        """The thread leaves the rest of the code to the event loop: what ``rest`` gives is the reply."""
        self.rest = rest
        self.thread = 0

    def take_rest(self) -> Callable[[], Awaitable[Any]]:
        """What `put_off` was given, which is not kept any longer."""
        rest = self.rest
        del self.rest
        return rest

    @property
    def has_reminded(self) -> bool:
        """Whether its code has set or cancelled a reminder, which goes with the state of the agent."""
        return getattr(self, "_has_reminded", False)  # most calls keep no place for it

    def note_reminder(self) -> None:
        """Its code has set or cancelled a reminder."""
        self._has_reminded = True

    @property
    def told(self) -> Told | None:
        """What its code has told of its progress; None: nothing. Most calls tell nothing and keep no place for it."""
        return getattr(self, "_told", None)

    def tell(self, progress: Progress) -> None:
        """Show that the code has come so far."""
        told = self.told
        if told is None:
            told = self._told = Told(progress)
        told.progress = progress
        if not told.is_posted:
            told.is_posted = True
            self.host.show_progress(self)

    def begin_again(self) -> None:
        """The calling thread runs the code from now on, in the `contextvars.Context` of the first one."""
        self.over = False
        self.begin()

    def cancel(self, *, alone: bool = False) -> None:
        """Tell the code that its caller does not wait for it any more; ``alone``: the calls that it has made go on."""
        self.spares = alone
        self._is_cancelled = True
        event = self._event
        if event is not None:
            event.set()

    def is_cancelled(self) -> bool:
        """Whether the call was cancelled or its deadline has passed."""
        return self._is_cancelled or (self.deadline is not None and time.monotonic() >= self.deadline)

    def wait_cancelled(self, timeout: float | None = None) -> bool:
        """See `CallContext.wait_cancelled`."""
        rest = self.remaining()
        limit = rest if timeout is None else timeout if rest is None else min(timeout, rest)
        event = self._event
        if event is None:
            event = self._event = threading.Event()
        if not self.is_cancelled():  # looked at after the event is in place: cancel() sets the flag first
            event.wait(limit)
        return self.is_cancelled()

    def check(self) -> None:
        """Raise `CallCancelled` if the call was cancelled, `CallTimeout` if its deadline has passed."""
        if self._is_cancelled:
            raise CallCancelled(f"{self.agent}.{self.method} was cancelled")
        if self.is_cancelled():
            raise CallTimeout(f"{self.agent}.{self.method} has passed its deadline")

    def remaining(self) -> float | None:
        """Seconds until the deadline (0.0 when it has passed), None when there is none."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


class CallContext:
    """What an agent's code may know of the call that it runs; `current_call` gives it.

    Any thread may use it, also after the call has ended. Two contexts of one call are equal.
    """

    __slots__ = ("_call",)

    def __init__(self, call: RunningCall) -> None:
        self._call = call

    def __eq__(self, other: object) -> bool:
        return self._call is other._call if isinstance(other, CallContext) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._call)

    def __repr__(self) -> str:
        return f"<CallContext {self.agent}.{self.method} [Id: {self.call_id}]>"

    @property
    def agent(self) -> str:
        """The id of the agent."""
        return self._call.agent

    @property
    def method(self) -> str:
        """The name of the method that was called."""
        return self._call.method

    @property
    def call_id(self) -> str:
        """The task id of the call: what its caller reads as ``AsyncResult.task_id``."""
        return self._call.call_id

    @property
    def deadline(self) -> float | None:
        """The time on ``time.monotonic``'s clock at which the call times out, None: never."""
        return self._call.deadline

    @property
    def cancelled(self) -> bool:
        """True once the caller has cancelled the call or its deadline has passed.

        Code that runs long reads it between two pieces of work, and returns early.
        """
        return self._call.is_cancelled()

    @property
    def fence(self) -> int:
        """The epoch of this activation of an agent of a cluster: a later one, on whatever host, has a higher number.

        0 outside a cluster. A system that keeps the highest number it was shown, and refuses lower ones, is safe from
        code that goes on where its host was cut off and the agent has another home by now.
        """
        return self._call.host.fence_of(self._call)

    def wait_cancelled(self, timeout: float | None = None) -> bool:
        """Sleep until `cancelled` is True, or for ``timeout`` seconds at most (None: no limit); returns `cancelled`.

        For loops that pause between two pieces of work. It blocks the calling thread, so a coroutine must not use it.
        """
        return self._call.wait_cancelled(timeout)

    def check(self) -> None:
        """Raise `CallCancelled` if the call was cancelled, `CallTimeout` if its deadline has passed."""
        self._call.check()

    def remaining(self) -> float | None:
        """Seconds until the deadline (0.0 when it has passed), None when there is none."""
        return self._call.remaining()

    def save(self) -> Awaitable[None]:
        """Save the state of the agent now, in the middle of the call: what its ``save_state`` gives.

        In a plain method it has been saved when this returns; a coroutine writes ``await current_call().save()``.
        Nothing is done where nobody keeps states: for agents in threads of a plain host. ConfigError: the agent has no
        ``save_state`` and ``load_state``, or ``persist=None``; else it raises what ``save_state`` raises,
        SerializationError, and MessageTooLarge for a state of more than 1 MiB.
        """
        return self._call.host.save(self._call)

    def remind(
        self, name: str, *, method: str, after: float | None = None, every: float | None = None,
        args: Sequence[Any] = (),
    ) -> None:  # fmt: skip
        """Have ``method`` of this agent called ``after`` so many seconds, and ``every`` so many then, if that is given.

        Without ``after`` the first call is in ``every`` seconds. A reminder of an agent is known by its ``name``: it is
        set anew if there is one; but while the agent is made, one that is there stays as it is. It is kept with the
        state, when this call's turn ends, and lives as long as the agent does, wherever that is. It is for agents of a
        cluster: ``docs/cluster.rst`` says when it comes, also if a host has died.

        ConfigError: this is no agent of a cluster, no such call can be made, or the code does not have the agent's
        turn. HostBusy: the agent has 64 reminders. SerializationError, MessageTooLarge: of the arguments.
        """
        self._call.host.remind(self._call, name, method, args, after, every)

    def cancel_reminder(self, name: str) -> None:
        """Forget the reminder, if there is one. Like `remind` it counts when this call's turn ends."""
        self._call.host.remind(self._call, name, "", (), None, None)

    def progress(self, done: float, total: float | None = None, text: str = "") -> None:
        """Tell how far the call has come: ``done`` of ``total`` (None: nobody knows), and in ``text`` what it does.

        The caller reads it as ``AsyncResult.progress``, ``progress(results)`` draws it, `RpcClient.get_call_list` and
        ``as_server calls`` list it. It takes a microsecond and waits for nothing, so a loop may tell of each turn; the
        caller hears of ten a second at most, always of the last one. TypeError or ValueError: these are no finite
        numbers.
        """
        self._call.tell(Progress(_number(done), None if total is None else _number(total), _short_text(text)))

    def outgoing(self) -> Outgoing:
        """For a request over HTTP that may lead back to agents of this host: a context manager for the headers of it.

            with current_call().outgoing() as headers:
                answer = requests.post(url, json=question, headers=headers)

        A coroutine writes ``async with``. Inside the block the call waits for whatever is asked there: a plain method
        gives its worker slot back meanwhile, and where an agent of this host is called by way of a gateway
        (``as_server web``) and would wait for this call, that is a `DeadlockError` there. The header names calls of
        this host: send it to your own gateway alone.
        """
        return Outgoing(self._call)

    def client(self) -> Any:
        """An `RpcClient` of the host that runs the call. It belongs to the host: do not close it.

        Its calls need no socket, and count as made by this call: they end when this call is cancelled or times out.
        """
        return self._call.host.client()


def _number(value: float) -> float:
    """``value`` as a number that every reader understands; also one of numpy's."""
    try:
        number = value if type(value) is int and -(1 << 53) < value < 1 << 53 else float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"progress takes finite numbers, not {value!r}")
    return number


def _short_text(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"the text of a progress must be a str, not {text!r}")
    return text[:MAX_PROGRESS_TEXT]


CHAIN_HEADER = "x-zmqagents-chain"
_numbers = itertools.count(1)


class Outgoing:
    """A request over HTTP in the middle of a call, see `CallContext.outgoing`. Entered once."""

    server_id = ""  # of no host: what stands between the call and those that come back is a gateway
    inside = False

    def __init__(self, call: RunningCall) -> None:
        self.task_id = f"out-{call.call_id}-{next(_numbers)}"
        self._call = call
        self._stack = ExitStack()
        self._error: Exception | None = None

    def __repr__(self) -> str:
        return f"<Outgoing {self.task_id}>"

    def __enter__(self) -> dict[str, str]:
        """The headers that the request is to have."""
        self._stack.enter_context(self._call.host.outside(self._call))
        return self._headers()

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    async def __aenter__(self) -> dict[str, str]:
        """The same for a coroutine."""
        import asyncio  # a loop runs, so it is there

        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def fail(error: Exception) -> None:
            self._error = error
            if task is not None:
                loop.call_soon_threadsafe(task.cancel)

        self._stack.callback(self._call.host.awaiting(self._call, self, fail, self.ready))
        return self._headers()

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, _: object) -> None:
        self._stack.close()
        error, self._error = self._error, None
        if error is not None:  # what came is the cancel that it has caused
            raise error from None

    def ready(self) -> bool:
        """Whether the wait is over before it has begun: never."""
        return False

    def _headers(self) -> dict[str, str]:
        return {CHAIN_HEADER: ",".join(self._call.host.chain_of(self._call, self.task_id))}


# Set by the host; `own_call` is what others ask. The path of a call reads it without a function call in between.
running_call: contextvars.ContextVar[RunningCall | None] = contextvars.ContextVar("zmqagents_call", default=None)
read_running_call = running_call.get  # bound once, as it is read with each call


def own_call() -> RunningCall | None:
    """The call that this thread or coroutine runs on a host; None outside of one, and when the call is over.

    A task or thread that a method has left behind runs no call.
    """
    call = read_running_call()
    return None if call is None or call.over else call


def current_call() -> CallContext | None:
    """The call that the calling thread or coroutine runs on a host, None outside of one.

    None as well in a thread that the method has started, and in a task that it has left behind: there the call is over.
    To let such code know of the call, hand the `CallContext` over to it.
    """
    call = read_running_call()
    return None if call is None or call.over else CallContext(call)
