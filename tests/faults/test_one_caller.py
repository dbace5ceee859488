"""What one user does to a host does not hurt another: ann does her worst, and bob's calls are answered."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors import CALL_TIMEOUT_S, Desk, Latch, Node, client_of, host
from hosts import eventually
from raw_peer import RawPeer
from slow_values import SlowToRead
from zmqagents import AgentBase, AsyncRpcClient, HostBusy, RpcAgentServerLauncher, RpcClient
from zmqagents.codec import SHORT_BYTES
from zmqagents.connection.connection import Connection
from zmqagents.connection.target import Target
from zmqagents.security.keys import KeyStore
from zmqagents.wire.messages import Code, Kind

pytestmark = pytest.mark.timeout(90)

LONG = list(range(SHORT_BYTES))  # takes more than a byte for each
place: contextvars.ContextVar[str] = contextvars.ContextVar("place", default="")


class Teller(AgentBase, max_concurrency=10_000):
    """An agent whose streams nobody need read."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = 0

    def count(self) -> Iterator[int]:
        number = 0
        try:
            while True:
                yield number
                number += 1
        finally:
            self.closed += 1

    async def count_on_loop(self) -> Any:
        number = 0
        while True:
            yield number
            number += 1

    def places(self, items: int) -> Iterator[str]:
        place.set("here")
        for _ in range(items):
            yield place.get()

    def how_many_closed(self) -> int:
        return self.closed

    def ask(self, other: Any) -> Any:
        return other.echo("asked")


@contextlib.contextmanager
def two_users(directory: Path, **settings: Any) -> Iterator[tuple[RpcAgentServerLauncher, RpcClient, RpcClient]]:
    """A host, ann (the user that runs it) and bob, who has a key of his own with the role call."""
    keys, bobs = KeyStore.open(directory / "host"), KeyStore.open(directory / "bob")
    keys.authorize("bob", bobs.client_keypair().public, "call")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZMQAGENTS_KEYS", str(keys.path))
        with host(Teller, Desk, Latch, Node, **settings) as launcher, client_of(launcher) as ann:
            patch.setenv("ZMQAGENTS_KEYS", str(bobs.path))
            link = Connection(Target("127.0.0.1", launcher.port, "tcp"))
            with RpcClient(link=link, timeout=CALL_TIMEOUT_S) as bob:
                link.settle(CALL_TIMEOUT_S)
                yield launcher, ann, bob


@pytest.mark.parametrize("method", ["count", "count_on_loop"])
def test_streams_that_nobody_reads_take_no_thread_from_the_nested_calls_of_another_user(
    tmp_path: Path, method: str
) -> None:
    with two_users(tmp_path, capacity=4, max_threads=4 + 16) as (launcher, ann, bob):
        teller = ann.create_agent(Teller)
        streams = [getattr(teller, method)() for _ in range(300)]
        for stream in streams:
            assert next(stream) == 0
        theirs, desk = bob.create_agent(Teller), bob.create_agent(Desk)
        assert [theirs.ask(desk) for _ in range(40)] == ["asked"] * 40
        assert launcher.pid is not None
        assert psutil.Process(launcher.pid).num_threads() < 4 + 16 + 10
        assert [next(stream) for stream in streams] == [1] * 300
        for stream in streams:
            stream.close()
        if method == "count":
            assert eventually(lambda: teller.how_many_closed() == 300, 10)


def test_streams_that_wait_for_their_reader_have_a_share_that_the_refusal_names(tmp_path: Path) -> None:
    with two_users(tmp_path, capacity=4, max_calls=128) as (_launcher, ann, bob):
        teller = ann.create_agent(Teller)
        streams = [teller.count() for _ in range(28)]
        for stream in streams:
            assert next(stream) == 0
        assert eventually(lambda: ann.get_server_info()["running"] == 0, 10)
        with pytest.raises(HostBusy, match="28 streams wait for their readers, 28 of them of this user"):
            list(teller.count())
        theirs = bob.get_agent(teller.agent_id).count()
        assert [next(theirs) for _ in range(100)] == list(range(100))
        for stream in [*streams, theirs]:
            stream.close()


def test_a_generator_goes_on_in_any_thread_with_the_context_variables_of_its_call() -> None:
    with host(Teller, Latch, capacity=2) as launcher, client_of(launcher) as client:
        teller, latch = client.create_agent(Teller), client.create_agent(Latch)
        stream = teller.places(100)
        assert next(stream) == "here"
        assert eventually(lambda: client.get_server_info()["running"] == 0, 10)
        held = latch.hold_async()  # one of the two threads is taken
        latch.entered()
        rest = list(stream)
        latch.release()
        held.result(10)
    assert rest == ["here"] * 99


def test_all_connections_of_one_user_together_leave_calls_for_another(tmp_path: Path) -> None:
    with two_users(tmp_path, max_calls=64, max_calls_per_client=64) as (_launcher, ann, bob):
        latch: Any = ann.create_agent(Latch)
        theirs = bob.get_agent(latch.agent_id)
        held = [latch.hold_async() for _ in range(56)]
        assert eventually(lambda: bob.get_server_info()["calls_open"] == 56, 10)
        with pytest.raises(HostBusy, match=r"56 of them of this user: its share is used up, limit 64 \(max_calls\)"):
            latch.hold_async(timeout=0.5).result(10)
        desk, teller = bob.create_agent(Desk), bob.create_agent(Teller)
        assert [teller.ask(desk) for _ in range(20)] == ["asked"] * 20
        theirs.release()
        assert all(result.exception(10) is None for result in held)


def test_calls_of_one_user_in_a_shared_child_leave_a_slot_for_another(tmp_path: Path) -> None:
    with two_users(tmp_path, isolation="pool", processes=1, capacity=4) as (_launcher, ann, bob):
        latches = [ann.create_agent(Latch) for _ in range(12)]
        desk = bob.create_agent(Desk)
        held = [latch.hold_async() for latch in latches]
        assert eventually(lambda: sum(latch.entered(0) for latch in latches) == 4, CALL_TIMEOUT_S)
        assert [desk.echo(n) for n in range(20)] == list(range(20))
        assert bob.create_agent(Teller).ask(desk) == "asked"
        for latch in latches:
            latch.release()
        assert all(result.exception(CALL_TIMEOUT_S) is None for result in held)


def test_arguments_of_one_user_that_are_slow_to_read_hold_up_no_coroutine_of_another(tmp_path: Path) -> None:
    with two_users(tmp_path) as (_launcher, ann, bob):
        first: Any = ann.create_agent(Desk)
        second: Any = ann.create_agent(Desk)
        theirs: Any = bob.create_agent(Desk)
        reading = first.later([LONG, SlowToRead(3.0)])
        waiting = second.soon(LONG)
        for _ in range(20):
            assert theirs.soon(1).result(2.0) == 1
        assert not reading.done()
        assert waiting.result(CALL_TIMEOUT_S) == LONG


def test_agents_of_one_user_leave_room_for_those_of_another(tmp_path: Path) -> None:
    with two_users(tmp_path, max_agents=16) as (_launcher, ann, bob):
        made = [ann.create_agent(Desk) for _ in range(14)]
        with pytest.raises(HostBusy, match=r"14 agents are on this host, 14 of them of this user.*max_agents"):
            ann.create_agent(Desk)
        assert bob.create_agent(Desk).echo(1) == 1
        for agent in made[:2]:
            ann.delete_agent(agent.agent_id)
        assert ann.create_agent(Desk).echo(1) == 1


def test_processes_of_one_user_leave_room_for_one_of_another(tmp_path: Path) -> None:
    with two_users(tmp_path, max_children=8) as (_launcher, ann, bob):
        alone = {"isolation": "process"}
        for _ in range(7):
            ann.create_agent(Desk, agent_options=alone)
        with pytest.raises(HostBusy, match="7 processes run agents of this host, 7 of them of this user"):
            ann.create_agent(Desk, agent_options=alone)
        assert bob.create_agent(Desk, agent_options=alone).echo(1) == 1


@pytest.mark.parametrize("way", ["blocking", "asyncio"])
def test_a_list_of_many_agents_comes_in_pages_and_is_whole(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr("zmqagents.broker.listing.PAGE_ROWS", 7)
    with host(Desk) as launcher, client_of(launcher) as client:
        made = [client.create_agent(Desk).agent_id for _ in range(50)]

        async def listed() -> list[dict[str, Any]]:
            async with AsyncRpcClient("localhost", launcher.port) as other:
                return await other.get_agent_list()

        rows = client.get_agent_list() if way == "blocking" else asyncio.run(listed())
        assert [row["agent_id"] for row in rows] == made
        for agent_id in made[:7]:
            client.delete_agent(agent_id)
        assert [row["agent_id"] for row in client.get_agent_list()] == made[7:]
        for agent_id in made[7:]:
            client.delete_agent(agent_id)
        assert client.get_agent_list() == []


def test_requests_for_lists_are_answered_in_turn_and_have_a_share() -> None:
    with host(Desk) as launcher, client_of(launcher) as client, RawPeer(launcher) as peer:
        for _ in range(20):
            client.create_agent(Desk)
        peer.hello()
        for call_id in range(1, 1001):
            peer.call(call_id, "", "get_agent_list")
        answers = [peer.receive()[0] for _ in range(1000)]
        assert {answer.call_id for answer in answers} == set(range(1, 1001))
        assert {(answer.kind, answer.code) for answer in answers} <= {(Kind.RESULT, 0), (Kind.ERROR, int(Code.BUSY))}
        assert sum(answer.kind == Kind.RESULT for answer in answers) >= 56
        assert launcher.pid is not None
        assert psutil.Process(launcher.pid).num_threads() < 20
        assert len(client.get_agent_list()) == 20
