"""Waiting for results, in programs and in agents, and finding them again: from other threads, processes and shells."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from actors import CALL_TIMEOUT_S, CLASSES, Desk, Latch, Node, client_of, client_on_host, host, within
from hosts import as_server, eventually, output_of, started, told
from zmqagents import (
    AgentBase,
    AgentProxy,
    AsyncRpcClient,
    BlockingCallError,
    CallCancelled,
    CallTimeout,
    DeadlockError,
    RpcAgentServerLauncher,
    RpcClient,
    as_completed,
    async_func,
    current_call,
    wait,
)

pytestmark = pytest.mark.timeout(60)
ALL = concurrent.futures.ALL_COMPLETED
FIRST = concurrent.futures.FIRST_COMPLETED
FIRST_ERROR = concurrent.futures.FIRST_EXCEPTION


class Sleeper(AgentBase):
    async def sleep(self, seconds: float, error: str = "") -> float:
        await asyncio.sleep(seconds)
        if error:
            raise ValueError(error)
        return seconds

    @async_func
    def work(self, seconds: float) -> str:
        """Takes that long, unless it is told to stop."""
        call = current_call()
        assert call is not None
        return "told" if call.wait_cancelled(seconds) else "done"

    @async_func
    def have_it_worked(self, other: Any, seconds: float) -> Any:
        return other.work(seconds).result()

    @async_func
    def value(self, x: Any) -> Any:
        return x


class Waiter(AgentBase):
    """Waits for the results of others."""

    def wait_for(self, others: list[Any], how: str, seconds: list[float], timeout: float | None) -> list[int]:
        pairs = zip(others, seconds, strict=True)
        results = [other.sleep(each, "error" if each < 0.05 else "") for other, each in pairs]
        done, not_done = wait(results, timeout, how)
        return [len(done), len(not_done)]

    def collect(self, other: Any, n: int) -> int:
        return sum(result.result() for result in as_completed([other.value(i) for i in range(n)]))

    def collect_within(self, other: Any, seconds: float, timeout: float) -> int:
        return len(list(as_completed([other.sleep(0), other.sleep(seconds)], timeout)))

    def wait_long(self, other: Any, timeout: float) -> Any:
        result = other.sleep(0.05)
        return [result.result(timeout), len(wait([result], timeout).done), result.exception(timeout)]

    def wait_for_both_kinds(self, other: Any) -> int:
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            both: list[Any] = [other.sleep(0.05), executor.submit(time.sleep, 0.05)]
            return len(wait(both, 5).done)


@pytest.fixture(scope="module")
def server() -> Iterator[RpcAgentServerLauncher]:
    with host(*CLASSES, Sleeper, Waiter, Roundabout, capacity=1) as launcher:
        yield launcher


@pytest.fixture
def sleeper(client: RpcClient) -> AgentProxy:
    proxy: Any = client.create_agent(Sleeper)
    return proxy


@pytest.fixture
def waiter(client: RpcClient) -> AgentProxy:
    proxy: Any = client.create_agent(Waiter)
    return proxy


# ---------------------------------------------------------------- for several results


def test_the_standard_librarys_wait_and_as_completed_take_results(client: RpcClient) -> None:
    sleepers: Any = [client.create_agent(Sleeper) for _ in range(3)]
    results = [each.sleep(seconds) for each, seconds in zip(sleepers, (0.3, 0.0, 0.15), strict=True)]
    done, not_done = concurrent.futures.wait(results, CALL_TIMEOUT_S, FIRST)
    assert results[1] in done
    assert results[0] in not_done
    in_order = [result.result() for result in concurrent.futures.as_completed(results, CALL_TIMEOUT_S)]
    assert in_order[-1] == 0.3
    assert sorted(in_order) == [0.0, 0.15, 0.3]
    assert concurrent.futures.wait(results, 0).not_done == set()


@pytest.mark.parametrize(
    ("how", "timeout", "expected"),
    [(ALL, None, [3, 0]), (FIRST, None, [1, 2]), (FIRST_ERROR, None, [1, 2]), (ALL, 0.1, [1, 2]), (ALL, 0, [0, 3])],
)
def test_wait_in_an_agent_ends_when_it_should_on_one_slot(
    client: RpcClient, waiter: AgentProxy, how: str, timeout: float | None, expected: list[int]
) -> None:
    others = [client.create_agent(Sleeper) for _ in range(3)]
    assert waiter.wait_for(others, how, [0.02, 0.3, 0.35], timeout) == expected


def test_waiting_for_the_first_error_goes_on_past_good_results(client: RpcClient, waiter: AgentProxy) -> None:
    others = [client.create_agent(Sleeper) for _ in range(3)]
    assert waiter.wait_for(others, FIRST_ERROR, [0.06, 0.1, 0.14], None) == [3, 0]


@pytest.mark.parametrize("where", ["agent", "program"])
def test_as_completed_of_2000_results_costs_no_more_than_each_of_them(
    waiter: AgentProxy, sleeper: AgentProxy, where: str
) -> None:
    with within(5.0):
        if where == "agent":
            assert waiter.collect(sleeper, 2000) == 1_999_000
        else:
            results = [sleeper.value(i) for i in range(2000)]
            assert sum(result.result() for result in as_completed(results)) == 1_999_000


def test_as_completed_ends_at_its_timeout(waiter: AgentProxy, client: RpcClient) -> None:
    sleeper = client.create_agent(Sleeper, agent_options={"max_concurrency": 2})
    with within(1.5), pytest.raises(TimeoutError, match="1 result"):
        waiter.collect_within(sleeper, 3.0, 0.2)
    assert waiter.collect_within(sleeper, 0.1, 5.0) == 2


@pytest.mark.parametrize("timeout", [float("inf"), 1e10, 1e300])
def test_a_wait_may_be_as_long_as_one_likes(waiter: AgentProxy, sleeper: AgentProxy, timeout: float) -> None:
    result = sleeper.sleep(0.05)
    assert result.result(timeout) == 0.05
    assert result.exception(timeout) is None
    assert len(wait([sleeper.sleep(0.05)], timeout).done) == 1
    assert waiter.wait_long(sleeper, timeout) == [0.05, 1, None]


@pytest.mark.parametrize("timeout", [0, -1, 0.05])
def test_a_wait_that_is_too_short_says_for_what(client: RpcClient, timeout: float) -> None:
    latch = client.create_agent(Latch)
    result = latch.hold_async(1)
    for read in (result.result, result.exception):
        with within(1.0), pytest.raises(CallTimeout, match="hold_async"):
            read(timeout)
    latch.release()
    assert result.result(CALL_TIMEOUT_S) == 1  # the call itself went on


def test_results_and_other_futures_are_waited_for_together(waiter: AgentProxy, sleeper: AgentProxy) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        both: list[Any] = [sleeper.sleep(0.05), executor.submit(time.sleep, 0.05)]
        assert len(wait(both, 5).done) == 2
    assert waiter.wait_for_both_kinds(sleeper) == 2


@pytest.mark.parametrize("how", ["result", "wait", "as_completed"])
def test_waiting_in_a_done_callback_is_refused(client: RpcClient, how: str) -> None:
    one, other = client.create_agent("Latch"), client.create_agent("Latch")
    never = one.sleep_for_ever()
    ways = {"result": never.result, "wait": lambda: wait([never]), "as_completed": lambda: list(as_completed([never]))}
    seen: list[Any] = []
    done = threading.Event()

    def on_done(_: Any) -> None:
        try:
            ways[how]()
        except Exception as exc:
            seen.append(type(exc))
        done.set()

    other.entered.aio().add_done_callback(on_done)
    entering = other.sleep_for_ever()
    with within(2.0):
        done.wait(CALL_TIMEOUT_S)
    assert seen == [BlockingCallError]
    never.cancel()
    entering.cancel()


# ---------------------------------------------------------------- how soon


@pytest.mark.parametrize("kind", ["thread", "coroutine"])
def test_a_cancel_reaches_running_code_within_a_fifth_of_a_second(client: RpcClient, kind: str) -> None:
    for _ in range(20):
        latch: Any = client.create_agent(Latch)
        running = latch.hold_until_cancelled() if kind == "thread" else latch.sleep_for_ever()
        latch.entered()
        with within(0.2):
            running.cancel()
            assert latch.cancel_seen()


# ---------------------------------------------------------------- much at once


def test_32_fan_outs_of_two_levels_finish_on_two_slots_and_let_others_through() -> None:
    with client_on_host(*CLASSES, FanOut, capacity=2) as client:
        middle = [client.create_agent(Node) for _ in range(32)]
        leaves = [client.create_agent(Node) for _ in range(32)]
        roots = [client.create_agent(FanOut) for _ in range(32)]
        results = [root.fan_out(middle, leaves[:2]) for root in roots]
        desk = client.create_agent(Desk)
        unrelated = 0
        while not all(result.done() for result in results):
            with within(2.0):
                assert desk.echo(unrelated) == unrelated
            unrelated += 1
        assert [result.result() for result in results] == [32 * 2] * 32
        assert unrelated > 10


class FanOut(AgentBase):
    @async_func
    def fan_out(self, middle: list[Any], leaves: list[Any]) -> int:
        return sum(result.result() for result in [node.fan_out(leaves) for node in middle])


CROSS = """
import json, sys, zmqagents
host, port, mine, other = sys.argv[1:]
with zmqagents.RpcClient(host, int(port), timeout=10) as client:
    node, latch = client.get_agent(mine), client.get_agent("start")
    print(json.dumps("ready"), flush=True)
    sys.stdin.readline()
    try:
        print(json.dumps(node.ask(client.get_agent(other), "value").result()), flush=True)
    except zmqagents.DeadlockError as error:
        print(json.dumps(str(error)), flush=True)
"""


def test_two_programs_whose_agents_call_each_other_cross_without_hanging(server: RpcAgentServerLauncher) -> None:
    """Whichever comes second closes the circle, if they meet at all: one of them may be through before."""
    with client_of(server) as client:
        client.create_agent(Latch, agent_id="start")
        ends = [client.create_agent(Node).agent_id for _ in range(2)]
        where = [server.host, str(server.port)]
        with started(CROSS, *where, *ends) as one, started(CROSS, *where, *reversed(ends)) as two:
            assert told(one) == told(two) == "ready"
            for program in (one, two):
                assert program.stdin is not None
                program.stdin.write("\n")
                program.stdin.flush()
            with within(3.0):
                answers = [told(one), told(two)]
        client.delete_agent("start")
    assert "value" in answers
    for answer in answers:
        assert answer == "value" or all(end in answer for end in ends)


def test_1000_cancels_at_random_moments_leave_nothing_behind() -> None:
    """Of calls that wait for a turn, a slot or an argument, that run, on the loop too, and that have made others."""
    with client_on_host(*CLASSES, Sleeper, capacity=4) as client:
        sleepers = [client.create_agent(Sleeper) for _ in range(12)]
        chance = random.Random(7)
        seconds = 10.0
        for _ in range(4):
            results: list[Any] = []
            for _ in range(250):
                one, other = chance.sample(sleepers, 2)
                kind = chance.randrange(5)
                results.append(
                    one.work(seconds) if kind == 0
                    else one.sleep(seconds) if kind == 1
                    else one.have_it_worked(other, seconds) if kind == 2
                    else one.value(chance.choice(results)) if kind == 3 and results
                    else one.value(1)
                )  # fmt: skip
                if chance.random() < 0.5:
                    chance.choice(results).cancel()
            chance.shuffle(results)
            for result in results:
                result.cancel()
        assert eventually(lambda: idle(client), 3.0), client.get_server_info()
        assert client.get_server_info()["worker_threads"] <= 4
        assert client.get_call_list() == []
        with within(1.0):
            assert [each.value(1).result() for each in sleepers] == [1] * 12


def idle(client: RpcClient) -> bool:
    info = client.get_server_info()
    return (info["calls_open"], info["running"], info["waiting"]) == (0, 0, 0)


# ---------------------------------------------------------------- from elsewhere

FETCH = """
import json, sys, zmqagents
host, port, task_id = sys.argv[1:]
with zmqagents.RpcClient(host, int(port)) as client:
    print(json.dumps("ready"), flush=True)
    print(json.dumps(client.get_result(task_id).result(10)), flush=True)
"""


def test_another_process_takes_up_a_result_before_and_after_it_is_there(server: RpcAgentServerLauncher) -> None:
    with client_of(server) as client:
        latch = client.create_agent(Latch)
        result = latch.hold_async({"n": [1, 2]})
        latch.entered()
        with started(FETCH, server.host, str(server.port), result.task_id) as program:
            assert told(program) == "ready"
            latch.release()
            assert told(program) == {"n": [1, 2]}
        with started(FETCH, server.host, str(server.port), result.task_id) as program:
            assert [told(program), told(program)] == ["ready", {"n": [1, 2]}]
        assert result.result() == {"n": [1, 2]}


CALL_AND_END = """
import json, sys, zmqagents
host, port, agent_id = sys.argv[1:]
print(json.dumps(zmqagents.RpcClient(host, int(port)).get_agent(agent_id).later(5).task_id))
"""


def test_a_result_outlives_the_program_that_asked_for_it(server: RpcAgentServerLauncher, client: RpcClient) -> None:
    desk = client.create_agent(Desk)
    for _ in range(5):  # the call may not get lost on the way out, whichever thread is first there
        task_id = output_of(CALL_AND_END, server.host, str(server.port), desk.agent_id)
        assert client.get_result(task_id).result(CALL_TIMEOUT_S) == 5


def test_the_shell_shows_what_is_stuck_and_frees_it(server: RpcAgentServerLauncher, client: RpcClient) -> None:
    latch, desk, node = client.create_agent(Latch), client.create_agent(Desk), client.create_agent(Node)
    # Four programs are started meanwhile: on a busy machine that takes longer than CALL_TIMEOUT_S.
    running = node.ask(latch, "hold_until_cancelled", timeout=60)  # type: ignore[call-arg]
    latch.entered()
    parked = desk.later(running, timeout=60)  # type: ignore[call-arg]
    dump = {row["task_id"]: row for row in json.loads(as_server("dump", "--json", port=server.port).stdout)}
    inner = next(row for row in dump.values() if row["agent"] == latch.agent_id)
    assert "call.wait_cancelled" in inner["stack"]  # the line of the agent's own code
    assert inner["caller"] == f"{node.agent_id}.ask"
    assert dump[running.task_id]["waits_for"] == [inner["task_id"]]
    assert (dump[running.task_id]["state"], inner["state"]) == ("waiting", "running")
    assert dump[parked.task_id]["waits_for"] == [running.task_id]
    assert dump[parked.task_id]["state"] == "parked"
    text = as_server("dump", port=server.port).stdout
    assert "call.wait_cancelled" in text
    assert running.task_id in text
    assert as_server("cancel", inner["task_id"], port=server.port).returncode == 0
    with pytest.raises(CallCancelled, match=latch.agent_id):
        running.result()
    assert isinstance(parked.exception(), CallCancelled)
    assert client.get_call_list() == []


def test_what_queues_behind_a_cancelled_call_that_still_runs_says_so(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    latch = client.create_agent(Latch)
    holding = latch.hold_async(timeout=60)  # type: ignore[call-arg]
    latch.entered()
    queued = latch.mark_later(1, timeout=60)  # type: ignore[call-arg]
    assert [call["note"] for call in client.get_call_list()] == ["", ""]
    assert holding.cancel()
    text = f"{latch.agent_id}.hold_async was cancelled and still runs"
    assert eventually(lambda: [call["note"] for call in client.get_call_list()] == [f"behind {text}"], CALL_TIMEOUT_S)
    with pytest.raises(CallTimeout, match=rf"behind 2 calls \({text}\), never started"):
        latch.mark(2, timeout=0.1)  # type: ignore[call-arg]
    assert text in as_server("calls", port=server.port).stdout
    first, second = client.dump()
    assert (first["task_id"], first["note"]) == (holding.task_id, "has ended and still runs")
    assert "_open.wait" in first["stack"]  # the line of the agent's own code
    assert second["behind"] == [holding.task_id]
    latch.release()
    assert queued.result() == 1


def test_the_shell_prints_a_result_and_the_agents_error(server: RpcAgentServerLauncher, sleeper: AgentProxy) -> None:
    good, bad = sleeper.sleep(0.01), sleeper.sleep(0.01, "no luck")
    concurrent.futures.wait([good, bad])
    done = as_server("result", good.task_id, port=server.port)
    assert (done.returncode, done.stdout.strip()) == (0, "0.01")
    failed = as_server("result", bad.task_id, port=server.port)
    assert failed.returncode == 1
    assert "no luck" in failed.stderr


# ---------------------------------------------------------------- over a socket to one's own host


class Roundabout(AgentBase):
    """Knows where its host listens and goes there as strangers do."""

    @async_func
    def ask(self, where: list[Any], agent_id: str, how: str) -> Any:
        with RpcClient(*where) as client:
            agent = client.get_agent(agent_id)
            if how == "result":
                return agent.later(1).result()
            if how == "wait":
                return len(wait([agent.later(1), agent.later(2)]).done)
            return agent.echo(1)

    async def ask_on_loop(self, where: list[Any], agent_id: str, how: str) -> Any:
        async with AsyncRpcClient(*where) as client:
            agent = await client.get_agent(agent_id)
            return await getattr(agent, how)(1)

    def echo(self, x: Any) -> Any:
        return x


@pytest.fixture
def roundabout(client: RpcClient) -> AgentProxy:
    proxy: Any = client.create_agent(Roundabout)
    return proxy


@pytest.mark.parametrize(("how", "expected"), [("value", 1), ("result", 1), ("wait", 2)])
def test_an_agent_may_reach_its_own_host_as_strangers_do(
    server: RpcAgentServerLauncher, client: RpcClient, roundabout: AgentProxy, how: str, expected: int
) -> None:
    desk = client.create_agent(Desk)
    assert roundabout.ask([server.host, server.port], desk.agent_id, how).result() == expected


@pytest.mark.parametrize("method", ["echo", "later"])
def test_a_coroutine_may_reach_its_own_host_as_strangers_do(
    server: RpcAgentServerLauncher, client: RpcClient, roundabout: AgentProxy, method: str
) -> None:
    desk = client.create_agent(Desk)
    assert roundabout.ask_on_loop([server.host, server.port], desk.agent_id, method).result() == 1


@pytest.mark.parametrize(("method", "how"), [("ask", "value"), ("ask_on_loop", "echo")])
def test_a_circle_over_a_socket_to_ones_own_host_is_a_deadlock(
    server: RpcAgentServerLauncher, roundabout: AgentProxy, method: str, how: str
) -> None:
    with within(1.0), pytest.raises(DeadlockError, match=roundabout.agent_id):
        getattr(roundabout, method)([server.host, server.port], roundabout.agent_id, how).result()
