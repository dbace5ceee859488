"""Hosts that share one Redis: results found from anywhere, and what is said when a host or Redis itself fails.

Real hosts, real servers. ``ZMQAGENTS_LONG=1`` runs the proofs at full length (5,000 results, outages of 5 s) and prints
their figures with ``-s``; without it they are a tenth of that.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest

from actors import CALL_TIMEOUT_S, Desk, Latch, client_of, host
from hosts import environment, eventually
from raw_peer import RawPeer
from redis_server import NO_SERVER, RedisServer, running_redis
from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, async_func, concurrent, errors
from zmqagents.wire.messages import Flag, client_prefix, task_id_of

LONG = bool(os.environ.get("ZMQAGENTS_LONG"))
pytestmark = pytest.mark.timeout(300 if LONG else 90)
_namespaces = (f"hosts.{number}" for number in itertools.count())


class Timer(AgentBase):
    """Ends its calls at a time that all processes of the machine agree on."""

    @concurrent
    async def end_after(self, seconds: float) -> float:
        """The moment of its end, on the monotonic clock."""
        await asyncio.sleep(seconds)
        return time.monotonic()

    @async_func
    def make_bytes(self, size: int) -> bytes:
        return os.urandom(size)

    @async_func
    def fail(self) -> None:
        raise LookupError("nothing there")

    def plain(self, value: Any) -> Any:
        return value


@contextlib.contextmanager
def redis_host(server: RedisServer, namespace: str, **settings: Any) -> Iterator[RpcAgentServerLauncher]:
    with host(
        Timer, Latch, Desk, pool_type="redis", redis_url=settings.pop("redis_url", server.url),
        redis_namespace=namespace, **settings,
    ) as launcher:  # fmt: skip
        yield launcher


def kill(launcher: RpcAgentServerLauncher) -> None:
    assert launcher.pid is not None
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait_until_terminate()


def store_of(client: RpcClient) -> dict[str, Any]:
    return dict(client.get_server_info()["store"])


def outcome_of(action: Callable[[], Any]) -> Any:
    """The value, or the class of the error."""
    try:
        return action()
    except Exception as exc:
        return type(exc)


@pytest.fixture(scope="module")
def server(shared_redis: RedisServer | None) -> RedisServer:
    if shared_redis is None:
        pytest.skip(NO_SERVER)
    return shared_redis


@pytest.fixture(scope="module")
def two(server: RedisServer) -> Iterator[tuple[RpcAgentServerLauncher, RpcAgentServerLauncher]]:
    namespace = next(_namespaces)
    with redis_host(server, namespace) as first, redis_host(server, namespace) as second:
        yield first, second


@pytest.fixture(scope="module")
def clients(two: tuple[RpcAgentServerLauncher, RpcAgentServerLauncher]) -> Iterator[tuple[RpcClient, RpcClient]]:
    with client_of(two[0]) as a, client_of(two[1]) as b:
        assert a.is_alive()  # connected: no test is the one that does so
        assert b.is_alive()
        yield a, b


# ---------------------------------------------------------------- from anywhere


def test_any_host_gives_the_result_of_any_other(clients: tuple[RpcClient, RpcClient]) -> None:
    a, b = clients
    timer = a.create_agent(Timer)
    result = timer.make_bytes(100_000)
    assert b.get_result(result.task_id).result(CALL_TIMEOUT_S) == result.result()
    failure = timer.fail()
    with pytest.raises(LookupError, match="nothing there") as caught:
        b.get_result(failure.task_id).result(CALL_TIMEOUT_S)
    assert isinstance(caught.value, errors.AgentCallError)


def test_a_fetch_waits_for_a_call_that_another_host_has_not_finished(clients: tuple[RpcClient, RpcClient]) -> None:
    a, b = clients
    latch = a.create_agent(Latch)
    held = latch.hold_async("held")
    latch.entered()
    fetches = [b.get_result(held.task_id) for _ in range(3)]
    start = time.monotonic()
    with pytest.raises(errors.CallTimeout):
        b.get_result(held.task_id, 0.2).result()
    assert 0.1 < time.monotonic() - start < 1.5
    assert eventually(lambda: store_of(b)["waiting"] == 1, 3), "one question for all of them"
    latch.release()
    assert [fetch.result(CALL_TIMEOUT_S) for fetch in fetches] == ["held"] * 3
    assert eventually(lambda: store_of(b)["waiting"] == 0, 3)


def test_a_fetch_outlasts_the_longest_that_one_may_wait(server: RedisServer) -> None:
    namespace = next(_namespaces)
    with (
        redis_host(server, namespace) as first, redis_host(server, namespace, max_timeout_seconds=0.3) as second,
        client_of(first) as a, client_of(second) as b,
    ):  # fmt: skip
        ended: Any = a.create_agent(Timer).end_after(1.0)
        assert b.get_result(ended.task_id).result(CALL_TIMEOUT_S) == ended.result()


def test_what_nobody_knows_is_told_soon_and_what_was_looked_for_at_once_is_told_at_once(
    clients: tuple[RpcClient, RpcClient],
) -> None:
    for timeout, within_s in ((None, 2.0), (0.001, 1.0)):
        start = time.monotonic()
        with pytest.raises(errors.UnknownTask):
            clients[1].get_result("nobody-1", timeout).result(CALL_TIMEOUT_S)
        assert time.monotonic() - start < within_s


def test_a_fetch_that_overtakes_its_call_waits_longer_for_that_than_for_one_of_an_unknown_client(
    two: tuple[RpcAgentServerLauncher, RpcAgentServerLauncher], clients: tuple[RpcClient, RpcClient]
) -> None:
    client, timer = clients[0], clients[0].create_agent(Timer)
    with RawPeer(two[0]) as caller:
        caller.hello()
        early = client.get_result(task_id_of(client_prefix(caller.client_id), 1))
        with pytest.raises(errors.UnknownTask):
            client.get_result("nobody-1").result(CALL_TIMEOUT_S)
        assert not early.done()
        caller.call(1, timer.agent_id, "plain", "late", flags=Flag.DETACHED)
        assert early.result(CALL_TIMEOUT_S) == "late"


def test_a_result_is_an_argument_on_another_host_without_a_detour_by_its_caller(
    clients: tuple[RpcClient, RpcClient],
) -> None:
    a, b = clients
    latch, desk = a.create_agent(Latch), b.create_agent(Desk)
    held = latch.hold_async(20)
    summed = desk.plus(held, 1)  # is sent while the other is held
    latch.entered()
    latch.release()
    assert summed.result(CALL_TIMEOUT_S) == 21
    assert desk.plus(held, a.create_agent(Desk).plus(1, 1)).result(CALL_TIMEOUT_S) == 22


def test_an_argument_of_a_host_with_another_store_is_asked_of_that_host(clients: tuple[RpcClient, RpcClient]) -> None:
    with host(Desk) as local, client_of(local) as other:
        theirs = other.create_agent(Desk).plus(1, 1)
        assert clients[1].create_agent(Desk).plus(theirs, 1).result(CALL_TIMEOUT_S) == 3
        ours = clients[0].create_agent(Desk).plus(2, 2)
        assert other.create_agent(Desk).plus(ours, 1).result(CALL_TIMEOUT_S) == 5


def test_namespaces_keep_the_hosts_of_two_projects_apart(
    clients: tuple[RpcClient, RpcClient], server: RedisServer
) -> None:
    result = clients[0].create_agent(Timer).make_bytes(10)
    result.result(CALL_TIMEOUT_S)
    with redis_host(server, next(_namespaces)) as apart, client_of(apart) as client:
        with pytest.raises(errors.UnknownTask):
            client.get_result(result.task_id).result(CALL_TIMEOUT_S)
        assert store_of(client)["done"] == 0


def test_plain_calls_leave_nothing_in_redis(server: RedisServer) -> None:
    namespace = next(_namespaces)
    with redis_host(server, namespace) as launcher, client_of(launcher) as client:
        timer = client.create_agent(Timer)
        for number in range(50):
            assert timer.plain(number) == number
        with server.client as redis:
            assert not redis.exists(f"za:{{{namespace}}}:fin", f"za:{{{namespace}}}:pending")


def test_status_and_the_list_of_results_tell_what_is_in_the_store(server: RedisServer) -> None:
    namespace = next(_namespaces)
    url = f"redis://:@127.0.0.1:{server.port}"
    with redis_host(server, namespace, redis_url=url) as launcher, client_of(launcher) as client:
        done = client.create_agent(Timer).make_bytes(1000)
        done.result(CALL_TIMEOUT_S)
        latch = client.create_agent(Latch)
        held = latch.hold_async()
        latch.entered()
        assert eventually(lambda: (store_of(client)["done"], store_of(client)["pending"]) == (1, 1), 3)
        told = store_of(client)
        assert (told["kind"], told["state"], told["namespace"], told["unwritten"]) == ("redis", "up", namespace, 0)
        assert told["bytes"] > 1000
        assert 0 < told["round_trip_ms"] < 1000
        assert told["hosts"] == [launcher.server_id]
        assert [(row["task_id"], row["state"]) for row in client.get_result_list()] == [
            (held.task_id, "pending"), (done.task_id, "done"),
        ]  # fmt: skip
        shown = as_server("status", client)
        assert f"127.0.0.1:{server.port} ({namespace}) is up, round trip" in shown
        assert json.loads(as_server("result", client, "--list", "--json"))[1]["task_id"] == done.task_id
        latch.release()


def as_server(verb: str, client: RpcClient, *arguments: str) -> str:
    host_name, _, port = client.address.rpartition(":")
    return subprocess.run(
        [sys.executable, "-m", "zmqagents", verb, "--host", host_name, "--port", port, *arguments],
        stdout=subprocess.PIPE, text=True, env=environment(), check=True, timeout=30,
    ).stdout  # fmt: skip


def test_a_local_store_lists_its_results_too() -> None:
    with host(Timer, Latch) as launcher, client_of(launcher) as client:
        done = client.create_agent(Timer).make_bytes(10)
        done.result(CALL_TIMEOUT_S)
        latch = client.create_agent(Latch)
        held = latch.hold_async()
        latch.entered()
        assert [(row["task_id"], row["state"]) for row in client.get_result_list()] == [
            (held.task_id, "pending"), (done.task_id, "done"),
        ]  # fmt: skip
        latch.release()


# ---------------------------------------------------------------- a host dies


def test_after_kill_9_finished_results_are_readable_and_the_others_are_lost_soon_for_whoever_waits(
    server: RedisServer,
    two: tuple[RpcAgentServerLauncher, RpcAgentServerLauncher],
    clients: tuple[RpcClient, RpcClient],
) -> None:
    b = clients[1]
    with redis_host(server, two[1].config.redis_namespace, capacity=2) as victim:
        with client_of(victim) as a:
            done = a.create_agent(Timer).make_bytes(10)
            value = done.result(CALL_TIMEOUT_S)
            latch = a.create_agent(Latch)
            # A minute, so that on a busy machine none of them times out before it is lost.
            running, queued = latch.hold_async(timeout=60), latch.hold_async(timeout=60)  # type: ignore[call-arg]
            latch.entered()
            desk = b.create_agent(Desk)
            waiting = [b.get_result(running.task_id), b.get_result(queued.task_id), desk.plus(running, 1, timeout=60)]  # type: ignore[call-arg]
            assert eventually(lambda: store_of(b)["pending"] == 3 and store_of(b)["waiting"] == 2, 3)
            kill(victim)
            start = time.monotonic()
            assert [outcome_of(partial(w.result, CALL_TIMEOUT_S)) for w in waiting] == [errors.CallLost] * 3
            took_s = time.monotonic() - start
            print(f"lost for all after {took_s:.2f} s")
            assert took_s < 3 + 1  # on a busy machine
        assert b.get_result(done.task_id).result(CALL_TIMEOUT_S) == value
        assert eventually(lambda: store_of(b)["pending"] == 0, 3), "no ghosts are counted"
        assert desk.plus(b.get_result(done.task_id), b"!").result(CALL_TIMEOUT_S) == value + b"!"


def test_a_host_alone_with_redis_finds_its_results_after_kill_9_and_its_calls_lost(server: RedisServer) -> None:
    namespace = next(_namespaces)
    with redis_host(server, namespace) as victim:
        with client_of(victim) as a:
            done = a.create_agent(Timer).make_bytes(10)
            value = done.result(CALL_TIMEOUT_S)
            latch = a.create_agent(Latch)
            running = latch.hold_async()
            latch.entered()
            assert eventually(lambda: store_of(a)["pending"] == 1, 3)
        kill(victim)
    with redis_host(server, namespace) as again, client_of(again) as client:
        start = time.monotonic()
        assert client.get_result(done.task_id).result(CALL_TIMEOUT_S) == value
        assert outcome_of(lambda: client.get_result(running.task_id).result(CALL_TIMEOUT_S)) is errors.CallLost
        assert time.monotonic() - start < 3 + 1
        assert eventually(lambda: store_of(client)["pending"] == 0, 3)


def test_a_host_that_is_stopped_leaves_no_call_pending(
    server: RedisServer,
    two: tuple[RpcAgentServerLauncher, RpcAgentServerLauncher],
    clients: tuple[RpcClient, RpcClient],
) -> None:
    b = clients[1]
    with redis_host(server, two[1].config.redis_namespace) as first, client_of(first) as a:
        latch = a.create_agent(Latch)
        running = latch.hold_async()
        latch.entered()
        fetch = b.get_result(running.task_id)
        assert eventually(lambda: store_of(b)["waiting"] == 1, 3)
        a.stop(0.1)
        start = time.monotonic()
        assert outcome_of(lambda: fetch.result(CALL_TIMEOUT_S)) is errors.HostStopping
        assert time.monotonic() - start < 1.5, "it was told, not found out"


# ---------------------------------------------------------------- 5,000 results through another host


def _fetcher() -> None:
    """A process of its own: fetches through the host ``argv[1]`` the tasks that it reads; how late each one came."""
    task_ids = json.loads(sys.stdin.readline())
    late: list[float | str] = []
    lock = threading.Lock()
    with RpcClient("localhost", int(sys.argv[1])) as client:
        missing = threading.Semaphore(0)

        def came(result: Any) -> None:
            arrived = time.monotonic()
            value = outcome_of(result.result)
            with lock:
                late.append(arrived - value if isinstance(value, float) else repr(value))
            missing.release()

        for task_id in task_ids:
            client.get_result(task_id).add_done_callback(came)
        for _ in task_ids:
            assert missing.acquire(timeout=60)
    print(json.dumps(late))


def test_results_of_one_host_reach_the_clients_of_another_as_they_are_made(
    two: tuple[RpcAgentServerLauncher, RpcAgentServerLauncher], clients: tuple[RpcClient, RpcClient]
) -> None:
    count, rate = (5000, 500) if LONG else (300, 500)
    timer: Any = clients[0].create_agent(Timer)
    lead_s = 4.0 if LONG else 1.5
    begun = time.monotonic()
    end_after = timer.end_after.with_timeout(120)
    made = [end_after(lead_s + number / rate) for number in range(count)]
    arrived: dict[str, float] = {}  # at their caller, who is pushed them: the floor under the figures
    for result in made:
        result.add_done_callback(lambda result: arrived.setdefault(result.task_id, time.monotonic()))
    fetcher = subprocess.Popen(
        [sys.executable, "-c", "import test_shared_store; test_shared_store._fetcher()", str(two[1].port)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    told, _ = fetcher.communicate(json.dumps([result.task_id for result in made]) + "\n", timeout=120)
    assert fetcher.returncode == 0
    late = json.loads(told)
    assert [word for word in late if isinstance(word, str)] == []
    assert len(late) == count
    late.sort()
    pushed = sorted(arrived[result.task_id] - result.result() for result in made)
    p99 = late[int(count * 0.99)]
    for name, row in (("pushed to the caller", pushed), ("fetched through the other host", late)):
        print(f"{name}: p50 {statistics.median(row) * 1e3:.1f} ms, p99 {row[int(count * 0.99)] * 1e3:.1f} ms")
    assert p99 < max(2.0, 20 * pushed[int(count * 0.99)])
    assert time.monotonic() - begun < 60


# ---------------------------------------------------------------- Redis fails


@contextlib.contextmanager
def completions(a: RpcClient, b: RpcClient, count: int, over_s: float) -> Iterator[None]:
    """``count`` calls end on one host during the block, all asked for through the other: none is lost, none hangs."""
    timer: Any = a.create_agent(Timer)
    dice = random.Random(7)
    end_after = timer.end_after.with_timeout(120)
    made = [end_after(0.5 + dice.random() * over_s) for _ in range(count)]
    asked = [b.get_result(result.task_id) for result in made]
    yield
    values = [result.result(over_s + 30) for result in made]
    assert [result.result(30) for result in asked] == values


class Fragile(NamedTuple):
    """Two hosts on a Redis that a test may harm."""

    server: RedisServer
    first: RpcAgentServerLauncher
    a: RpcClient
    b: RpcClient


@pytest.fixture
def fragile() -> Iterator[Fragile]:
    with running_redis(appendonly="yes", appendfsync="always") as server:
        url = server.tcp_url if LONG else f"{server.tcp_url}?socket_timeout=0.5"
        namespace = next(_namespaces)
        with (
            redis_host(server, namespace, redis_url=url) as first,
            redis_host(server, namespace, redis_url=url) as second,
            client_of(first) as a, client_of(second) as b,
        ):  # fmt: skip
            assert a.is_alive()
            assert b.is_alive()
            yield Fragile(server, first, a, b)


def test_a_killed_subscription_loses_no_completion(clients: tuple[RpcClient, RpcClient], server: RedisServer) -> None:
    count, over_s = (2000, 2.0) if LONG else (500, 0.7)
    with completions(*clients, count, over_s), server.client as redis:
        for _ in range(10 if LONG else 5):
            time.sleep(0.2)
            redis.client_kill_filter(_type="pubsub")
            redis.client_kill_filter(_type="normal", skipme=True)


def test_a_redis_that_dies_or_stops_or_freezes_delays_and_loses_nothing_that_was_pushed_or_kept(
    fragile: Fragile,
) -> None:
    for how in ("kill", "stop"):
        lose_no_completion_at_a_restart(fragile, how)
    for how in ("stopped", "frozen"):
        go_on_while_redis_is_away(fragile, how)


def lose_no_completion_at_a_restart(fragile: Fragile, how: str) -> None:
    count, over_s = (2000, 2.0) if LONG else (400, 0.6)
    with completions(fragile.a, fragile.b, count, over_s):
        time.sleep(0.7)
        getattr(fragile.server, how)()
        fragile.server.start()
    assert eventually(lambda: store_of(fragile.b)["state"] == "up" and store_of(fragile.b)["pending"] == 0, 5)


class Load:
    """A thread that makes 100 plain and 100 asynchronous calls a second and notes how long each took."""

    def __init__(self, launcher: RpcAgentServerLauncher) -> None:
        self.latency_s: list[float] = []
        self.pings_s: list[float] = []
        self.errors: list[BaseException] = []
        self.pushed = 0
        self._stop = threading.Event()
        self._launcher = launcher
        self._threads = [threading.Thread(target=self._call), threading.Thread(target=self._ping)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _call(self) -> None:
        with client_of(self._launcher) as client:
            timer: Any = client.create_agent(Timer)
            due = time.monotonic()
            while not self._stop.wait(max(0.0, due - time.monotonic())):
                due = max(due + 0.01, time.monotonic() - 1)  # makes up for what is missed, but not for ever
                try:
                    start = time.monotonic()
                    timer.plain(1)
                    timer.end_after(0).result(CALL_TIMEOUT_S)
                    self.latency_s.append(time.monotonic() - start)
                    self.pushed += 1
                except Exception as exc:
                    self.errors.append(exc)

    def _ping(self) -> None:
        with client_of(self._launcher) as client:
            while not self._stop.wait(0.02):
                start = time.monotonic()
                client.is_alive()
                self.pings_s.append(time.monotonic() - start)

    def cut(self) -> tuple[int, float, float]:
        """Since the last cut: calls, the 99th percentile of both calls, that of the pings."""
        latency, self.latency_s = sorted(self.latency_s), []
        pings, self.pings_s = sorted(self.pings_s), []
        return len(latency), latency[int(len(latency) * 0.99)], pings[int(len(pings) * 0.99)]


def go_on_while_redis_is_away(fragile: Fragile, how: str) -> None:
    """Calls end as ever; fetches that need it are refused until it is back."""
    away_s = 5.0 if LONG else 1.2
    server, first, a, b = fragile
    with Load(first) as load:
        timer = a.create_agent(Timer)
        kept = timer.make_bytes(100)
        value = kept.result(CALL_TIMEOUT_S)
        time.sleep(5.0 if LONG else 0.5)
        before = load.cut()
        with away(server, how):
            gone = time.monotonic()
            meanwhile = timer.make_bytes(200)
            fresh = meanwhile.result(CALL_TIMEOUT_S)
            assert time.monotonic() - gone < 1, "pushed as ever"
            refusal = outcome_of(lambda: b.get_result(kept.task_id).result(CALL_TIMEOUT_S))
            assert refusal is errors.StoreUnavailable
            assert time.monotonic() - gone < 4, "no caller hangs"
            assert eventually(lambda: store_of(a)["state"] == "down", 4)
            assert a.get_result(meanwhile.task_id).result(CALL_TIMEOUT_S) == fresh, "its own host still has it"
            time.sleep(max(0.0, gone + away_s - time.monotonic()))
            during = load.cut()
        back = time.monotonic()
        assert eventually(lambda: outcome_of(lambda: b.get_result(kept.task_id).result(5)) == value, 5)
        recovered_s = time.monotonic() - back
        assert eventually(lambda: outcome_of(b.get_result(meanwhile.task_id).result) == fresh, 5), "written later"
    for name, (calls, p99, ping) in (("before", before), ("during", during)):
        print(f"{how} {name}: {calls} pairs, p99 {p99 * 1e3:.1f} ms, ping p99 {ping * 1e3:.1f} ms")
    print(f"{how}: back after {recovered_s:.2f} s")
    assert load.errors == []
    assert during[0] > 10 * away_s
    assert during[2] < max(0.3, 5 * before[2])
    assert recovered_s < 2 + 1  # on a busy machine


@contextlib.contextmanager
def away(server: RedisServer, how: str) -> Iterator[None]:
    if how == "frozen":
        with server.frozen():
            yield
    else:
        server.stop()
        yield
        server.start()


def test_a_full_redis_refuses_new_calls_that_would_leave_a_result_and_keeps_the_old_ones() -> None:
    with running_redis(maxmemory="12mb", maxmemory_policy="noeviction") as server:  # noqa: SIM117
        with redis_host(server, next(_namespaces)) as launcher, client_of(launcher) as client:
            timer = client.create_agent(Timer)
            first = timer.make_bytes(1_000_000)
            value = first.result(CALL_TIMEOUT_S)
            made = []
            end = time.monotonic() + 20
            with pytest.raises(errors.StoreFull, match="maxmemory"):  # noqa: PT012
                while time.monotonic() < end:
                    made.append(timer.make_bytes(1_000_000))
                    made[-1].result(CALL_TIMEOUT_S)  # is pushed, as long as the call is taken at all
                    time.sleep(0.02)
            assert len(made) > 3
            assert store_of(client)["state"] == "full"
            assert timer.plain("goes on") == "goes on"
            assert client.get_result(first.task_id).result(CALL_TIMEOUT_S) == value, "the old ones are intact"
            assert client.get_result(made[-2].task_id).result(CALL_TIMEOUT_S) == made[-2].result(), "written or not"
            with server.client as redis:
                redis.config_set("maxmemory", "100mb")
            assert eventually(lambda: store_of(client)["state"] == "up" and store_of(client)["unwritten"] == 0, 5)
            assert len(timer.make_bytes(10).result(CALL_TIMEOUT_S)) == 10


def test_without_redis_a_launch_fails_soon_and_shows_no_password() -> None:
    start = time.monotonic()
    with (
        pytest.raises(errors.LaunchError, match=r"redis://\*\*\*@127.0.0.1:1") as caught,
        host(Timer, pool_type="redis", redis_url="redis://:geheim@127.0.0.1:1"),
    ):
        pass
    assert time.monotonic() - start < 5
    assert "geheim" not in str(caught.value)
