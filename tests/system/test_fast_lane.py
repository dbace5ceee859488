"""The fast lane: short methods run in the router thread, and one that turns out long holds up nobody."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from actors import CALL_TIMEOUT_S, client_of, client_on_host, is_router, within
from scale import LATE_S
from zmqagents import AgentBase, AgentProxy, RpcAgentServerLauncher, RpcClient, async_func, concurrent, current_call
from zmqagents.agents.spec import spec_of
from zmqagents.agents.timing import FORGIVEN_RUNS, LEAST_RUNS, LONG_S, SHORT_S, Pace
from zmqagents.broker.leader import Leader, Relieved
from zmqagents.errors import AgentCallError, CallTimeout, DeadlockError

pytestmark = pytest.mark.timeout(60)


class Runner(AgentBase):
    """All its deeds are one method, so one that is short makes it run the next in the router thread."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []
        self.inside = self.most_inside = 0

    def act(self, deed: str = "where", *args: Any) -> Any:
        return getattr(self, f"_{deed}")(*args)

    @async_func
    def act_later(self, deed: str = "where", *args: Any) -> Any:
        return getattr(self, f"_{deed}")(*args)

    def numbers(self, n: int) -> Iterator[int]:
        yield from range(n)

    @concurrent
    def start_afresh(self) -> None:
        """Forget the disappointments of other tests."""
        for method in spec_of(Runner).methods.values():
            method.pace.__init__()  # type: ignore[misc]

    async def soon(self) -> str:
        await asyncio.sleep(0)
        return "soon"

    def _where(self) -> str:
        return threading.current_thread().name

    def _where_with(self, value: Any) -> str:
        return self._where()

    def _sleep(self, seconds: float) -> str:
        begun_in = self._where()
        time.sleep(seconds)
        return begun_in

    def _hold_the_interpreter(self, n: int) -> int:
        return sum(range(n))  # in C, which lets no other thread run

    def _ask(self, other: Any, *deed: Any) -> Any:
        return [self._where(), other.act(*deed)]

    def _ask_later(self, other: Any, *deed: Any) -> Any:
        return [self._where(), other.act_later(*deed).result()]

    def _ask_on_loop(self, other: Any) -> Any:
        return [self._where(), other.soon().result()]

    def _read(self, other: Any, n: int) -> Any:
        return [self._where(), sum(other.numbers(n))]

    def _raise(self, error: str) -> Any:
        raise {"value": ValueError("so be it"), "exit": SystemExit(3), "odd": BaseException("odd")}[error]

    def _until_cancelled(self) -> Any:
        call = current_call()
        assert call is not None
        self.seen.append(self._where())
        call.wait_cancelled(CALL_TIMEOUT_S)
        self.seen.append(call.cancelled)

    def _note(self, item: Any) -> int:
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        if item % 7 == 0:
            time.sleep(0.003)  # long enough to be taken over
        self.seen.append(item)
        self.inside -= 1
        return len(self.seen)

    def _told(self) -> Any:
        return [self.most_inside, self.seen]


def quicken(agent: AgentProxy, *, later: bool = False) -> None:
    """Call until the router thread runs it; on a busy machine a run is long now and then, so nothing is counted."""
    agent.start_afresh()
    for _ in range(100 * LEAST_RUNS):
        name = agent.act_later().result() if later else agent.act()
        if is_router(name):
            return
    raise AssertionError("never came to the fast lane")


def on_the_router(agent: AgentProxy, *deeds: Any) -> Any:
    """What ``deeds`` give where the router thread runs them: on a busy machine the run before may have been long."""
    for _ in range(100):
        quicken(agent)
        where, inner = agent.act(*deeds)
        if is_router(where):
            return inner
    raise AssertionError("never in the fast lane")


@pytest.fixture(scope="module")
def client() -> Iterator[RpcClient]:
    with client_on_host(Runner, capacity=4) as client:
        client.is_alive()
        yield client


@pytest.fixture
def runner(client: RpcClient) -> AgentProxy:
    """An agent whose `act` runs in the router thread."""
    agent: Any = client.create_agent(Runner)
    quicken(agent)
    return agent


@pytest.fixture
def later(client: RpcClient) -> AgentProxy:
    """An agent whose `act_later` does."""
    agent: Any = client.create_agent(Runner)
    quicken(agent, later=True)
    return agent


# ---------------------------------------------------------------- who runs there


def test_a_method_runs_in_a_worker_until_it_has_been_short_for_a_while() -> None:
    with client_on_host(Runner) as fresh:
        agent: Any = fresh.create_agent(Runner)
        assert all(agent.act().startswith("zmqagents-worker") for _ in range(LEAST_RUNS))
        quicken(agent)


def test_the_record_is_that_of_the_class_and_its_method(client: RpcClient, runner: AgentProxy) -> None:
    for _ in range(20):  # until no noise comes between the two
        quicken(runner)
        if is_router(client.create_agent(Runner).act()):
            return
    raise AssertionError("a new agent of the class always began in a worker")


def test_the_fast_lane_can_be_switched_off() -> None:
    with client_on_host(Runner, fast_lane=False) as client:
        agent = client.create_agent(Runner)
        assert not any(is_router(agent.act()) for _ in range(3 * LEAST_RUNS))


def test_a_method_that_is_long_twice_in_a_short_while_goes_back_to_the_workers(runner: AgentProxy) -> None:
    runner.act("sleep", 0.01)
    runner.act("sleep", 0.01)
    assert runner.act().startswith("zmqagents-worker")
    quicken(runner)


def test_what_takes_long_to_decode_does_not_take_the_fast_lane(runner: AgentProxy) -> None:
    assert runner.act("where_with", "x" * 100_000).startswith("zmqagents-worker")
    assert runner.act("where_with", ["x" * 100_000, bytes(100_000)]).startswith("zmqagents-worker")
    for soon_decoded in ("small", bytes(100_000), [bytes(100_000), "small"]):
        # A method that a busy machine has held up is quick again after some calls.
        assert any(is_router(runner.act("where_with", soon_decoded)) for _ in range(10 * FORGIVEN_RUNS))


def test_the_pace_of_a_method() -> None:
    pace = Pace()

    def after(*runs: float) -> bool:
        for seconds in runs:
            pace.note(seconds)
        return pace.quick

    short, middling, long = SHORT_S, LONG_S, 2 * LONG_S
    assert not after(*[short] * (LEAST_RUNS - 1), middling)  # in a row
    assert not after(*[short] * (LEAST_RUNS - 1))
    assert after(short)
    assert after(*[middling] * 100)
    assert not after(long)
    assert after(*[short] * FORGIVEN_RUNS)
    assert after(long)
    assert not after(long)
    pace.disappoint()
    assert not after(*[short] * (LEAST_RUNS - 1))
    assert after(short)


class Newborn(AgentBase):
    def __init__(self, other: Any = None) -> None:
        super().__init__()
        self.born_in = threading.current_thread().name
        self.answer = other.act() if other is not None else None


def test_agents_that_are_quickly_made_are_made_there_too_and_may_call_others_meanwhile() -> None:
    with client_on_host(Newborn, Runner) as client:
        runner = client.create_agent(Runner)
        for _ in range(100 * LEAST_RUNS):
            if is_router(client.create_agent(Newborn).born_in):
                newborn = client.create_agent(Newborn, runner)
                assert newborn.answer
                if is_router(newborn.born_in):
                    return
        raise AssertionError("never came to the fast lane")


# ---------------------------------------------------------------- what may go wrong there


def longest_wait_s(client: RpcClient, seconds: float) -> float:
    """How long other calls of another agent took at most, for ``seconds``."""
    other = client.create_agent(Runner)
    end, longest = time.monotonic() + seconds, 0.0
    while time.monotonic() < end:
        begun = time.monotonic()
        other.act_later().result()
        longest = max(longest, time.monotonic() - begun)
    return longest


def test_a_method_short_1000_times_and_then_long_once_holds_up_nobody(client: RpcClient, later: AgentProxy) -> None:
    for _ in range(1000):
        later.act_later().result()
    quicken(later, later=True)
    before = longest_wait_s(client, 0.5)
    sleeping = later.act_later("sleep", 1.0)
    during = longest_wait_s(client, 0.7)
    assert not sleeping.done()
    print(f"others waited {during * 1000:.1f} ms at most, {before * 1000:.1f} ms before")
    assert during < before + 0.25  # 5 ms on a quiet machine
    assert is_router(sleeping.result())


def test_code_that_holds_the_interpreter_comes_to_its_end_and_the_host_goes_on(runner: AgentProxy) -> None:
    n = 10_000_000
    assert runner.act("hold_the_interpreter", n) == n * (n - 1) // 2
    assert runner.act()


@pytest.mark.parametrize("deed", ["ask", "ask_later"])
def test_a_nested_call_gives_up_the_leadership(client: RpcClient, runner: AgentProxy, deed: str) -> None:
    other = client.create_agent(Runner)
    assert on_the_router(runner, deed, other)
    third = client.create_agent(Runner)
    _, inner = on_the_router(runner, deed, other, deed, third)
    assert inner


def test_a_coroutine_may_be_waited_for(client: RpcClient, runner: AgentProxy) -> None:
    assert on_the_router(runner, "ask_on_loop", client.create_agent(Runner)) == "soon"


def test_a_stream_may_be_read(client: RpcClient, runner: AgentProxy) -> None:
    assert on_the_router(runner, "read", client.create_agent(Runner), 100) == 4950


@pytest.mark.parametrize(("error", "kind"), [("value", ValueError), ("exit", AgentCallError), ("odd", AgentCallError)])
def test_whatever_it_raises_reaches_its_caller_alone(runner: AgentProxy, error: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        runner.act("raise", error)
    quicken(runner)
    with pytest.raises(kind):  # the traceback's lines have been read from their files by now
        runner.act("raise", error)
    assert runner.act("where")


def test_a_cancel_reaches_code_that_runs_there(client: RpcClient, later: AgentProxy) -> None:
    for _ in range(20):  # until no noise comes between the two
        quicken(later, later=True)
        result = later.act_later("until_cancelled")
        while client.get_server_info()["running"] < 1:
            pass
        assert result.cancel()
        _, seen = later.act_later("told").result()
        assert seen[-1] is True
        if is_router(seen[-2]):
            return
    raise AssertionError("it always ran in a worker")


def test_a_deadline_ends_a_call_whose_code_goes_on_there(client: RpcClient, runner: AgentProxy) -> None:
    with within(2), pytest.raises(CallTimeout, match="running"):
        runner.act("sleep", 1.0, timeout=0.3)


def test_a_deadlock_is_seen_from_there(client: RpcClient, runner: AgentProxy) -> None:
    other = client.create_agent(Runner)
    with within(2), pytest.raises(DeadlockError):
        runner.act("ask", other, "ask", runner)
    quicken(runner)
    with within(2), pytest.raises(DeadlockError):
        runner.act("ask", runner)


def test_a_host_stops_although_code_is_stuck_there() -> None:
    with client_on_host(Runner, grace_s=0.1) as client:
        agent: Any = client.create_agent(Runner)
        quicken(agent, later=True)
        stuck = agent.act_later("sleep", 1e6)
        while client.get_server_info()["running"] < 1:
            pass
        start = time.monotonic()
    assert time.monotonic() - start < 0.1 + 2 + LATE_S
    assert isinstance(stuck.exception(0), ConnectionError)


# ---------------------------------------------------------------- many at once


@contextmanager
def eager_host_here(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Iterator[RpcClient]:
    """A host in this process where everything stays on the fast lane, however long it takes."""
    monkeypatch.setattr(Pace, "disappoint", lambda self: None)
    server = RpcAgentServerLauncher(custom_agent_classes=[Runner], local_mode=True, grace_s=0.2, **settings)
    thread = threading.Thread(target=server.launch, kwargs={"in_subprocess": False})
    thread.start()
    try:
        while not server.is_running:
            time.sleep(0.001)
        with client_of(server, timeout=30) as client:
            yield client
    finally:
        server.shutdown()
        thread.join(10)
        assert not thread.is_alive()


def test_thousands_of_takeovers_lose_nothing_and_keep_every_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call at a time for each agent, in order; each call answered once; no thread left (the leak detector)."""
    takeovers = itertools.count()
    watch = Leader.watch

    def counted(self: Leader) -> bool:
        taken = watch(self)
        if taken:
            next(takeovers)
        return taken

    monkeypatch.setattr(Leader, "watch", counted)
    with eager_host_here(monkeypatch, capacity=4) as client:
        agents: Any = [client.create_agent(Runner) for _ in range(6)]
        quicken(agents[0], later=True)
        quicken(agents[0])
        results = [agent.act_later("note", i) for i in range(500) for agent in agents]
        nested = [agents[i % 6].act_later("ask", agents[(i + 1) % 6]) for i in range(0, 600, 7)]
        assert sorted(result.result() for result in results) == sorted(list(range(1, 501)) * 6)
        assert all(result.exception() is None or isinstance(result.exception(), DeadlockError) for result in nested)
        for agent in agents:
            most, seen = agent.act("told")
            assert (most, seen) == (1, list(range(500)))
        info = client.get_server_info()
        assert (info["running"], info["waiting"], info["calls_open"]) == (0, 0, 0)
    assert next(takeovers) > 100


# ---------------------------------------------------------------- the leader alone


def test_the_standby_takes_over_when_code_takes_long_and_the_former_leader_stands_by() -> None:
    order: list[str] = []
    left = threading.Event()

    def loop() -> None:
        order.append(threading.current_thread().name)
        assert leader.leads()
        if len(order) == 3:
            leader.close(0)  # as a broker does at its end
            return
        assert leader.can_watch()
        leader.begin()
        time.sleep(0.05)
        if not leader.end():
            left.set()
            raise Relieved
        raise AssertionError("nobody took over")

    leader = Leader(loop)
    first = threading.Thread(target=leader.run, name="first")
    first.start()
    first.join(5)
    left.wait(5)
    assert leader.close(5)
    assert order[0] == "first"
    assert len(order) == 3
    assert not first.is_alive()


def test_code_that_gives_up_the_leadership_does_not_lead_any_more() -> None:
    seen: list[bool] = []
    over = threading.Event()

    def loop() -> None:
        if seen:
            over.set()
            leader.close(0)
            return
        assert leader.can_watch()
        leader.begin()
        seen.append(leader.leads())  # the question itself gives it up
        over.wait(5)
        seen.append(leader.leads())
        assert not leader.end()
        raise Relieved

    leader = Leader(loop)
    leader.run()
    assert seen == [False, False]
    assert leader.close(5)
