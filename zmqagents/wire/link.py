"""The interface by which proxies send calls, over a connection or inside a host.

A `Link` is a client's `Connection` to a host, or a host's `LocalLink` to itself. A reply comes to a *sink*, on
the thread that carries it (the I/O thread of a connection, the router thread of a host): a `Waiter` for a thread
that blocks, an `AsyncResult` for everything else.
"""

from __future__ import annotations

import abc
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from .. import codec, errors
from ..codec import Encoded
from ..errors import CallTimeout
from .messages import MAX_ERROR_BYTES, Code, Reply

__all__ = ["Link", "Refetch", "Sink", "Waiter", "adopt", "adopt_as", "adopted", "disown", "places", "rebuild_error"]


LOADED = codec.Scope(imports=False)  # for the thread that carries the replies: an import may wait for another thread


def rebuild_error(
    reply: Reply, scope: codec.Scope = LOADED, unpickler: Callable[[bytes], Any] | None = None
) -> Exception:
    """The exception in an error reply; never raises. ``scope`` and ``unpickler`` are for what the exception holds."""
    try:
        data = codec.unpack(bytes(reply.body[0]), max_bytes=MAX_ERROR_BYTES)
    except (errors.RemoteProtocolError, IndexError) as exc:
        return errors.RemoteProtocolError(f"an error that cannot be read: {exc}")
    error = codec.decode_error(data, from_agent=reply.code == Code.AGENT_ERROR, unpickler=unpickler, scope=scope)
    if isinstance(error, errors.ZmqAgentsError):
        return error
    return errors.RemoteProtocolError(f"an error that no host has: {type(error).__name__}")  # a StopIteration, say


class Sink(Protocol):
    """Where the outcome of one request goes, exactly once. Neither method may block or raise."""

    def deliver(self, reply: Reply | None) -> None:
        """The host's answer; None: a fetch whose time is over."""

    def fail(self, error: Exception) -> None:
        """There will be no answer of the host."""

    def chunk(self, item: Reply) -> None:
        """One item of a stream, or what another call tells of its progress; before the outcome.

        Only for calls with the flag STREAM or WATCHED, and for fetches.
        """


class Link(abc.ABC):
    """Sends calls to one host. Any thread may use it.

    ``server_id`` is "" until known; ``address`` is what a reference to an agent carries, so that others can reach
    the host: ``host:port``, or ``ipc:/path`` of a private host. ``max_bytes`` is the largest message it takes,
    ``max_structured_bytes`` of it what is not beside the payload; results are held to the same.
    """

    server_id: str
    address: str
    max_bytes: int
    max_structured_bytes: int
    takes_pickles: bool = False  # the host is this program's own child
    inside: bool = False  # a host's link to itself: its dispatcher knows of each call before its maker goes on
    management_timeout_s: float = 5.0  # default deadline of requests to the host itself (its max_timeout_seconds)

    @property
    def is_settled(self) -> bool:
        """Whether `settle` has nothing to do."""
        return True

    def settle(self, timeout: float | None = 5.0) -> None:  # noqa: B027  # nothing to do where they always are
        """See that ``server_id``, ``max_bytes`` and ``takes_pickles`` are known: connect if need be."""

    @abc.abstractmethod
    def check_may_block(self, what: str) -> None:
        """Raise BlockingCallError in the thread that carries the replies: there a wait would never end."""

    @abc.abstractmethod
    def call(
        self, agent: str, method: str, body: Encoded, *,
        flags: int = 0, options: dict[str, Any] | None = None, timeout: float | None = None,
    ) -> Reply:  # fmt: skip
        """Send a call and block until its reply is there, ``timeout`` seconds at most (None: for ever)."""

    @abc.abstractmethod
    def submit(
        self, agent: str, method: str, body: Encoded, sink: Sink, *,
        flags: int = 0, options: dict[str, Any] | None = None, timeout: float | None = None,
    ) -> str:  # fmt: skip
        """Send a call whose reply goes to ``sink``; its task id."""

    @abc.abstractmethod
    def fetch(self, task_id: str, sink: Sink, *, timeout: float | None = None, at_home: bool = False) -> None:
        """Ask for the result of any task, and wait in the host for it ``timeout`` seconds (None: until it is there).

        ``at_home``: the call runs on this host itself, so that it is lost as soon as the host is.
        """

    @abc.abstractmethod
    def cancel(self, task_id: str, *, alone: bool = False) -> None:
        """Cancel a task and, unless ``alone``, the calls that it has made; nothing comes back."""

    def abandon(self, task_id: str) -> None:
        """Cancel a call made on this link. Takes no lock and opens nothing: the garbage collector may call it."""
        self.cancel(task_id)

    @abc.abstractmethod
    def credit(self, task_id: str, items: int) -> None:
        """Allow the stream ``task_id``, a call made on this link, to send ``items`` more."""


_inside: dict[str, Link] = {}  # hosts that live in this process, by server id
_clusters: weakref.WeakValueDictionary[str, Link] = weakref.WeakValueDictionary()  # by ``cluster:NAME``


def adopt(link: Link) -> None:
    """From now on calls of this process to that host take this way: none with a socket, if it lives in this process."""
    _inside[link.server_id] = link


def adopt_as(name: str, link: Link) -> None:
    """The same, as long as ``link`` lives, for all references that name a cluster, ``cluster:NAME``, and no host."""
    _clusters[name] = link


def adopted(server_id: str) -> Link | None:
    """The way to a host or a cluster that was adopted; None: there is none."""
    return _inside.get(server_id) or _clusters.get(server_id)


def disown(link: Link) -> None:
    """The reverse of `adopt` and `adopt_as`."""
    for row in (_inside, _clusters):
        for name in [name for name, each in list(row.items()) if each is link]:
            del row[name]


class Waiter:
    """A sink that one thread blocks on. Cheaper than a `threading.Event`: one bare lock."""

    __slots__ = ("_error", "_lock", "_reply")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._reply: Reply | None = None
        self._error: Exception | None = None

    def deliver(self, reply: Reply | None) -> None:
        self._reply = reply
        self._lock.release()

    def fail(self, error: Exception) -> None:
        self._error = error
        self._lock.release()

    def chunk(self, item: Reply) -> None:
        """Never called: a thread that blocks asks for no stream and no progress."""

    def wait(self, timeout: float | None) -> Reply:
        """The reply; raises what it failed with, or CallTimeout after ``timeout`` seconds without an answer."""
        if not self._lock.acquire(timeout=-1 if timeout is None else timeout):
            raise CallTimeout(f"no answer within {timeout:.3g} s")
        return self.take()

    @property
    def done(self) -> bool:
        """Whether the answer is there."""
        return self._reply is not None or self._error is not None

    def take(self) -> Reply:
        """The reply that is there."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # see Gate.wait
        assert self._reply is not None  # deliver(None) goes to fetches only, and no Waiter fetches
        return self._reply


def places(body: Encoded, server_id: str) -> tuple[list[str], dict[str, list[str]]]:
    """The results among the arguments: all task ids, and where those are that another host than ``server_id`` has."""
    if not body.tasks:
        return [], {}
    far = {ref.task_id: [ref.server_id, ref.address] for ref in body.tasks if ref.server_id != server_id}
    return list(dict.fromkeys(ref.task_id for ref in body.tasks)), far


class Refetch:
    """The sink of a FETCH: asks again while the host says that the call is still unfinished."""

    def __init__(self, fetch: Fetcher, task_id: str, sink: Sink, timeout: float | None) -> None:
        self._fetch = fetch
        self._task_id = task_id
        self._sink = sink
        self._end = None if timeout is None else time.monotonic() + timeout

    def deliver(self, reply: Reply | None) -> None:
        if reply is not None:
            self._sink.deliver(reply)
            return
        left = None if self._end is None else self._end - time.monotonic()
        if left is not None and left <= 0:
            self._sink.deliver(None)
            return
        try:
            self._fetch(self._task_id, self, left)
        except Exception as exc:  # the link is being closed
            self.fail(exc)

    def fail(self, error: Exception) -> None:
        self._sink.fail(error)

    def chunk(self, item: Reply) -> None:
        self._sink.chunk(item)


Fetcher = Callable[[str, Sink, "float | None"], None]
