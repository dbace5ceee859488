"""How much a host takes in: messages that are too large, and calls that wait with too many bytes."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from actors import CALL_TIMEOUT_S, Desk, Latch, Node, client_of, client_on_host, host, within
from raw_peer import RawPeer
from world import World
from zmqagents import AgentBase, AsyncRpcClient, HostBusy, MessageTooLarge, RpcClient, codec
from zmqagents.connection.connection import connect
from zmqagents.connection.target import target_of
from zmqagents.scheduler.records import ID_BYTES, State
from zmqagents.wire import messages
from zmqagents.wire.link import rebuild_error
from zmqagents.wire.messages import Code, Kind

pytestmark = pytest.mark.timeout(60)

LIMIT = 100_000
LARGE = bytes(2 * LIMIT)


class Counting(AgentBase):
    """Takes large things in every way that a method can be written."""

    def __init__(self, thing: Any = None) -> None:
        super().__init__()

    def plain(self, thing: Any) -> int:
        return len(thing)

    async def soon(self, thing: Any) -> int:
        return len(thing)

    def items(self, thing: Any) -> Any:
        yield len(thing)

    def reply(self, thing: Any) -> int:
        return len(thing)


def accepted(client: RpcClient) -> int:
    return int(client.get_server_info()["calls"]["accepted"])


# ---------------------------------------------------------------- one message


def test_a_message_over_the_limit_is_refused_here_before_anything_is_sent() -> None:
    with client_on_host(Counting, max_message_bytes=LIMIT) as client:
        agent: Any = client.create_agent(Counting)
        before = accepted(client)
        make: Callable[..., Any] = lambda thing: client.create_agent(Counting, thing)  # noqa: E731
        for call in (agent.plain, agent.soon, agent.items, agent, agent.plain.aio, make):
            with pytest.raises(MessageTooLarge) as caught:
                call(LARGE)
            assert caught.value.size > len(LARGE)
            assert caught.value.limit == LIMIT
        assert accepted(client) == before
        assert agent.plain(bytes(LIMIT - 1000)) == LIMIT - 1000


def test_the_same_for_a_client_of_asyncio() -> None:
    async def main() -> None:
        async with AsyncRpcClient(server.host, server.port) as client:
            agent = await client.create_agent(Counting)
            before = (await client.get_server_info())["calls"]["accepted"]
            for call in (agent.plain, agent.soon, agent.items, agent):
                with pytest.raises(MessageTooLarge) as caught:
                    call(LARGE)
                assert caught.value.limit == LIMIT
            assert (await client.get_server_info())["calls"]["accepted"] == before

    with host(Counting, max_message_bytes=LIMIT) as server:
        asyncio.run(main())


def test_a_client_that_has_not_met_the_host_yet_sends_nothing_either() -> None:
    """It cannot know the limit when the call is made, but it does before it sends."""
    with host(Counting, max_message_bytes=LIMIT) as server:
        with client_of(server) as client:
            packed = pickle.dumps(client.create_agent(Counting))
            before, address = accepted(client), client.address
        for call in (lambda agent: agent.plain(LARGE), lambda agent: agent.soon(LARGE).result(CALL_TIMEOUT_S)):
            agent = pickle.loads(packed)
            link = connect(target_of(address, referred=True))  # the agent's, for a process has one to each host
            link.close()
            assert not link.server_id
            with pytest.raises(MessageTooLarge) as caught:
                call(agent)
            assert (caught.value.size > len(LARGE), caught.value.limit) == (True, LIMIT)
            link.close()
        with client_of(server) as client:
            assert accepted(client) == before


def test_a_result_and_an_item_over_the_limit_are_told_to_the_caller() -> None:
    with client_on_host(Desk, max_message_bytes=LIMIT) as client:
        desk = client.create_agent(Desk)
        with pytest.raises(MessageTooLarge, match="make_bytes") as caught:
            desk.make_bytes(2 * LIMIT)
        assert caught.value.limit == LIMIT
        assert len(desk.make_bytes(LIMIT // 2)) == LIMIT // 2


def test_frames_that_fit_one_by_one_do_not_pass_together() -> None:
    """What a peer sends that does not look at the limit: ZeroMQ bounds a frame, not a message."""
    with host(Desk, max_message_bytes=LIMIT) as server, RawPeer(server) as peer:
        peer.hello()
        peer.call(1, "", "create_agent", options={"class": "Desk", "id": "desk"})
        assert peer.answer_to(1)[0].kind == Kind.RESULT
        head = messages.header(Kind.CALL, 2, peer.token)
        payload = codec.encode_call((), {}).payload
        message = [head, codec.pack(["desk", "nothing", None, None]), payload, *[bytes(LIMIT // 2)] * 4]
        peer.send(*message)
        answer, rest = peer.answer_to(2)
        error = rebuild_error(messages.Reply(answer.code, rest))
        assert isinstance(error, MessageTooLarge)
        assert (error.size, error.limit) == (sum(map(len, message)), LIMIT)
        peer.call(3, "desk", "nothing")
        assert peer.answer_to(3)[0].kind == Kind.RESULT


# ---------------------------------------------------------------- the part of a message that has a structure


def test_a_structured_part_over_the_limit_is_refused_here_before_anything_is_sent() -> None:
    with client_on_host(Counting, max_structured_bytes=LIMIT) as client:
        agent: Any = client.create_agent(Counting)
        before = accepted(client)
        for call in (agent.plain, agent.soon, agent.items, agent, agent.plain.aio):
            things: list[list[Any]] = [[2.5] * LIMIT, [{}] * (LIMIT - 100)]
            for thing in things:
                with pytest.raises(MessageTooLarge, match="max_structured_bytes"):
                    call(thing)
        assert accepted(client) == before
        assert agent.plain([1] * (LIMIT - 100)) == LIMIT - 100


def test_large_texts_bytes_and_many_short_ones_are_beside_the_structured_part() -> None:
    things: list[Any] = [
        "x" * 20_000_000,
        bytes(20_000_000),
        ["y" * 1_000] * 1_000,
        {str(i): bytes(5_000) for i in range(300)},
    ]
    with client_on_host(Desk, max_structured_bytes=LIMIT) as client:
        desk = client.create_agent(Desk)
        for thing in things:
            assert desk.echo(thing) == thing


def test_a_structured_result_over_the_limit_is_told_to_the_caller() -> None:
    with client_on_host(Maker, max_structured_bytes=LIMIT) as client:
        maker: Any = client.create_agent(Maker)
        for call in (lambda: maker.numbers(LIMIT), lambda: list(maker.stream(LIMIT)), lambda: maker.maps(LIMIT - 100)):
            with pytest.raises(MessageTooLarge, match="max_structured_bytes"):
                call()
        assert len(maker.numbers(10)) == 10


class Maker(AgentBase):
    def numbers(self, count: int) -> Any:
        return [0.5] * count

    def maps(self, count: int) -> Any:
        return [{}] * count

    def stream(self, count: int) -> Any:
        yield [0.5] * count


def test_a_host_refuses_a_structured_part_that_is_sent_all_the_same_and_goes_on() -> None:
    bodies = [
        b"\x92\xdd" + LIMIT.to_bytes(4, "big") + bytes(LIMIT) + b"\x80",  # too long
        b"\x92\xdd" + (LIMIT - 100).to_bytes(4, "big") + b"\x80" * (LIMIT - 100) + b"\x80",  # too much in memory
    ]
    with host(Desk, max_structured_bytes=LIMIT) as server, RawPeer(server) as peer:
        peer.hello()
        peer.call(1, "", "create_agent", options={"class": "Desk", "id": "desk"})
        assert peer.answer_to(1)[0].kind == Kind.RESULT
        for call_id, body in enumerate(bodies, 2):
            head = messages.header(Kind.CALL, call_id, peer.token)
            peer.send(head, codec.pack(["desk", "echo", None, None]), body)
            answer, rest = peer.answer_to(call_id)
            error = rebuild_error(messages.Reply(answer.code, rest))
            assert isinstance(error, MessageTooLarge)
            assert "max_structured_bytes" in str(error)
        peer.call(9, "desk", "nothing")
        assert peer.answer_to(9)[0].kind == Kind.RESULT


# ---------------------------------------------------------------- calls that wait


def test_a_host_with_too_many_bytes_waiting_is_busy_and_says_when_to_come_again() -> None:
    with host(Desk, Latch, max_queued_bytes=LIMIT * 11, capacity=2) as server, RawPeer(server) as peer:
        peer.hello()
        for number, name in enumerate(("Latch", "Desk"), 1):
            peer.call(number, "", "create_agent", options={"class": name, "id": name})
            assert peer.answer_to(number)[0].kind == Kind.RESULT
        peer.call(3, "Latch", "hold")  # has the turn
        for number in range(4, 8):
            peer.call(number, "Latch", "hold", "x" * 3 * LIMIT)
        with within(2):
            head, rest = peer.answer_to(7)
        assert (head.kind, head.code) == (Kind.ERROR, Code.BUSY)
        assert head.time_ms > 0
        error = rebuild_error(messages.Reply(head.code, rest))
        assert isinstance(error, HostBusy)
        assert error.retry_after > 0
        assert "(max_queued_bytes)" in str(error)
        with client_of(server) as client:
            info = client.get_server_info()
            assert 9 * LIMIT < info["queued_bytes"] < 10 * LIMIT
            assert client.get_agent("Desk").type_of(bytes(5 * LIMIT)) == "bytes", "it need not wait, so it may come"
            latch = client.get_agent("Latch")
            with within(5), pytest.raises(HostBusy):
                latch.hold_async(bytes(3 * LIMIT), timeout=0.5).result(CALL_TIMEOUT_S)
            latch.release()
            for number in (3, 4, 5, 6):
                assert peer.answer_to(number)[0].kind == Kind.RESULT
            assert client.get_server_info()["queued_bytes"] == 0


def test_a_client_waits_for_a_busy_host_until_its_deadline() -> None:
    with client_on_host(Latch, max_queued_bytes=LIMIT) as client:
        latch: Any = client.create_agent(Latch)
        first, second = latch.hold_async(bytes(LIMIT)), latch.hold_async(bytes(LIMIT))
        third = latch.hold_async(bytes(LIMIT), timeout=CALL_TIMEOUT_S)
        latch.entered()
        assert not third.done()
        latch.release()
        assert [len(result.result(CALL_TIMEOUT_S)) for result in (first, second, third)] == [LIMIT] * 3


def test_an_empty_queue_takes_one_call_of_any_size() -> None:
    world = World(capacity=1, max_queued_bytes=10)
    world.agents("a", "b")
    running = world.running("a", body=bytes(1000))
    assert world.dispatcher.queued_bytes == 0
    waiting = world.send("b", body=bytes(1000))
    assert (waiting.state, world.dispatcher.queued_bytes) == (State.READY, 1000)
    assert isinstance(world.send("b", body=b"x").error, HostBusy)
    world.done(running)
    assert world.dispatcher.queued_bytes == 0
    world.done(waiting)
    world.assert_idle()


@pytest.mark.parametrize("end", ["cancel", "time out", "delete", "detach", "drain"])
def test_what_never_starts_is_no_longer_counted(end: str) -> None:
    world = World(capacity=1, max_queued_bytes=10)
    world.agents("a")
    running = world.running("a")
    waiting = world.send("a", body=bytes(10), timeout=5)
    assert world.dispatcher.queued_bytes == 10
    if end == "cancel":
        world.cancel(waiting)
    elif end == "time out":
        world.sleep(6)
    elif end == "delete":
        world.remove("a")
    elif end == "detach":
        world.detach(world.client)
    else:
        world.drain(0)
    assert world.dispatcher.queued_bytes == 0
    world.done(running)


def test_the_hosts_own_calls_have_room_when_others_have_filled_the_queue() -> None:
    """They are what the running calls wait for: were they refused, the queue would never get shorter."""
    world = World(capacity=1, max_queued_bytes=10)
    world.agents("a", "b", "c")
    running = world.running("a")
    world.send("c", body=bytes(10))
    assert isinstance(world.send("b", body=b"x").error, HostBusy)
    nested = world.later(running, "b", body=bytes(10))
    assert nested.error is None
    assert isinstance(world.later(running, "b", body=b"x").error, HostBusy)


def test_a_call_that_waits_for_its_arguments_is_counted() -> None:
    world = World(capacity=4, max_queued_bytes=10 + ID_BYTES)
    world.agents("a", "b")
    first = world.running("a", flags=messages.Flag.DETACHED)
    parked = world.send("b", deps=[first], body=bytes(10))
    assert (parked.state, world.dispatcher.queued_bytes) == (State.PARKED, 10 + ID_BYTES)
    assert isinstance(world.send("b", deps=[first], body=b"x").error, HostBusy)
    assert world.send("b", body=b"x").started
    world.done(first)
    world.finish()
    assert world.dispatcher.queued_bytes == 0


def test_agents_call_each_other_while_the_host_is_full() -> None:
    with client_on_host(Node, Desk, Latch, max_queued_bytes=LIMIT, capacity=2) as client:
        latch, node, desk = (client.create_agent(cls) for cls in ("Latch", "Node", "Desk"))
        held = [latch.hold_async(bytes(LIMIT)) for _ in range(2)]
        latch.entered()
        assert node.ask(desk, "echo", "still here").result(CALL_TIMEOUT_S) == "still here"
        latch.release()
        for result in held:
            result.result(CALL_TIMEOUT_S)
