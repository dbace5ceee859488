"""`ClusterLink`: calls to agents of a cluster, by whichever of its hosts.

Each host of a cluster takes every call and passes it on to where the agent is, so one connection is enough. What this
link adds is that calls go on:

* A call that was not executed (its host cannot be reached, is stopping, knows no such cluster) goes to another host.
* A call whose host or home has died is sent again if its method is idempotent, else it ends in `CallLost`: nobody knows
  whether it has run. A stream is never sent again.
* Before the same hosts are asked again there is a pause of 5 ms, doubling to 250, until the call's deadline; if no host
  can be reached at all, for `GIVE_UP_S`, and on first use not at all.

Hosts tell where an agent is (HINT), and the next call goes there; see `ways`, also for how a call that is sent again
keeps its place before later ones.

Calls of a thread that blocks go straight through the connection. All others have a sink of their own, `_Send`, which
stands between the connection and the sink of the result, and lives until that has its answer.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, Protocol

from ... import errors
from ...agents.context import own_call
from ...checks import CLUSTER
from ...codec import Encoded
from ...connection.connection import Connection, connect
from ...connection.target import Target, Transport, target_of
from ...connection.tasks import begin_task, end_task
from ...wire.link import Link, Sink, adopt_as, adopted, disown, rebuild_error
from ...wire.messages import Code, Flag, Home, Op, Reply, read_error
from .retries import Retries
from .seeds import Seed, Seeds
from .ways import GATHER_S, InLine, Way, Ways, numbers

__all__ = ["ClusterLink", "opened"]

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.005, 0.25
GIVE_UP_S = 30.0  # for so long all hosts may be away, as with a connection to one host
# Errors that a host answers with, by the names under which they travel: nothing was executed; or it is not known.
_NOT_EXECUTED = frozenset({"HostStopping", "HostUnreachable", "UnknownCluster"})
_NOT_KNOWN = frozenset({"CallLost", "Fenced"})
_REPEATABLE = frozenset(  # requests that only look, and steps that may be taken twice
    {Op.HOSTS, Op.WHERE, Op.EVENTS, Op.LIST, Op.DESCRIBE, Op.INFO, Op.UPGRADE}
)


class _Trouble:
    """What has happened to one call so far, and whether it may go on. ``timeout``: seconds that it has in all."""

    __slots__ = ("_end", "_hosts_failed", "_pause_s", "_safe", "_since")

    def __init__(self, timeout: float | None, *, safe: bool) -> None:
        self._end = None if timeout is None else time.monotonic() + timeout
        self._safe = safe  # it may run twice
        self._hosts_failed = 0
        self._pause_s = FIRST_PAUSE_S
        self._since: float | None = None

    def left_s(self) -> float | None:
        """Seconds that the call still has."""
        return None if self._end is None else self._end - time.monotonic()

    def in_reply(self, reply: Reply, way: Way, *, rerun: bool) -> Exception | None:
        """The error for whose sake the request is to be sent again; None: the answer stands.

        ``rerun``: it may also be sent again if it may have been executed.
        """
        if reply.code != Code.HOST_ERROR:
            return None
        name = read_error(reply)[0]
        again = name in _NOT_EXECUTED or (rerun and name in _NOT_KNOWN)
        if not again or (name == "UnknownCluster" and not way.address):  # the user has named that host
            return None
        return rebuild_error(reply)

    def pause_after(self, error: Exception, hosts: int, *, is_known: bool) -> float | None:
        """Seconds until the call is to be sent again, None: it ends in ``error``.

        ``hosts``: how many may be asked; ``is_known``: one of them was reached before.
        """
        unreachable = isinstance(error, errors.HostUnreachable | errors.AuthenticationError)
        if not (unreachable or isinstance(error, errors.HostStopping | errors.UnknownCluster)) and not (
            self._safe and isinstance(error, errors.CallLost) and not isinstance(error, errors.AgentCrashed)
        ):
            return None
        now = time.monotonic()
        self._since = self._since or now
        self._hosts_failed += unreachable
        if self._hosts_failed >= hosts and (not is_known or isinstance(error, errors.AuthenticationError)):
            return None
        pause_s = FIRST_PAUSE_S
        if not self._hosts_failed % hosts:  # each of them was asked
            pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, LONGEST_PAUSE_S)
        end = self._since + GIVE_UP_S if unreachable else math.inf
        return pause_s if now + pause_s < min(end, self._end or math.inf) else None


class _Go(Protocol):
    """Sends a request by a connection; gives its task id there."""

    def __call__(self, connection: Connection, sink: Sink, timeout: float | None) -> str: ...


class _Send:
    """One request, and the sink of each of its attempts."""

    def __init__(
        self, link: ClusterLink, agent: str, go: _Go, sink: Sink, timeout: float | None, *, resend: bool, rerun: bool,
        task_id: str = "",
    ) -> None:  # fmt: skip
        """``resend``: it may be sent again if its host has died; ``rerun``: also if the answer says so.

        ``task_id``: that of all its attempts; "": each has its own.
        """
        self._link = link
        self._agent = agent
        self._go = go
        self._sink = sink
        self._rerun = rerun
        self._trouble = _Trouble(timeout, safe=resend)
        self._way: Way | None = None
        self._has_items = self._is_over = self._is_given_up = False
        self.number = next(numbers)
        self.connection: Connection | None = None
        self.first_id = self.task_id = task_id  # under which it is known, and that of the latest attempt
        self._is_named = bool(task_id)

    def begin(self) -> str:
        """Send it for the first time; the id by which the caller knows it."""
        way = self._link.begin(self._agent, self)
        if way is not None:
            self._attempt(way)
            self.first_id = self.task_id
        elif not self._is_named:
            self.first_id = f"later-{self.number}"  # no host knows it by that
        self._link.note_open(self)
        if self._is_over:  # its answer has come already
            self._link.note_over(self)
        return self.first_id

    def give_up(self) -> None:
        """Nobody waits for it any more: it is not sent again. Takes no lock: the garbage collector may call it."""
        self._is_given_up = True

    def _end(self) -> None:
        if self._is_named and not self._is_over:
            end_task(self._agent, self.task_id)
        self._is_over = True
        self._link.note_over(self)
        self._leave_way()

    def _attempt(self, way: Way) -> None:
        self._way = way
        try:
            connection = self.connection = self._link.connection_for(way)
            self.task_id = self._go(connection, self, self._trouble.left_s())
        except BaseException:
            self._leave_way()
            raise

    def again(self) -> None:
        """The pause is over. On the thread of `Retries`."""
        way = self._link.begin(self._agent, self)
        if way is not None:
            self.go(way)

    def go(self, way: Way) -> None:
        """It is to be sent by this way; see `InLine`."""
        left_s = self._trouble.left_s()
        error: Exception | None = None
        if self._is_given_up:
            error = errors.CallCancelled("it was cancelled before it was sent again")
        elif left_s is not None and left_s <= 0:
            error = errors.CallTimeout("no host of the cluster has answered in time")
        if self._is_over or error is not None:
            self._link.end(way)
            if error is not None:
                self._end_in(error)
            return
        try:
            self._attempt(way)
        except Exception as exc:  # the program ends, or there is no more thread
            self._end_in(exc)

    def chunk(self, item: Reply) -> None:
        self._has_items = True
        self._sink.chunk(item)

    def deliver(self, reply: Reply | None) -> None:
        way = self._way
        if reply is not None and reply.code and way is not None and not self._has_items:
            error = self._trouble.in_reply(reply, way, rerun=self._rerun)
            if error is not None and self._goes_on(error, answered=True):
                return
        self._end()
        self._sink.deliver(reply)

    def fail(self, error: Exception) -> None:
        if self._has_items or not self._goes_on(error):
            self._end_in(error)

    def _goes_on(self, error: Exception, *, answered: bool = False) -> bool:
        way, connection = self._way, self.connection
        if self._is_over or self._is_given_up or way is None or connection is None:
            return False
        pause_s = self._link.pause_after(self._trouble, error, way, None if answered else connection)
        if pause_s is None:
            return False
        self._way = None
        self._link.send_again(self, way, pause_s)
        return True

    def _leave_way(self) -> None:
        way, self._way = self._way, None
        if way is not None:
            self._link.end(way)

    def _end_in(self, error: Exception) -> None:
        if not self._is_over:
            self._end()
            self._sink.fail(error)


class _Turn:
    """A thread that waits for the way of its call; an `InLine`."""

    def __init__(self, link: ClusterLink) -> None:
        self.number = next(numbers)
        self._link = link
        self._way: Way | None = None
        self._lock = threading.Lock()
        self._has_come = threading.Event()
        self._has_left = False

    def go(self, way: Way) -> None:
        """See `InLine`."""
        with self._lock:
            if not self._has_left:
                self._way = way
                self._has_come.set()
                return
        self._link.end(way)

    def wait(self, timeout: float) -> Way | None:
        """The way; None if it has not come in time: then the thread waits for it no more."""
        self._has_come.wait(timeout)
        with self._lock:
            self._has_left = True
            return self._way


class ClusterLink(Link):
    """See the module's docstring. ``server_id`` is ``cluster:NAME`` once the cluster's name is known. Any thread."""

    def __init__(
        self, seeds: Seeds, *, name: str = "", transport: Transport | None = None, relay: bool = False
    ) -> None:
        self.retries = Retries()
        self._seeds = seeds
        self._transport = transport
        self._ways = Ways(follows=not relay)
        self._lock = threading.Lock()
        self._connections: dict[str, Connection] = {}
        self._open: dict[str, _Send] = {}  # by their first ids
        self._is_known = False  # a host was reached, and has told the cluster's name
        self._is_closed = False
        self.server_id = ""
        if name:
            self._take_name(name)
        _links.add(self)

    def __repr__(self) -> str:
        return f"<ClusterLink {self.address} by {self._seeds!r}, {len(self._open)} open>"

    # ------------------------------------------------------------ what a link tells

    @property
    def name(self) -> str:
        """The cluster's name; "" until a host was reached."""
        return self.server_id.removeprefix(CLUSTER)

    @property
    def address(self) -> str:  # type: ignore[override]
        return self.server_id or str(self._seeds)

    @property
    def max_bytes(self) -> int:  # type: ignore[override]
        return self._latest().max_bytes

    @property
    def max_structured_bytes(self) -> int:  # type: ignore[override]
        return self._latest().max_structured_bytes

    @property
    def management_timeout_s(self) -> float:  # type: ignore[override]
        return self._latest().management_timeout_s

    def _latest(self) -> Connection:
        return self._connection_to(self._seeds.current())

    @property
    def is_settled(self) -> bool:
        return self._is_known

    def settle(self, timeout: float | None = 5.0) -> None:
        """Connect to a host if need be, so that the cluster's name is known. Raises what stands in the way."""
        if self._is_known:
            return
        self._seeds.look_up()
        trouble = _Trouble(timeout, safe=True)
        while True:
            seed = self._seeds.current()
            connection = self._connection_to(seed)
            try:
                connection.settle(trouble.left_s())
                break
            except (errors.ZmqAgentsError, ConnectionError) as exc:
                self._seeds.failed(seed.address)
                pause_s = trouble.pause_after(exc, len(self._seeds), is_known=False)
                if pause_s is None:
                    raise
                time.sleep(pause_s)
        self._reached(connection)

    def _reached(self, connection: Connection) -> None:
        found = connection.cluster
        if not found:
            raise errors.UnknownCluster(f"{connection.address} is no member of a cluster")
        if self.name and self.name != found:
            raise errors.UnknownCluster(
                f"{connection.address} is a member of the cluster {found!r}, not of {self.name!r}"
            )
        self._take_name(found)
        self._is_known = True

    def _take_name(self, name: str) -> None:
        with self._lock:
            self.server_id = f"{CLUSTER}{name}"
            if adopted(self.server_id) is None:  # else this is a host of the cluster, or another object has opened it
                adopt_as(self.server_id, self)

    def check_may_block(self, what: str) -> None:
        if self.retries.is_this_thread:
            raise errors.BlockingCallError(
                f"{what} in a done-callback would wait for itself: start a thread, or submit"
            )
        for connection in list(self._connections.values()):
            connection.check_may_block(what)

    # ------------------------------------------------------------ calls

    def call(
        self, agent: str, method: str, body: Encoded, *,
        flags: int = 0, options: dict[str, Any] | None = None, timeout: float | None = None,
    ) -> Reply:  # fmt: skip
        if flags & Flag.ONCE and agent:
            task_id = begin_task(agent)
            try:
                return self._call(agent, method, body, flags, {**(options or {}), "task": task_id}, timeout)
            finally:
                end_task(agent, task_id)
        return self._call(agent, method, body, flags, options, timeout)

    def _call(
        self, agent: str, method: str, body: Encoded, flags: int, options: dict[str, Any] | None, timeout: float | None
    ) -> Reply:
        safe = _may_run_twice(agent, method, flags)
        trouble = _Trouble(timeout, safe=safe)
        left_s: float | None = timeout
        while True:
            reply, error, pause_s = self._try(trouble, safe, agent, method, body, flags, options, left_s)
            if reply is not None:
                return reply
            assert error is not None
            if pause_s is None:
                try:
                    raise error
                finally:
                    del error  # its traceback has this frame
            _sleep(pause_s)
            left_s = trouble.left_s()
            if left_s is not None and left_s <= 0:
                text = f"{agent or 'the host'}.{method}: no host of {self.address} has answered in time"
                raise errors.CallTimeout(text) from error

    def _try(
        self, trouble: _Trouble, safe: bool, agent: str, method: str, body: Encoded, flags: int,
        options: dict[str, Any] | None, timeout: float | None,
    ) -> tuple[Reply | None, Exception | None, float | None]:  # fmt: skip
        """The answer; or the error, and the pause until the call is to be made again, None: not at all."""
        way = self._ways.begin(agent)
        if way is None:
            way = self._wait_for_way(agent, trouble)
            timeout = trouble.left_s()
        connection = None
        try:
            connection = self.connection_for(way)
            reply = connection.call(agent, method, body, flags=flags, options=options, timeout=timeout)
            if not reply.code or (error := trouble.in_reply(reply, way, rerun=safe)) is None:
                return reply, None, None
            pause_s = self.pause_after(trouble, error, way, None)
            return (reply, None, None) if pause_s is None else (None, error, pause_s)
        except (errors.ZmqAgentsError, ConnectionError) as exc:
            return None, exc, None if connection is None else self.pause_after(trouble, exc, way, connection)
        finally:
            if self._ways.end(way):
                self._release(way)

    def submit(
        self, agent: str, method: str, body: Encoded, sink: Sink, *,
        flags: int = 0, options: dict[str, Any] | None = None, timeout: float | None = None,
    ) -> str:  # fmt: skip
        task_id = ""
        if flags & Flag.ONCE and agent:
            task_id = begin_task(agent)
            options = {**(options or {}), "task": task_id}

        def go(connection: Connection, sink: Sink, timeout: float | None) -> str:
            made = connection.submit(agent, method, body, sink, flags=flags, options=options, timeout=timeout)
            return task_id or made

        safe = _may_run_twice(agent, method, flags)
        send = _Send(self, agent, go, sink, timeout, resend=safe, rerun=safe, task_id=task_id)
        try:
            return send.begin()
        except BaseException:
            if task_id:
                end_task(agent, task_id)
            raise

    def fetch(self, task_id: str, sink: Sink, *, timeout: float | None = None, at_home: bool = False) -> None:
        def go(connection: Connection, sink: Sink, timeout: float | None) -> str:
            sent = self._open.get(task_id)
            known_as = sent.task_id if sent is not None else task_id
            # at_home: so that it is not kept for this host alone.
            connection.fetch(known_as, sink, timeout=timeout, at_home=True)
            return f"fetch {next(_numbers)}"

        _Send(self, "", go, sink, timeout, resend=True, rerun=False).begin()

    def cancel(self, task_id: str, *, alone: bool = False) -> None:
        sent = self._open.get(task_id)
        if sent is None:
            self._latest().cancel(task_id, alone=alone)
            return
        sent.give_up()
        if sent.connection is not None:
            sent.connection.cancel(sent.task_id, alone=alone)

    def abandon(self, task_id: str) -> None:
        sent = self._open.get(task_id)
        if sent is not None:
            sent.give_up()
            if sent.connection is not None:
                sent.connection.abandon(sent.task_id)

    def credit(self, task_id: str, items: int) -> None:
        sent = self._open.get(task_id)
        if sent is not None and sent.connection is not None:
            sent.connection.credit(sent.task_id, items)

    # ------------------------------------------------------------ for `_Send`

    def begin(self, agent: str, call: InLine) -> Way | None:
        """The way that ``call`` takes to the agent, which it is to `end`; None: it waits for that, see `InLine`."""
        while True:
            way = self._ways.begin(agent)
            if way is not None:
                return way
            over = self._ways.wait(agent, call)
            if over is not None:
                self._watch(over)
                return None

    def end(self, way: Way) -> None:
        """It has its answer, or gets none this way."""
        if self._ways.end(way):
            self._release(way)

    def _release(self, way: Way) -> None:
        """All that were sent by this way, which is over, have come back."""
        self.retries.later(self._ways.pause_s(way), functools.partial(self._go_on, way))

    def send_again(self, send: _Send, way: Way, pause_s: float) -> None:
        """This way has led nowhere: send the call again after a pause, before all that were asked for later."""
        waits = self._ways.wait_again(way, send, time.monotonic() + pause_s)
        if self._ways.end(way):
            self._release(way)
        elif waits:
            self._watch(way)
        if not waits:
            self.retries.later(pause_s, send.again)

    def _watch(self, way: Way) -> None:
        """Calls that were sent by this way are not answered yet: they are not waited for without end."""
        if way.open and way.is_first_watch():
            self.retries.later(GATHER_S, functools.partial(self._go_on, way))

    def _go_on(self, way: Way) -> None:
        """The line of a way that is over takes the next one."""
        while (found := self._ways.take_next(way)) is not None:
            call, following = found
            try:
                call.go(following)
            except BaseException:  # a done-callback may raise anything
                log.exception("a call that was to be sent again failed")
        last = way.following
        if last is not None and self._ways.is_free(last):
            self._release(last)

    def _wait_for_way(self, agent: str, trouble: _Trouble) -> Way:
        """For a thread whose call may not be sent yet. Raises CallTimeout, HostLost."""
        while not self._is_closed:
            turn, left_s = _Turn(self), trouble.left_s()
            if left_s is not None and left_s <= 0:
                raise errors.CallTimeout(f"{agent}: no host of {self.address} has answered in time")
            found = self.begin(agent, turn)
            if found is None:
                most_s = GATHER_S + LONGEST_PAUSE_S
                with _outside():
                    found = turn.wait(most_s if left_s is None else min(left_s, most_s))
            if found is not None:
                return found
        raise errors.HostLost(f"the client of {self.address} is closed")

    def note_open(self, send: _Send) -> None:
        """A call is on its way."""
        self._open[send.first_id] = send

    def note_over(self, send: _Send) -> None:
        """It is not any more."""
        self._open.pop(send.first_id, None)

    def connection_for(self, way: Way) -> Connection:
        """The connection that calls of this way take. Raises HostLost after `close`."""
        return way.connection or self._ways.keep(way, self._connection_of(way))

    def _connection_of(self, way: Way) -> Connection:
        if way.address:
            with contextlib.suppress(errors.ConfigError):  # no address at all: something is wrong with Redis
                return self.connection_at(way.address)
        return self._latest()

    def pause_after(
        self, trouble: _Trouble, error: Exception, way: Way, connection: Connection | None
    ) -> float | None:  # fmt: skip
        """Note what has become of a way; seconds until the call is to be sent again, None: it ends in ``error``.

        ``connection``: that on which there was no answer; None: ``error`` was the answer.
        """
        if self._is_closed:
            return None
        if isinstance(error, errors.UnknownCluster):
            self._ways.misled(way)
        elif connection is not None or isinstance(error, errors.HostStopping):
            self._ways.failed(way)
            if way.address:
                if isinstance(error, errors.HostUnreachable | errors.AuthenticationError):
                    return FIRST_PAUSE_S  # those that the user has named are another matter
            elif way.connection is not None and self._seeds.failed(way.connection.address):
                self.retries.later(0.0, self._seeds.look_up)
        was_reached = any(each.server_id for each in list(self._connections.values()))
        return trouble.pause_after(error, len(self._seeds), is_known=was_reached)

    # ------------------------------------------------------------ connections

    def _connection_to(self, seed: Seed) -> Connection:
        found = self._connections.get(seed.address)
        return found or self._connect(Target(seed.host, seed.port, self._transport, seed=seed.named))

    def connection_at(self, address: str) -> Connection:
        """The connection to a host that the user has not named: it is known by the keys of those that were.

        Raises ConfigError for what is no address.
        """
        return self._connections.get(address) or self._connect(self.target_at(address))

    def target_at(self, address: str) -> Target:
        """How that host is reached. Raises ConfigError for what is no address."""
        target = target_of(address)
        if target.port is None:
            raise errors.ConfigError(f"{address!r} is no address of a host of a cluster")
        return Target(target.host, target.port, self._transport, seed=self._seeds.current().named)

    def _connect(self, target: Target) -> Connection:
        with self._lock:
            if self._is_closed:
                raise errors.HostLost(f"the client of {self.address} is closed")
            found = self._connections.get(target.address)
            if found is None:
                found = self._connections[target.address] = connect(target)
                found.take_up()
                found.follow(self)
            return found

    def hinted(self, home: Home) -> None:
        """An agent is there, as a host has said; on the thread that carries its replies."""
        self._ways.hinted(home)

    def close(self) -> None:
        """Give up the connections; what is open fails with `HostLost`."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            connections, self._connections = list(self._connections.values()), {}
        disown(self)
        _adopt_another(self.server_id)
        for connection in connections:
            if connection.let_go():
                connection.close()
        for send in list(self._open.values()):
            send.fail(errors.HostLost(f"the client of {self.address} is closed"))
        self.retries.take_all()
        self.retries.join()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    def renew_locks(self) -> None:
        """In a forked child: threads that are not here may hold them."""
        self._lock = threading.Lock()
        self._ways.renew_lock()
        self._seeds.renew_lock()
        self.retries.renew_lock()


def _may_run_twice(agent: str, method: str, flags: int) -> bool:
    """Whether a request does no harm if it is executed again: an idempotent call, a read, a question."""
    if not agent:
        return method in _REPEATABLE
    return bool(flags & (Flag.IDEMPOTENT | Flag.ATTRIBUTE)) and not flags & Flag.STREAM


def _sleep(seconds: float) -> None:
    with _outside():
        time.sleep(seconds)


@contextlib.contextmanager
def _outside() -> Iterator[None]:
    """A thread waits. In an agent's call its worker slot is given back meanwhile."""
    call = own_call()
    with call.host.outside(call) if call is not None else contextlib.nullcontext():
        yield
    if call is not None:
        call.check()


_numbers = itertools.count(1)
_links: weakref.WeakSet[ClusterLink] = weakref.WeakSet()


def opened(server_id: str) -> Link | None:
    """The link to the cluster ``cluster:NAME``, also by an object that has not asked for the cluster's name yet."""
    for link in list(_links):
        if adopted(server_id) is None and not link.is_closed and not link.name:
            with contextlib.suppress(errors.ZmqAgentsError, ConnectionError):
                link.settle()
    return adopted(server_id)


def _adopt_another(name: str) -> None:
    """The object that references to this cluster were called by is closed, and there is another one."""
    for link in list(_links):
        if link.server_id == name and not link.is_closed and adopted(name) is None:
            adopt_as(name, link)


def _after_fork() -> None:
    """In the child."""
    for link in list(_links):
        link.renew_locks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
