"""A load generator for a running host: open loop, and free of coordinated omission.

A closed loop sends the next call when the last one is answered: a host that stops for a second then gets one slow
call instead of the thousand that would have come, and its percentiles look fine. Here calls are sent by a schedule
that does not depend on answers, and a call's latency counts from the moment when the schedule says it is due, also
when it could only be sent later. (Gil Tene, "How NOT to Measure Latency"; wrk2 does the same.)

Each client is a process with a connection of its own. It sends every ``clients / rate`` seconds; the clients are
shifted against each other, so all together send evenly. Latencies are counted in µs in an HDR histogram of three
digits. Each client reports once in `INTERVAL_S`:

    parent → client   the `Load` and the client's number, as JSON      client → parent   "ready", or why not
                      the moment to begin (`time.monotonic`)                             an interval: a line of JSON
                      end of file: stop at once                                          ...until the last answer

`run` starts the clients and adds up; `Summary` is what comes out. Package hdrhistogram is needed: extra ``bench``.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .. import errors
from ..connection.connection import connect
from ..connection.target import target_of
from ..wire.messages import Op
from .proxy import AgentProxy, bind_reference, request_body
from .result import AsyncResult
from .rpc import RpcClient

__all__ = ["INTERVAL_S", "Interval", "Load", "Summary", "run"]

INTERVAL_S = 1.0
LONGEST_US = 3_600_000_000  # an hour
DIGITS = 3
POLL_S = 0.01  # how often a client that has sent everything looks whether it is answered
HEAD_START_S = 0.1  # until every client has read when to begin
PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99, 100.0)


def new_histogram() -> Any:
    """An empty HDR histogram of µs. Raises MissingExtra without the package."""
    try:
        from hdrh.histogram import HdrHistogram
    except ImportError:
        raise errors.MissingExtra(
            "measuring latencies needs the package hdrhistogram: pip install 'zmqagents[bench]'"
        ) from None
    return HdrHistogram(1, LONGEST_US, DIGITS)


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent where. ``address``: as `RpcClient.address` has it.

    Without ``agent`` the host itself is asked (`RpcClient.is_alive`), which runs no agent's code. ``args`` and
    ``kwargs`` are JSON data; ``payload_bytes`` above zero puts that many bytes before them. ``rate``: calls a second,
    all clients together. ``timeout_s``: a call's deadline; the run ends at most that much after ``duration_s``.
    """

    address: str
    agent: str | None = None
    method: str = "__call__"
    args: Sequence[Any] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    payload_bytes: int = 0
    clients: int = 1
    rate: float = 100.0
    duration_s: float = 10.0
    timeout_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("clients", "rate", "duration_s", "timeout_s"):
            if not getattr(self, name) > 0:
                raise errors.ConfigError(f"{name} must be more than 0, not {getattr(self, name)!r}")
        if self.agent is None and (self.args or self.kwargs or self.payload_bytes):
            raise errors.ConfigError("a request to the host itself has no payload and no arguments: name an agent")


class Interval:
    """What happened in one stretch of a run; intervals can be added up.

    Its calls are those that were answered in it. ``behind_s``: the most that a call was sent after it was due,
    which is the generator's fault and not the host's (it is part of the latency all the same).
    """

    def __init__(self) -> None:
        self.latencies = new_histogram()
        self.errors: Counter[str] = Counter()
        self.sent = 0
        self.behind_s = 0.0

    @property
    def answered(self) -> int:
        """Calls that ended well; those in ``errors`` did not."""
        return int(self.latencies.get_total_count())

    def add(self, other: Interval) -> None:
        self.latencies.add(other.latencies)
        self.errors += other.errors
        self.sent += other.sent
        self.behind_s = max(self.behind_s, other.behind_s)

    def latency_ms(self, percentile: float) -> float:
        return float(self.latencies.get_value_at_percentile(percentile)) / 1000

    def to_json(self) -> dict[str, Any]:
        histogram = self.latencies.encode().decode()  # the standard's own compressed form, in base64
        return {"hdr": histogram, "errors": dict(self.errors), "sent": self.sent, "behind_s": self.behind_s}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Interval:
        made = cls()
        made.latencies.decode_and_add(data["hdr"])
        made.errors, made.sent, made.behind_s = Counter(data["errors"]), data["sent"], data["behind_s"]
        return made


@dataclass(frozen=True, slots=True)
class Summary:
    """A whole run. ``took_s``: from the first call to the last answer."""

    load: Load
    total: Interval
    took_s: float

    def to_json(self) -> dict[str, Any]:
        total = self.total
        names = [*(f"p{percentile:g}" for percentile in PERCENTILES[:-1]), "max"]
        values = [total.latency_ms(percentile) for percentile in PERCENTILES]
        mean = float(total.latencies.get_mean_value()) / 1000
        return {
            "load": asdict(self.load), "sent": total.sent, "answered": total.answered, "errors": dict(total.errors),
            "took_s": round(self.took_s, 3), "per_s": round(total.sent / self.load.duration_s, 1),
            "latency_ms": {"mean": round(mean, 3), **dict(zip(names, values, strict=True))},
            "behind_ms": round(total.behind_s * 1000, 3), "hdr": total.to_json()["hdr"],
        }  # fmt: skip


# ---------------------------------------------------------------- the parent


def run(load: Load, on_interval: Callable[[float, Interval], None] | None = None) -> Summary:
    """Put ``load`` on a host; blocks until every call has its answer.

    ``on_interval(seconds since the begin, interval)`` is called for each second of the run, in order. Raises
    MissingExtra, and what keeps the clients from the host: HostUnreachable, UnknownAgent, UnknownMethod, ...
    """
    new_histogram()
    total = Interval()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(_started(load, number)) for number in range(load.clients)]
        for client in clients:
            _expect_ready(client)
        begin = time.monotonic() + HEAD_START_S
        for client in clients:
            _tell(client, begin)
        for at_s, interval in _seconds(clients):
            total.add(interval)
            if on_interval is not None:
                on_interval(at_s, interval)
        took_s = time.monotonic() - begin
    return Summary(load, total, took_s)


@contextlib.contextmanager
def _started(load: Load, number: int) -> Iterator[subprocess.Popen[str]]:
    """A client process; it ends with the block, whatever it is doing."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    client = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,  # Ctrl-C is for the parent, which ends them
    )  # fmt: skip
    try:
        _tell(client, {"load": asdict(load), "number": number})
        yield client
        client.wait()
    finally:
        client.kill()
        client.communicate()


def _tell(client: subprocess.Popen[str], message: Any) -> None:
    assert client.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended, and has said why
        client.stdin.write(json.dumps(message) + "\n")
        client.stdin.flush()


def _hear(client: subprocess.Popen[str]) -> Any:
    assert client.stdout is not None
    line = client.stdout.readline()
    return json.loads(line) if line else None


def _expect_ready(client: subprocess.Popen[str]) -> None:
    # No limit here: whatever a client waits for before it is ready has one.
    answer = _hear(client)
    if isinstance(answer, dict):
        raise errors.rebuild(answer["failed"], from_agent=answer["of_agent"])
    if answer != "ready":
        raise errors.LaunchError("a client of the load generator has ended before it was ready; see its messages")


def _seconds(clients: list[subprocess.Popen[str]]) -> Iterator[tuple[float, Interval]]:
    """The intervals of all clients, those of the same second added up."""
    open_clients, at_s = list(clients), 0.0
    while open_clients:
        at_s += INTERVAL_S
        together = Interval()
        for client in list(open_clients):
            data = _hear(client)
            if data is None:
                if client.wait():
                    raise errors.LaunchError("a client of the load generator has failed; see its messages")
                open_clients.remove(client)
            else:
                together.add(Interval.from_json(data))
        if open_clients or together.sent:
            yield at_s, together


# ---------------------------------------------------------------- a client


class LoadClient:
    """One connection that sends by its schedule. Answers come in the I/O thread, all else happens in the main one."""

    def __init__(self, load: Load, number: int) -> None:
        self._load = load
        self._number = number
        self._lock = threading.Lock()  # of the interval
        self._interval = Interval()
        self._open = 0  # calls without an answer; of the main thread alone, with _ended
        self._ended = 0
        self._rpc = RpcClient(link=connect(target_of(load.address)), timeout=load.timeout_s)
        self._rpc.link.settle()
        self._send = self._request_maker()
        self._send().result()  # the first call is the host's to warm up; it also shows that the agent can be called

    def _request_maker(self) -> Callable[[], AsyncResult[Any]]:
        load = self._load
        if load.agent is None:
            return self._ping
        proxy = self._rpc.get_agent(load.agent)
        method = _method_of(proxy, load.method)
        payload = [os.urandom(load.payload_bytes)] if load.payload_bytes else []
        args = [*payload, *load.args]
        return lambda: method.aio(*args, **load.kwargs)

    def _ping(self) -> AsyncResult[Any]:
        link = self._rpc.link
        body = request_body(link, Op.INFO, (), {})
        return AsyncResult(link, Op.INFO, bind_reference, body, method=Op.INFO, timeout=self._load.timeout_s)

    def run(self, begin: float, report: Callable[[dict[str, Any]], None]) -> None:
        """Send from ``begin`` (monotonic) on for the load's duration, then wait for the rest of the answers."""
        tell_at = begin + INTERVAL_S
        for due in self._schedule(begin):
            while tell_at <= due:
                _sleep_until(tell_at)
                report(self._taken().to_json())
                tell_at += INTERVAL_S
            self._call(due, _sleep_until(due))
        while self._ended < self._open:
            _sleep_until(min(tell_at, time.monotonic() + POLL_S))
            if time.monotonic() >= tell_at:
                report(self._taken().to_json())
                tell_at += INTERVAL_S
        report(self._taken().to_json())
        self._rpc.close()

    def _schedule(self, begin: float) -> Iterator[float]:
        """When this client's calls are due: every so-manieth of all of them."""
        load = self._load
        calls = max(round(load.rate * load.duration_s), 1)
        return (begin + number / load.rate for number in range(self._number, calls, load.clients))

    def _call(self, due: float, behind_s: float) -> None:
        self._open += 1
        with self._lock:
            self._interval.sent += 1
            self._interval.behind_s = max(self._interval.behind_s, behind_s)
        try:
            self._send().add_done_callback(lambda result: self._on_answer(due, result))
        except errors.ZmqAgentsError as exc:  # refused here: the connection is lost and cannot be opened again
            self._count(due, exc)

    def _on_answer(self, due: float, result: Any) -> None:
        self._count(due, result.exception())

    def _count(self, due: float, error: BaseException | None) -> None:
        took_us = int((time.monotonic() - due) * 1e6)
        with self._lock:
            if error is None:
                self._interval.latencies.record_value(min(max(took_us, 1), LONGEST_US))
            else:
                self._interval.errors[type(error).__name__] += 1
            self._ended += 1

    def _taken(self) -> Interval:
        fresh = Interval()
        with self._lock:
            taken, self._interval = self._interval, fresh
        return taken


def _sleep_until(moment: float) -> float:
    """How late it is, in seconds."""
    left = moment - time.monotonic()
    if left > 0:
        time.sleep(left)
    return max(time.monotonic() - moment, 0.0)


def _method_of(proxy: AgentProxy, name: str) -> Any:
    """The method, as something with ``aio``. Raises UnknownMethod, and ConfigError for a stream."""
    method = proxy.__zmqagents_method__(name)
    if method is None or (name.startswith("_") and name != "__call__"):
        raise errors.UnknownMethod(f"{proxy.__zmqagents_places__()[0]} has no public method {name!r}")
    if method.returns == "stream":
        raise errors.ConfigError(f"{name} gives a stream, which has no single latency")
    return method


def main() -> None:
    """The program of one client; see the module's docstring for what it reads and prints."""

    def answer(message: Any) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    given = json.loads(sys.stdin.readline())
    try:
        client = LoadClient(Load(**given["load"]), given["number"])
    except errors.ZmqAgentsError as exc:
        answer({"failed": errors.describe(exc), "of_agent": isinstance(exc, errors.AgentCallError)})
        return
    answer("ready")
    line = sys.stdin.readline()
    if line:  # else the parent is gone
        threading.Thread(target=_end_with_the_parent, daemon=True).start()
        client.run(json.loads(line), answer)


def _end_with_the_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
