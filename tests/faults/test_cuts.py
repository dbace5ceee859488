"""Calls through a connection that is cut, reset, held and delayed: each ends, and runs at most once.

A `Ledger` on the host counts how often each call ran. Whatever happens to the connection, a call ends in its value or
in a typed error, never later than its deadline; one that gave a value ran exactly once, any other once or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

import hosts
from actors import CLASSES, client_of, host, within
from raw_peer import ipc_path
from relay import TROUBLES, Relay
from scale import Memory, pick, soak_only
from zmqagents import (
    AgentBase,
    AgentProxy,
    RpcAgentServerLauncher,
    RpcClient,
    UnknownAgent,
    ZmqAgentsError,
    async_func,
    errors,
)

pytestmark = pytest.mark.timeout(pick(60, 600))

CALLS = pick(3000, 10_000)
DEADLINE_S = 20.0
# What share of the calls must give their value although the connection is cut all the time: sessions are resumed, so
# it is all of them, but for those of a moment in which new connections, too, are cut before they have their session:
# up to 32 at once, and the slower the machine the more such moments.
SUCCESS_SHARE = 0.94
# What a call may end in. AuthenticationError: the connection was cut within its handshake.
LOSSES = (errors.CallLost, errors.HostLost, errors.HostUnreachable, errors.CallTimeout, errors.AuthenticationError)


class Ledger(AgentBase, max_concurrency=16):
    """Counts the runs of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: Counter[Any] = Counter()
        self._lock = threading.Lock()

    def _enter(self, number: Any) -> Any:
        with self._lock:
            self.runs[number] += 1
        return number

    def enter(self, number: Any, body: bytes = b"") -> Any:
        return self._enter(number)

    @async_func
    def enter_later(self, number: Any, body: bytes = b"") -> Any:
        return self._enter(number)

    async def enter_on_loop(self, number: Any, body: bytes = b"") -> Any:
        await asyncio.sleep(0.001)
        return self._enter(number)

    def give(self, number: Any, size: int) -> Any:
        self._enter(number)
        return [number, b"\xaa" * size]

    def items(self, number: Any, count: int) -> Iterator[Any]:
        self._enter(number)
        yield from range(count)

    def seen(self) -> dict[Any, int]:
        with self._lock:
            return dict(self.runs)


@pytest.fixture(scope="module")
def server() -> Iterator[RpcAgentServerLauncher]:
    with host(*CLASSES, Ledger, Tap, capacity=8) as launcher:
        yield launcher


@pytest.fixture
def ledger(client: RpcClient) -> AgentProxy:
    proxy: Any = client.create_agent(Ledger)
    return proxy


@pytest.fixture(params=["tcp", "ipc"])
def relay(server: RpcAgentServerLauncher, request: pytest.FixtureRequest) -> Iterator[Relay]:
    with Relay(ipc_path(server) if request.param == "ipc" else server.port or 0) as relay:
        yield relay


class Account:
    """What the calls of a test ended in."""

    def __init__(self, *also: type[Exception]) -> None:
        self._allowed: tuple[type[Exception], ...] = (*LOSSES, *also)
        self.values: list[Any] = []
        self.errors: Counter[str] = Counter()
        self.slowest = 0.0
        self._lock = threading.Lock()

    def book(self, number: Any, wait: Any) -> None:
        """Run ``wait``, which gives the value of call ``number`` or raises."""
        start = time.monotonic()
        try:
            value = wait()
        except self._allowed as exc:  # anything else fails the test
            with self._lock:
                self.errors[type(exc).__name__] += 1
        else:
            assert (value[0] if isinstance(value, list) else value) == number
            with self._lock:
                self.values.append(number)
        self.slowest = max(self.slowest, time.monotonic() - start)

    def check(self, ledger: AgentProxy, count: int, *, share: float = SUCCESS_SHARE) -> None:
        runs = ledger.seen()
        assert len(self.values) + sum(self.errors.values()) == count
        assert {number: n for number, n in runs.items() if n != 1} == {}, "ran more than once"
        assert set(self.values) <= set(runs), "gave a value without having run"
        assert self.slowest < DEADLINE_S + 2
        assert len(self.values) >= share * count, self.errors


# ---------------------------------------------------------------- the calls


def _through(remote: RpcClient, ledger: AgentProxy) -> AgentProxy:
    """The agent over the connection in trouble. A first connection that is cut is not made again by itself."""
    for _ in range(100):
        with contextlib.suppress(ConnectionError):
            return remote.get_agent(ledger.agent_id)
    raise AssertionError("never connected")


def _blocking(relay: Relay, ledger: AgentProxy, account: Account, count: int) -> None:
    """Eight threads, one call after the other."""
    with relay.client(DEADLINE_S) as remote, ThreadPoolExecutor(8) as pool:
        mine = _through(remote, ledger)
        for _ in pool.map(lambda i: account.book(i, lambda: mine.enter(i)), range(count)):
            pass


def _futures(relay: Relay, ledger: AgentProxy, account: Account, count: int) -> None:
    """Up to 64 calls out."""
    with relay.client(DEADLINE_S) as remote:
        mine = _through(remote, ledger)
        out = []
        for i in range(count):
            out.append((i, mine.enter_later(i, bytes(i % 3 * 1000))))
            if len(out) >= 64:
                account.book(out[0][0], out.pop(0)[1].result)
        for i, result in out:
            account.book(i, result.result)


def _asyncio(relay: Relay, ledger: AgentProxy, account: Account, count: int) -> None:
    """32 tasks."""

    async def main() -> None:
        async with relay.async_client(DEADLINE_S) as remote:
            mine = None
            while mine is None:
                try:
                    mine = await remote.get_agent(ledger.agent_id)
                except ConnectionError:
                    continue
            numbers = iter(range(count))

            async def task() -> None:
                for i in numbers:
                    start = time.monotonic()
                    try:
                        value = await mine.enter_on_loop(i)
                    except ZmqAgentsError as exc:
                        error = exc
                        account.book(i, lambda error=error: _raise(error))
                    else:
                        account.book(i, lambda value=value: value)
                    account.slowest = max(account.slowest, time.monotonic() - start)

            await asyncio.gather(*(task() for _ in range(32)))

    asyncio.run(main())


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("make_calls", [_blocking, _futures, _asyncio])
def test_calls_through_a_connection_in_trouble_end_and_run_at_most_once(
    relay: Relay, ledger: AgentProxy, make_calls: Any
) -> None:
    """Cut, reset, half closed, held and delayed at random."""
    account = Account()
    with relay.trouble(7, pick(0.03, 0.1)) as done:
        make_calls(relay, ledger, account, CALLS)
    account.check(ledger, CALLS)
    assert len(done) > 3
    assert relay.connections > 1


@pytest.mark.parametrize("kind", TROUBLES)
def test_each_kind_of_trouble_alone(relay: Relay, ledger: AgentProxy, kind: str) -> None:
    account, count = Account(), pick(200, 2000)
    with relay.trouble(11, 0.03, kind):
        _futures(relay, ledger, account, count)
    account.check(ledger, count)


def test_large_results_through_a_connection_that_is_cut_in_the_middle_of_them(relay: Relay, ledger: AgentProxy) -> None:
    account, count = Account(), pick(60, 1000)
    with relay.client(DEADLINE_S) as remote:
        mine = remote.get_agent(ledger.agent_id)
        source = random.Random(5)
        for i in range(count):
            if i % 3 == 1:
                relay.cut_after(source.randrange(400_000))
            account.book(i, lambda i=i: mine.give(i, 300_000))
    account.check(ledger, count)


class FileLedger(AgentBase):
    """Counts in a file, which outlives its host."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._file = open(path, "a", buffering=1)  # noqa: SIM115  # for as long as the agent lives

    def enter(self, number: int) -> int:
        self._file.write(f"{number}\n")
        return number


def test_calls_to_a_host_that_is_killed_and_comes_back_run_at_most_once_in_all_its_lives(tmp_path: Path) -> None:
    path, lives = tmp_path / "ledger", pick(3, 30)
    account = Account(UnknownAgent, errors.HostStopping)  # the first host may still say that it has stopped
    with contextlib.ExitStack() as stack:
        port = hosts.free_port()
        with host(FileLedger, port=port):
            remote = stack.enter_context(RpcClient("localhost", port, timeout=DEADLINE_S))
            mine = remote.create_agent(FileLedger, str(path), agent_id="ledger")
        stop, numbers = threading.Event(), itertools.count()

        def call() -> None:
            while not stop.is_set():
                number = next(numbers)
                account.book(number, functools.partial(mine.enter, number))

        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        try:
            for _ in range(lives):
                # A connection of its own: the callers' one may just be told that nobody is there.
                with host(FileLedger, port=port) as launcher, client_of(launcher, transport="tcp") as client:
                    client.create_agent(FileLedger, str(path), agent_id="ledger")
                    enough = len(account.values) + 20
                    assert hosts.eventually(lambda: len(account.values) > enough, 10)  # noqa: B023  # waits here
                    os.kill(launcher.pid or 0, signal.SIGKILL)
                    launcher.wait_until_terminate()
        finally:
            stop.set()
            for caller in callers:
                caller.join(DEADLINE_S + 5)
        assert not any(caller.is_alive() for caller in callers)
    runs = Counter(int(line) for line in path.read_text().split())
    assert {number: n for number, n in runs.items() if n != 1} == {}
    assert set(account.values) <= set(runs)
    assert account.slowest < DEADLINE_S + 2


# ---------------------------------------------------------------- streams and connecting


@pytest.mark.parametrize("kind", TROUBLES)
def test_a_stream_through_a_connection_in_trouble_gives_its_items_in_order_or_an_error(
    relay: Relay, ledger: AgentProxy, kind: str
) -> None:
    ended = Counter[str]()
    with relay.client(DEADLINE_S) as remote:
        mine = remote.get_agent(ledger.agent_id)
        with relay.trouble(13, 0.05, kind):
            for number in range(pick(8, 100)):
                items = []
                try:
                    for item in mine.items(number, 500):
                        items.append(item)
                    ended["whole"] += 1
                    assert len(items) == 500
                except (ConnectionError, TimeoutError) as exc:
                    ended[type(exc).__name__] += 1
                assert items == list(range(len(items)))
    assert all(count == 1 for count in ledger.seen().values())


def test_a_lost_reader_of_a_stream_does_not_hold_its_agent(server: RpcAgentServerLauncher, client: RpcClient) -> None:
    desk = client.create_agent(Tap)
    with Relay(server.port or 0) as relay, relay.client(3) as remote:
        stream = iter(remote.get_agent(desk.agent_id).drops())
        assert next(stream) == 0
        relay.refuse()  # else the stream goes on over the next connection
        relay.cut()
        with within(3 + 5), pytest.raises((ConnectionError, TimeoutError)):
            for _ in stream:
                pass
        with within(5):
            assert desk.closed() is True


class Tap(AgentBase):
    def drops(self) -> Iterator[int]:
        self.ended = False
        try:
            yield from range(10**9)
        finally:
            self.ended = True

    def closed(self) -> bool:
        return self.ended


def test_a_client_connects_as_soon_as_its_host_takes_connections_again(
    server: RpcAgentServerLauncher, relay: Relay
) -> None:
    with relay.client(1) as remote:
        assert remote.is_alive()
        for _ in range(pick(1, 10)):
            relay.refuse()
            relay.cut()
            with within(8):  # a lost connection is tried again for as long as a request may take
                assert not _is_alive(remote)
            relay.accept()
            with within(3):
                assert hosts.eventually(lambda: _is_alive(remote), 3)


def _is_alive(remote: RpcClient) -> bool:
    with contextlib.suppress(ConnectionError):
        return remote.is_alive()
    return False


@pytest.mark.parametrize("relay", ["tcp"], indirect=True)  # without keys there is nothing to doubt
def test_a_connection_that_is_cut_within_the_handshake_is_no_refused_key(relay: Relay) -> None:
    with relay.client(5) as remote:
        relay.refuse(1)
        assert remote.is_alive()
        assert relay.connections == 1


def test_a_slow_line_is_slow_and_nothing_else(relay: Relay, ledger: AgentProxy) -> None:
    with relay.client(DEADLINE_S) as remote:
        mine = remote.get_agent(ledger.agent_id)
        relay.delay_s = 0.1
        start = time.monotonic()
        assert [mine.enter_later(i).result() for i in range(2)] == [0, 1]
        assert time.monotonic() - start > 0.35  # there and back, twice
        assert [result.result() for result in [mine.enter_later(i) for i in range(2, 500)]] == list(range(2, 500))
    assert relay.connections == 1


def test_hundreds_of_lost_connections_leave_nothing_on_the_host(
    server: RpcAgentServerLauncher, client: RpcClient, relay: Relay, ledger: AgentProxy
) -> None:
    process = psutil.Process(server.pid)
    memory = Memory(server.pid)
    descriptors, threads = process.num_fds(), process.num_threads()
    with relay.client(DEADLINE_S) as remote:
        mine = remote.get_agent(ledger.agent_id)
        for turn in range(pick(100, 2000)):
            with contextlib.suppress(ConnectionError):
                mine.enter(turn)
            relay.reset()
    assert hosts.eventually(lambda: process.num_fds() <= descriptors + 8, 5)
    assert process.num_threads() <= threads + 8
    assert memory.grown < 16
    assert client.get_server_info()["calls_open"] == 0


@soak_only
def test_a_cable_that_is_out_for_longer_than_the_ping_limit(relay: Relay, ledger: AgentProxy) -> None:
    account = Account()
    with relay.client(60) as remote:
        mine = remote.get_agent(ledger.agent_id)
        assert mine.enter(-1) == -1
        relay.hold()
        results = [mine.enter_later(i) for i in range(100)]
        with within(25):  # pinged after 5 s, given up after 15 s
            assert not remote.is_alive()
        relay.let_go()
        for i, result in enumerate(results):
            account.book(i, result.result)
        assert hosts.eventually(remote.is_alive, 10)
        assert mine.enter(100) == 100
    assert set(ledger.seen().values()) == {1}
