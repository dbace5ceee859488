"""Calls from end to end: a host process, its clients, real sockets."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import random
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import pytest

from actors import CALL_TIMEOUT_S, Counter, Desk, Latch, Node, Together, client_of, client_on_host, within
from scale import LATE_S
from zmqagents import (
    AgentBase,
    AgentCallError,
    AgentDeleted,
    AgentProxy,
    AsyncResult,
    BlockingCallError,
    CallCancelled,
    CallTimeout,
    DeadlockError,
    HostBusy,
    MessageTooLarge,
    RpcAgentServerLauncher,
    RpcClient,
    SerializationError,
    UnknownMethod,
    async_func,
    deadline,
    errors,
    register_type,
)
from zmqagents.client.waiting import as_completed, wait

pytestmark = pytest.mark.timeout(60)
ROUND_TRIP_S = 0.5 + LATE_S


@pytest.fixture
def apart() -> Iterator[RpcClient]:
    """A client of a host of its own, for what might take the host with it."""
    with client_on_host(capacity=4) as client:
        yield client


@pytest.fixture(scope="module")
def narrow() -> Iterator[RpcClient]:
    """A client of a host that runs one call at a time."""
    with client_on_host(capacity=1) as client:
        client.is_alive()
        yield client


# ---------------------------------------------------------------- values and arguments


@dataclass
class Parcel:
    """A value whose attributes have names that the parts of the library use among themselves."""

    chunk: str = "1"
    ready: str = "2"
    fail: str = "3"
    inside: str = "4"
    deliver: str = "5"
    attach: str = "6"
    watch: str = "7"
    link: str = "8"
    client: str = "9"


register_type(Parcel)


class Shop(AgentBase):
    @async_func
    def send(self) -> Any:
        return Parcel()

    def read_there(self, other: Any) -> Any:
        """The attributes of a parcel, read through a result in an agent's call."""
        result = other.send()
        return [getattr(result.value, field.name) for field in fields(Parcel)]


def test_a_plain_method_gives_its_value(desk: AgentProxy) -> None:
    assert desk.echo({"a": (1, 2), "b": {3, None}}) == {"a": (1, 2), "b": {3, None}}


def test_reply_and_call_give_an_async_result(desk: AgentProxy) -> None:
    result = desk.reply(1)
    assert isinstance(result, AsyncResult)
    assert isinstance(desk(2), AsyncResult)
    assert (result.result(), desk(2).result()) == (1, 2)


@pytest.mark.parametrize("place", ["a client", "an agent"])
def test_a_value_may_have_attributes_with_any_names(place: str) -> None:
    with client_on_host(Shop, capacity=2) as client:
        shop = client.create_agent(Shop)
        if place == "an agent":
            assert client.create_agent(Shop).read_there(shop) == list("123456789")
        else:
            result = shop.send()
            assert [getattr(result.value, field.name) for field in fields(Parcel)] == list("123456789")


def test_keyword_arguments_arrive_everywhere(desk: AgentProxy) -> None:
    assert desk.reply(x=1).result() == 1
    assert desk(x=1, twice=True).result() == [1, 1]
    assert desk.later(x="kept").result() == "kept"
    assert desk.soon(x=2).result() == 2
    assert desk.add(1, 2, 3, c=4, d=5) == 15
    assert desk.anything(a=1, self_=2) == {"a": 1, "self_": 2}


def test_an_async_def_method_gives_an_async_result(desk: AgentProxy) -> None:
    result = desk.soon("x")
    assert isinstance(result, AsyncResult)
    assert result.result() == "x"


def test_sync_func_makes_an_async_def_method_a_blocking_one(desk: AgentProxy) -> None:
    assert desk.at_once(5) == 5


def test_a_coroutine_that_a_plain_method_returns_is_awaited(desk: AgentProxy) -> None:
    assert desk.returns_coroutine(5) == 5


def test_static_and_class_methods_are_called_like_others(desk: AgentProxy) -> None:
    assert desk.fixed(1) == ("fixed", 1)
    assert desk.of_class(1) == ("Desk", 1)


def test_attributes_and_properties_are_read_at_each_access(desk: AgentProxy) -> None:
    assert (desk.colour, desk.loud, desk.motto) == ("grey", "GREY", "first come")
    assert desk.count == 0
    desk.bump()
    assert desk.count == 1


def test_an_error_in_a_property_is_the_agents_error(desk: AgentProxy) -> None:
    with pytest.raises(KeyError, match="broken property") as caught:
        _ = desk.broken
    assert isinstance(caught.value, AgentCallError)


def test_hasattr_of_a_name_that_is_not_there_is_false(desk: AgentProxy) -> None:
    assert not hasattr(desk, "nope")
    with pytest.raises(UnknownMethod, match="nope"), within(ROUND_TRIP_S):
        _ = desk.nope


def test_none_is_a_value_like_any_other(desk: AgentProxy) -> None:
    assert desk.nothing() is None
    result = desk.reply(None)
    assert result.result() is None
    assert result.exception() is None


@pytest.mark.parametrize("call_method", ["reply", "soon", "later"])
def test_a_call_gets_defaults_when_nothing_is_given(desk: AgentProxy, call_method: str) -> None:
    assert getattr(desk, call_method)(None).result() is None


def test_numpy_arrays_go_both_ways(desk: AgentProxy) -> None:
    import numpy  # not above: the hosts of this module would import it too, 0.1 s each

    array = numpy.arange(300_000, dtype="float32").reshape(300, 1000)
    back = desk.echo({"big": array, "small": array[:2, :2]})
    assert numpy.array_equal(back["big"], array)
    assert back["big"].dtype == array.dtype
    assert numpy.array_equal(back["small"], array[:2, :2])


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_64_mebibytes_go_both_ways(server: RpcAgentServerLauncher, transport: Any) -> None:
    blob = bytes(range(256)) * (64 * 4096)
    with client_of(server, transport=transport, timeout=30) as client:
        assert client.create_agent(Desk).echo(blob) == blob


def test_a_buffer_may_be_changed_once_the_call_was_made(desk: AgentProxy) -> None:
    data = bytearray(b"a" * 200_000)
    result = desk.reply(data)
    data[:] = b"b" * len(data)
    assert result.result() == bytearray(b"a" * 200_000)


def test_a_value_that_cannot_travel_fails_at_the_call_and_nothing_is_sent(client: RpcClient, desk: AgentProxy) -> None:
    before = _calls_of(client, desk)
    with pytest.raises(SerializationError) as caught:
        desk.add(1, c={"cfg": [threading.Lock()]})
    assert "add" in str(caught.value)
    assert "kwargs['c']['cfg'][0]" in str(caught.value)
    assert "lock" in caught.value.type_name
    with pytest.raises(SerializationError):
        desk.reply(threading.Lock())
    assert _calls_of(client, desk) == before


def test_a_result_that_cannot_travel_is_told_to_the_caller(desk: AgentProxy) -> None:
    with pytest.raises(SerializationError, match=r"unsendable.*result\['a'\]\[1\]\['b'\]"):
        desk.unsendable()
    assert desk.echo(1) == 1


def test_a_message_over_the_limit_fails_where_it_is() -> None:
    with client_on_host(max_message_bytes=100_000) as client:
        desk = client.create_agent(Desk)
        for call in (desk.echo, desk.reply):
            with pytest.raises(MessageTooLarge) as caught:
                call(bytes(200_000))
            assert caught.value.size > 200_000 - 1
            assert caught.value.limit == 100_000
        with pytest.raises(MessageTooLarge, match="make_bytes"):
            desk.make_bytes(200_000)
        assert len(desk.make_bytes(50_000)) == 50_000


def test_wrong_arguments_are_a_type_error_at_once(desk: AgentProxy) -> None:
    for call in (lambda: desk.echo(), lambda: desk.echo(1, 2), lambda: desk.reply(y=1).result()):
        with pytest.raises(TypeError, match="argument"), within(ROUND_TRIP_S):
            call()


@pytest.mark.parametrize("timeout", ["5", float("nan"), True, [1]])
def test_a_timeout_that_is_no_number_is_refused(desk: AgentProxy, timeout: Any) -> None:
    with pytest.raises(errors.ConfigError, match="timeout"):
        desk.echo(1, timeout=timeout)


@pytest.mark.parametrize("timeout", [float("inf"), None, 1e12, 1])
def test_a_timeout_may_be_long_or_none(desk: AgentProxy, timeout: Any) -> None:
    assert desk.echo(1, timeout=timeout) == 1
    assert desk.reply(1, timeout=timeout).result() == 1


def test_a_method_keeps_its_own_parameter_called_timeout(desk: AgentProxy) -> None:
    assert desk.patient(timeout=5) == 5
    assert desk.patient.with_timeout(5)(timeout=7) == 7


def test_timeout_is_the_deadline_where_the_method_has_no_such_parameter(latch: AgentProxy, desk: AgentProxy) -> None:
    assert desk.seconds_in_name(timeout=5) == 0  # nor is one whose name, or default, merely looks like it


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["_private", "_secret", "__init__", "__dict__x", "_za_x"])
def test_private_names_are_out_of_reach(desk: AgentProxy, name: str) -> None:
    if name != "__init__":
        with pytest.raises(AttributeError):
            getattr(desk, name)


@pytest.mark.parametrize("name", ["to_dist", "model_config", "model"])
def test_what_is_for_the_agents_own_code_is_not_offered(desk: AgentProxy, name: str) -> None:
    with pytest.raises(UnknownMethod):
        getattr(desk, name)


@pytest.mark.parametrize("name", ["x" * 300, "\udc80", "a b\n", "ä" * 255])
def test_a_name_that_nobody_can_have_is_unknown_at_once(desk: AgentProxy, name: str) -> None:
    with pytest.raises(UnknownMethod), within(ROUND_TRIP_S):
        getattr(desk, name)
    assert desk.echo(1) == 1


# ---------------------------------------------------------------- results among the arguments


@pytest.mark.parametrize("how", ["bare", "list", "dict", "keyword", "deep"])
def test_a_result_among_the_arguments_arrives_as_its_value(desk: AgentProxy, latch: AgentProxy, how: str) -> None:
    unfinished = latch.hold_async("v")
    latch.entered()
    result = {
        "bare": lambda: desk.later(unfinished),
        "list": lambda: desk.later([1, unfinished]),
        "dict": lambda: desk.later({"k": unfinished}),
        "keyword": lambda: desk.later(x=unfinished),
        "deep": lambda: desk.later([{"k": (1, [unfinished, {2: unfinished}])}]),
    }[how]()
    assert not result.done()
    latch.release()
    expected = {
        "bare": "v",
        "list": [1, "v"],
        "dict": {"k": "v"},
        "keyword": "v",
        "deep": [{"k": (1, ["v", {2: "v"}])}],
    }
    assert result.result() == expected[how]


def test_a_finished_result_among_the_arguments_arrives_as_its_value(desk: AgentProxy) -> None:
    finished = desk.later([1, 2])
    finished.result()
    assert desk.echo([finished, finished]) == [[1, 2], [1, 2]]


def test_a_failed_result_among_the_arguments_fails_the_call_with_its_error(client: RpcClient, desk: AgentProxy) -> None:
    failed = desk.plus(1, "x")
    before = desk.count
    for call in (lambda: desk.echo([failed]), lambda: desk.later({"k": failed}).result()):
        with pytest.raises(TypeError, match="unsupported operand") as caught:
            call()
        assert f"{desk.agent_id}.plus" in str(caught.value)
    assert desk.count == before


def test_an_expired_or_unknown_result_among_the_arguments_is_told(client: RpcClient, desk: AgentProxy) -> None:
    stranger = client.get_result("zzzzzzzzzzzzzzzz-1")
    with pytest.raises(errors.UnknownTask, match="zzzzzzzzzzzzzzzz-1"), within(ROUND_TRIP_S):
        desk.echo([stranger])


def test_a_call_that_waits_for_its_arguments_holds_neither_turn_nor_slot(narrow: RpcClient) -> None:
    latch, desk = narrow.create_agent("Latch"), narrow.create_agent("Desk")
    first = latch.hold_async(1)
    latch.entered()
    parked = desk.later(first)
    # The one slot is taken by hold; the desk's turn is free, so a coroutine of the desk runs at once.
    assert desk.soon("beside").result() == "beside"
    latch.release()
    assert parked.result() == 1


def test_a_chain_of_100_results_finishes_on_one_slot(narrow: RpcClient) -> None:
    desk = narrow.create_agent(Desk)
    result = desk.plus(0)
    for _ in range(100):
        result = desk.plus(result, 1)
    assert result.result() == 100


def test_a_chain_of_1500_results_whose_first_fails_fails_to_its_end(apart: RpcClient) -> None:
    latch, desk = apart.create_agent(Latch), apart.create_agent(Desk)
    result = desk.plus(latch.hold_async("text"), 1)  # a TypeError, once it is released
    latch.entered()
    for _ in range(1500):
        result = desk.plus(result, 1)
    latch.release()
    with pytest.raises(TypeError):
        result.result()
    assert apart.is_alive()


def test_1500_calls_that_wait_for_a_cancelled_one_are_told(apart: RpcClient) -> None:
    latch, desk = apart.create_agent(Latch), apart.create_agent(Desk)
    first = result = latch.hold_async(1)
    latch.entered()
    for _ in range(1500):
        result = desk.plus(result, 1)
    assert first.cancel()
    with pytest.raises(CallCancelled):
        result.result()
    assert apart.is_alive()
    latch.release()


def test_a_web_of_results_costs_no_more_than_its_edges(apart: RpcClient) -> None:
    latch, node, desk = (apart.create_agent(cls) for cls in ("Latch", "Node", "Desk"))
    with within(5):  # each waits for the two before it: 2 ** 60 paths, 120 edges
        assert node.fibonacci(latch, desk, 60) == 2504730781961


def test_more_results_among_the_arguments_than_a_message_can_name_are_refused(desk: AgentProxy) -> None:
    many = [desk.later(0) for _ in range(4097)]
    with pytest.raises(MessageTooLarge, match="4097"):
        desk.echo(many)
    assert sum(desk.echo(many[:1000])) == 0
    assert many[-1].result() == 0


def test_3000_results_among_the_arguments_arrive_or_are_refused_at_once(desk: AgentProxy) -> None:
    many = [desk.later(i) for i in range(3900)]
    with within(CALL_TIMEOUT_S / 2), contextlib.suppress(MessageTooLarge):
        assert desk.echo(many) == list(range(3900))


# ---------------------------------------------------------------- turns


def test_100_increments_at_once_are_100(client: RpcClient) -> None:
    counter = client.create_agent(Counter)
    results = [counter.increment() for _ in range(100)]
    concurrent.futures.wait(results)
    assert counter.value == 100
    assert counter.most_running == 1


def test_100_increments_on_the_loop_are_100(client: RpcClient) -> None:
    counter = client.create_agent(Counter)
    concurrent.futures.wait([counter.increment_on_loop() for _ in range(100)])
    assert counter.value == 100


def test_increments_of_16_threads_are_all_counted(client: RpcClient) -> None:
    desk = client.create_agent(Desk)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        seen = list(pool.map(lambda _: [desk.bump() for _ in range(200)], range(16)))
    assert sorted(itertools.chain(*seen)) == list(range(1, 3201))
    assert all(mine == sorted(mine) for mine in seen)


def test_calls_of_one_client_run_in_the_order_in_which_they_were_made(latch: AgentProxy) -> None:
    first = latch.hold_async()
    latch.entered()
    results = [latch.mark_later(i) for i in range(200)]
    latch.release()
    concurrent.futures.wait([first, *results])
    assert latch.marks == list(range(200))


def test_attributes_and_concurrent_methods_answer_beside_a_running_call(latch: AgentProxy) -> None:
    running = latch.hold_async()
    latch.entered()
    with within(ROUND_TRIP_S):
        assert latch.marks == []
        assert latch.entered() == 1
    assert not running.done()


def test_max_concurrency_lets_that_many_calls_overlap(client: RpcClient) -> None:
    together = client.create_agent(Together)
    results = [together.meet() for _ in range(16)]  # each needs seven others to be in it at the same moment
    assert sorted(result.result() for result in results) == sorted([*range(8), *range(8)])


def test_agents_do_not_wait_for_each_other(client: RpcClient, latch: AgentProxy, desk: AgentProxy) -> None:
    running = latch.hold_async()
    latch.entered()
    with within(ROUND_TRIP_S):
        assert desk.echo(1) == 1
    assert not running.done()


# ---------------------------------------------------------------- waiting costs no capacity


def test_100_nested_calls_finish_on_one_slot(narrow: RpcClient) -> None:
    nodes = [narrow.create_agent(Node) for _ in range(100)]
    assert nodes[0].down(nodes[1:]) == 100


def test_100_nested_coroutines_finish_on_one_slot(narrow: RpcClient) -> None:
    nodes: Any = [narrow.create_agent(Node) for _ in range(100)]
    assert nodes[0].down_on_loop(nodes[1:]).result() == 100


def test_two_level_fan_outs_finish_on_two_slots() -> None:
    with client_on_host(capacity=2) as client:
        leaves = [client.create_agent(Node) for _ in range(32)]
        roots = [client.create_agent(Node) for _ in range(32)]
        results = [root.fan_out(leaves) for root in roots]
        desk = client.create_agent(Desk)
        assert desk.echo("unrelated") == "unrelated"
        assert [result.result() for result in results] == [32] * 32


def test_a_method_may_give_the_result_of_another_as_its_own(narrow: RpcClient) -> None:
    node, desk = narrow.create_agent("Node"), narrow.create_agent("Desk")
    assert node.forward(desk, "mine", timeout=3) == "mine"


def test_a_coroutine_of_a_plain_method_may_await_results(narrow: RpcClient) -> None:
    node, desk = narrow.create_agent("Node"), narrow.create_agent("Desk")
    assert node.coroutine_that_asks(desk, "mine", timeout=3) == "mine"


def test_wait_and_as_completed_give_the_slot_back(narrow: RpcClient) -> None:
    node, other = narrow.create_agent("Node"), narrow.create_agent("Node")
    assert node.wait_and_collect(other, 5, timeout=3) == 5


def test_a_result_inside_a_result_may_take_longer_than_one_fetch() -> None:
    with client_on_host(max_timeout_seconds=0.1) as client:
        reader, source, node, latch = (client.create_agent(cls) for cls in ("Node", "Node", "Node", "Latch"))
        reading = reader.ask(
            reader_of := client.create_agent("Node"), "read_from", source, node, latch, "hold_async", 7
        )
        latch.entered()
        time.sleep(0.3)  # longer than one fetch may wait inside the host
        latch.release()
        assert reading.result() == 7
        assert reader_of.value() == "value"


def test_a_coroutine_may_wait_in_threads_of_its_own(client: RpcClient) -> None:
    node, other = client.create_agent("Node"), client.create_agent("Node")
    assert node.ask_in_thread(other).result() == ["value", 1]


@pytest.mark.parametrize("method", ["block_the_loop", "block_the_loop_with_result"])
def test_blocking_the_event_loop_is_an_error(client: RpcClient, latch: AgentProxy, method: str) -> None:
    node = client.create_agent(Node)
    with pytest.raises(BlockingCallError, match="await"), within(ROUND_TRIP_S):
        getattr(node, method)(latch).result()


def test_a_blocking_call_in_a_callback_of_an_agent_does_not_stop_the_host(apart: RpcClient) -> None:
    latch, node, other = (apart.create_agent(cls) for cls in ("Latch", "Node", "Node"))
    assert node.in_callback(latch, other) in (["value"], ["BlockingCallError"])
    assert apart.is_alive()


def test_a_callback_of_an_agent_that_raises_system_exit_does_not_stop_the_host(apart: RpcClient) -> None:
    latch, node = apart.create_agent(Latch), apart.create_agent(Node)
    assert node.exit_in_callback(latch) == "1"
    assert apart.is_alive()


def test_more_waiting_calls_than_max_threads_allows_are_told(narrow: RpcClient) -> None:
    with client_on_host(capacity=2, max_threads=4) as client:
        nodes = [client.create_agent(Node) for _ in range(20)]
        with pytest.raises(HostBusy, match="max_threads"):
            nodes[0].down(nodes[1:])
        assert nodes[0].value() == "value"


# ---------------------------------------------------------------- deadlock


def test_a_call_that_comes_back_to_its_caller_is_a_deadlock(client: RpcClient) -> None:
    a, b = client.create_agent(Node, agent_id="dead-a"), client.create_agent(Node, agent_id="dead-b")
    with pytest.raises(DeadlockError) as caught, within(ROUND_TRIP_S):
        a.ask(b, "ask", a, "value").result()
    assert "dead-a.ask" in str(caught.value)
    assert "dead-b.ask" in str(caught.value)


def test_a_coroutine_that_comes_back_to_its_caller_is_a_deadlock(client: RpcClient) -> None:
    a, b = client.create_agent("Node", agent_id="loop-a"), client.create_agent("Node", agent_id="loop-b")
    with pytest.raises(DeadlockError) as caught, within(ROUND_TRIP_S):
        a.ask_on_loop(b, "ask_on_loop", a, "leaf").result()
    assert "loop-a" in str(caught.value)
    assert "loop-b" in str(caught.value)


def test_an_agent_that_calls_itself_is_a_deadlock(client: RpcClient) -> None:
    a = client.create_agent(Node)
    with pytest.raises(DeadlockError), within(ROUND_TRIP_S):
        a.ask(a, "value").result()
    assert a.value() == "value"


@pytest.mark.parametrize("method", ["read_stream", "read_stream_on_loop"])
def test_an_agent_that_reads_a_stream_of_its_own_is_a_deadlock(client: RpcClient, method: str) -> None:
    a, b = client.create_agent(Node), client.create_agent(Node)
    assert getattr(a, method)(b, 100).result() == 4950
    with pytest.raises(DeadlockError), within(ROUND_TRIP_S):
        getattr(a, method)(a, 3).result()
    assert a.value() == "value"


@pytest.mark.parametrize("method", ["ask_for_argument", "ask_for_argument_on_loop"])
def test_waiting_for_a_call_whose_argument_needs_ones_own_turn_is_a_deadlock(client: RpcClient, method: str) -> None:
    a, b = client.create_agent(Node), client.create_agent(Node)
    assert getattr(a, method)(client.create_agent(Node), b).result() == 1
    with pytest.raises(DeadlockError) as caught, within(ROUND_TRIP_S):
        getattr(a, method)(a, b).result()
    assert str(caught.value).count(a.agent_id) >= 2
    end = time.monotonic() + 2
    while client.get_call_list() and time.monotonic() < end:
        pass  # the call that nobody waits for any more comes to its turn
    assert client.get_call_list() == []


def test_two_agents_that_wait_for_each_other_are_a_deadlock(server: RpcAgentServerLauncher, latch: AgentProxy) -> None:
    with client_of(server, transport="ipc") as one, client_of(server, transport="tcp") as two:
        a, b = one.create_agent(Node), one.create_agent(Node)
        results = [
            a.hold_then_ask(latch, b, "value"),
            two.get_agent(b.agent_id).hold_then_ask(latch, a, "value"),
        ]
        latch.entered(2)
        latch.release()
        with within(ROUND_TRIP_S):
            outcomes = [result.exception() for result in results]
        assert sum(isinstance(outcome, DeadlockError) for outcome in outcomes) == 1  # the other one goes on
        assert [result.result() for result in results if result.exception() is None] == ["value"]


def test_a_deadlock_over_arguments_is_found(client: RpcClient, latch: AgentProxy) -> None:
    a, b = client.create_agent(Node), client.create_agent(Node)
    held = a.hold_then_ask(latch, b, "value")  # has the turn of a, and will wait for b
    latch.entered()
    busy = b.ask(a, "value")  # has the turn of b, and waits for a
    latch.release()
    with within(2 * ROUND_TRIP_S):
        outcomes = [held.exception(), busy.exception()]
    assert any(isinstance(outcome, DeadlockError) for outcome in outcomes)


def test_random_walks_over_agents_end_in_a_value_or_a_deadlock_and_leave_nothing() -> None:
    source = random.Random(5)
    with client_on_host(capacity=2) as client:
        nodes: Any = [client.create_agent(Node) for _ in range(5)]
        results = []
        for turn in range(200):
            path = [source.randrange(5) for _ in range(source.randrange(1, 5))]
            start = nodes[source.randrange(5)]
            results.append((start.walk if turn % 2 else start.walk_on_loop)(path, nodes))
        for result in source.sample(results, 20):
            result.cancel()
        outcomes = [result.exception() if not result.cancelled() else None for result in results]
        assert all(outcome is None or isinstance(outcome, DeadlockError) for outcome in outcomes)
        assert any(outcome is None for outcome in outcomes)
        deadline_s = time.monotonic() + 2  # what was cancelled while it ran is still coming back
        while client.get_server_info()["calls_open"] and time.monotonic() < deadline_s:
            pass
        info = client.get_server_info()
        assert (info["calls_open"], info["running"], info["waiting"]) == (0, 0, 0)


# ---------------------------------------------------------------- deadlines


def test_a_call_whose_deadline_passes_in_the_queue_never_runs(latch: AgentProxy) -> None:
    running = latch.hold_async()
    latch.entered()
    start = time.monotonic()
    with pytest.raises(CallTimeout, match=r"queued 0\.\d+ s behind 1 call"):
        latch.mark("late", timeout=0.5)
    assert 0.49 <= time.monotonic() - start < 1.5
    latch.release()
    running.result()
    assert latch.mark("after") == "after"
    assert latch.marks == ["after"]


def test_a_call_whose_deadline_passes_while_it_runs_says_so(latch: AgentProxy) -> None:
    with pytest.raises(CallTimeout, match=r"running 0\.\d+ s"), within(1.5):
        latch.hold(timeout=0.3)


def test_an_async_result_ends_at_the_deadline_of_its_call(latch: AgentProxy) -> None:
    result = latch.hold_async(timeout=0.3)
    with within(1.3):
        assert isinstance(result.exception(), CallTimeout)
    assert isinstance(result.exception(), TimeoutError)


def test_a_deadline_block_bounds_every_call_in_it(latch: AgentProxy, desk: AgentProxy) -> None:
    with deadline(0.4):
        assert desk.echo(1) == 1
        with deadline(100), pytest.raises(CallTimeout), within(1.4):
            latch.hold(timeout=50)
        with pytest.raises(CallTimeout, match="before the call was made"), within(0.1):
            desk.echo(2)
    assert desk.echo(3) == 3


def test_a_nested_call_has_no_more_time_than_its_caller(client: RpcClient) -> None:
    outer, inner = client.create_agent("Node"), client.create_agent("Node")
    for _ in range(200):
        mine, theirs = outer.rest_of_both(inner, timeout=5)
        assert 0 < theirs <= mine <= 5
    assert outer.rest_within(inner, 2, timeout=5) <= 2
    assert outer.rest_within(inner, 50, timeout=5) <= 5
    assert outer.remaining(timeout=None) is None


def test_a_caller_that_times_out_takes_its_nested_call_with_it(client: RpcClient, latch: AgentProxy) -> None:
    outer: Any = client.create_agent(Node)
    with pytest.raises(CallTimeout), within(1.5):
        outer.ask(latch, "sleep_for_ever", timeout=0.3).result()
    with within(ROUND_TRIP_S):
        assert latch.cancel_seen()


def test_a_timeout_of_nothing_is_over_at_once(desk: AgentProxy) -> None:
    for seconds in (0, -1):
        with pytest.raises(CallTimeout), within(0.2):
            desk.bump(timeout=seconds)
    assert desk.count == 0


# ---------------------------------------------------------------- cancel


def test_a_queued_call_that_is_cancelled_never_runs(latch: AgentProxy) -> None:
    running = latch.hold_async()
    latch.entered()
    queued = [latch.mark_later(i) for i in range(10)]
    assert all(result.cancel() for result in queued[1::2])
    latch.release()
    concurrent.futures.wait([running, *queued])
    assert latch.marks == [0, 2, 4, 6, 8]
    assert all(result.cancelled() for result in queued[1::2])
    with pytest.raises(concurrent.futures.CancelledError):
        queued[1].result()


def test_a_running_thread_sees_that_it_is_cancelled(latch: AgentProxy) -> None:
    running = latch.hold_until_cancelled()
    latch.entered()
    assert running.cancel()
    with within(ROUND_TRIP_S):
        assert latch.cancel_seen()


def test_a_running_coroutine_is_cancelled(latch: AgentProxy) -> None:
    running = latch.sleep_for_ever()
    latch.entered()
    assert running.cancel()
    with within(ROUND_TRIP_S):
        assert latch.cancel_seen()


def test_cancel_reaches_the_calls_that_a_call_has_made(client: RpcClient, latch: AgentProxy) -> None:
    outer = client.create_agent(Node)
    running = outer.ask(latch, "hold_until_cancelled")
    latch.entered()
    running.cancel()
    with within(ROUND_TRIP_S):
        assert latch.cancel_seen()
    assert outer.value() == "value"


def test_the_next_nested_call_of_a_cancelled_call_is_refused(client: RpcClient, latch: AgentProxy) -> None:
    outer, desk = client.create_agent(Node), client.create_agent(Desk)
    running = outer.hold_then_ask(latch, desk, "bump")
    latch.entered()
    running.cancel()
    client.get_server_info()  # the cancel was sent before this request, so it is there when this one is answered
    latch.release()
    assert outer.value() == "value"  # has the turn: the cancelled call has ended
    assert desk.count == 0


def test_a_finished_call_cannot_be_cancelled(desk: AgentProxy) -> None:
    result = desk.later(1)
    result.result()
    assert not result.cancel()
    assert not result.cancelled()


def test_two_threads_may_cancel_one_result_at_once(latch: AgentProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    running = latch.hold_until_cancelled()
    latch.entered()
    both_have_looked = threading.Barrier(2)

    def cancelled() -> bool:
        before = AsyncResult.cancelled(running)
        both_have_looked.wait(CALL_TIMEOUT_S)
        return before

    with monkeypatch.context() as patch, concurrent.futures.ThreadPoolExecutor(2) as pool:
        patch.setattr(running, "cancelled", cancelled)
        assert [one.result() for one in [pool.submit(running.cancel) for _ in range(2)]] == [True, True]
    assert running.cancelled()
    assert latch.cancel_seen()


def test_1000_cancels_at_random_leave_the_host_as_it_was(client: RpcClient) -> None:
    desks: Any = [client.create_agent(Desk) for _ in range(4)]
    results = [desks[i % 4].later(i) if i % 3 else desks[i % 4].soon(i) for i in range(1000)]
    for result in results[::2]:
        result.cancel()
    for i, result in enumerate(results):
        if not result.cancelled():
            assert result.result() == i
    info = client.get_server_info()
    assert (info["calls_open"], info["running"], info["waiting"]) == (0, 0, 0)


# ---------------------------------------------------------------- many


def test_20_waiters_on_one_result_all_get_it(server: RpcAgentServerLauncher, latch: AgentProxy) -> None:
    result = latch.hold_async({"v": 1})
    latch.entered()
    with client_of(server, transport="tcp") as other, concurrent.futures.ThreadPoolExecutor(20) as pool:
        again = [other.get_result(result.task_id) for _ in range(10)]
        waiting = [pool.submit(one.result, 5) for one in [result] * 10 + again]
        latch.release()
        assert [waiter.result() for waiter in waiting] == [{"v": 1}] * 20


def test_two_threads_that_read_one_result_get_the_same_object(desk: AgentProxy) -> None:
    result = desk.later([1, 2])
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: result.result(), range(2))
    assert one is two
    assert result.result() is one


def test_10000_results_are_made_and_collected(client: RpcClient) -> None:
    desks = [client.create_agent(Desk) for _ in range(8)]
    results = [desks[i % 8].later(i) for i in range(10_000)]
    assert [result.result() for result in results] == list(range(10_000))


def test_10000_agents_live_on_one_host() -> None:
    with client_on_host(capacity=2) as client, concurrent.futures.ThreadPoolExecutor(4) as pool:
        proxies = list(pool.map(lambda i: client.create_agent(Desk, agent_id=f"d{i}"), range(10_000)))
        assert client.get_server_info()["agents"] == 10_000
        assert proxies[9_999].echo("last") == "last"
        client.delete_all_agent()
        assert client.get_agent_list() == []


def test_a_finished_result_is_seen_at_once(desk: AgentProxy) -> None:
    late = []
    for _ in range(20):
        result = desk.later(time.time())
        result.result()
        start = time.monotonic()
        desk.nap(0.05)
        late.append(time.monotonic() - start - 0.05)
    assert sorted(late)[5] < 0.02  # of twenty: the machine may be busy most of the time


def test_wait_and_as_completed_of_ours_work_for_callers_too(latch: AgentProxy, desk: AgentProxy) -> None:
    held, quick = latch.hold_async(1), desk.later(2)
    assert next(as_completed([held, quick])) is quick
    assert wait([held, quick], return_when=concurrent.futures.FIRST_COMPLETED).done == {quick}
    assert wait([held, quick], timeout=0.05).not_done == {held}
    with pytest.raises(CallTimeout):
        list(as_completed([held], timeout=0.05))
    latch.release()
    assert wait([held, quick]).done == {held, quick}


# ---------------------------------------------------------------- errors


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes are new in Python 3.11")
def test_an_error_carries_the_remote_traceback_and_where_it_was(desk: AgentProxy) -> None:
    result = desk.plus(1, "x")
    error = result.exception()
    assert isinstance(error, TypeError)
    assert isinstance(error, AgentCallError)
    assert "actors.py" in error.remote_traceback
    assert "return a + b" in error.remote_traceback
    assert (error.agent, error.method, error.call_id) == (desk.agent_id, "plus", result.task_id)
    assert any("Remote traceback" in note for note in getattr(error, "__notes__", ()))


def test_a_deleted_agent_is_told_to_those_who_wait_for_it(client: RpcClient) -> None:
    latch = client.create_agent(Latch)
    running = latch.hold_until_cancelled()
    latch.entered()
    queued = [latch.mark_later(i) for i in range(3)]
    client.delete_agent(latch.agent_id)
    with within(ROUND_TRIP_S):
        assert [type(result.exception()) for result in queued] == [AgentDeleted] * 3
    with pytest.raises(errors.UnknownAgent):
        latch.mark(1)
    running.cancel()


def test_the_stream_of_a_deleted_agent_ends(client: RpcClient) -> None:
    node = client.create_agent(Node)
    with node.numbers(10**9) as stream:
        assert next(stream) == 0
        client.delete_agent(node.agent_id)
        with pytest.raises(AgentDeleted), within(2):
            for _ in stream:
                pass


def _calls_of(client: RpcClient, proxy: AgentProxy) -> int:
    (info,) = [info for info in client.get_agent_list() if info["agent_id"] == proxy.agent_id]
    calls: int = info["calls"]
    return calls
