"""Questions for the result of a call that come, over another connection, before the call itself."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from actors import Desk, client_of, host, within
from hosts import eventually
from raw_peer import RawPeer
from zmqagents import HostBusy, HostStopping, RpcAgentServerLauncher, UnknownTask, codec
from zmqagents.scheduler.fetches import EARLY_S
from zmqagents.wire import messages
from zmqagents.wire.link import rebuild_error
from zmqagents.wire.messages import CLIENT_ID_BYTES, Flag, Kind, Reply, client_prefix, task_id_of

pytestmark = pytest.mark.timeout(60)
_nonces = itertools.count(1 << 40)
LONG_MS = 60_000
AT_ONCE_S = 0.7 * EARLY_S  # less than any question waits for its call


@pytest.fixture(scope="module")
def server() -> Iterator[RpcAgentServerLauncher]:
    with host(Desk) as launcher, client_of(launcher) as client:
        client.create_agent(Desk, agent_id="desk")
        yield launcher


@pytest.fixture
def caller(server: RpcAgentServerLauncher) -> Iterator[RawPeer]:
    with RawPeer(server) as peer:
        peer.hello()
        yield peer


@pytest.fixture
def asker(server: RpcAgentServerLauncher) -> Iterator[RawPeer]:
    with RawPeer(server) as peer:
        peer.hello()
        yield peer


def task_of(peer: RawPeer, call_id: int) -> str:
    return task_id_of(client_prefix(peer.client_id), call_id)


def ask(peer: RawPeer, call_id: int, task_id: str, time_ms: int = LONG_MS) -> None:
    peer.send(messages.header(Kind.FETCH, call_id, peer.token, time_ms=time_ms), codec.pack(task_id))


def ask_early(peer: RawPeer, call_id: int, task_id: str) -> None:
    """Ask for a result that is not there; the host has read that when this returns."""
    ask(peer, call_id, task_id)
    nonce = next(_nonces)
    peer.send(messages.header(Kind.PING, nonce, peer.token))
    head, _ = peer.receive()
    assert (head.kind, head.call_id) == (Kind.PONG, nonce)


def value_of(peer: RawPeer, call_id: int) -> Any:
    head, rest = peer.answer_to(call_id)
    assert head.kind == Kind.RESULT
    return codec.decode(rest[0], rest[1:])


def error_of(peer: RawPeer, call_id: int | None = None) -> Exception:
    """What a question ended in; without ``call_id`` the one that is answered next."""
    head, rest = peer.receive() if call_id is None else peer.answer_to(call_id)
    assert head.kind == Kind.ERROR
    return rebuild_error(Reply(head.code, rest))


@pytest.mark.parametrize("flags", [0, Flag.DETACHED])
def test_a_question_that_overtakes_its_call_gets_the_result(caller: RawPeer, asker: RawPeer, flags: int) -> None:
    for call_id in range(1, 81):  # the router thread itself runs the later ones
        ask_early(asker, call_id, task_of(caller, call_id))
        caller.call(call_id, "desk", "echo", call_id, flags=flags)
        assert value_of(asker, call_id) == value_of(caller, call_id) == call_id


def test_a_question_that_overtakes_a_long_call_waits_for_the_end_of_that(caller: RawPeer, asker: RawPeer) -> None:
    ask_early(asker, 1, task_of(caller, 1))
    caller.call(1, "desk", "nap", 2 * EARLY_S, flags=Flag.DETACHED)
    head, _ = asker.answer_to(1)
    assert head.kind == Kind.PENDING, "it is asked again in the middle of the call"
    ask(asker, 2, task_of(caller, 1))
    assert value_of(asker, 2) == value_of(caller, 1)


def test_a_question_for_a_call_that_does_not_come_is_told_so_after_a_while(caller: RawPeer, asker: RawPeer) -> None:
    ask_early(asker, 1, task_of(caller, 7))
    assert asker.hears_nothing(int(EARLY_S * 500))
    with within(EARLY_S + 1):
        assert isinstance(error_of(asker, 1), UnknownTask)


def test_a_question_with_little_time_waits_no_longer_for_a_call_that_does_not_come(
    caller: RawPeer, asker: RawPeer
) -> None:
    with within(AT_ONCE_S):
        ask(asker, 1, task_of(caller, 7), time_ms=20)
        assert isinstance(error_of(asker, 1), UnknownTask)


def test_a_call_that_was_answered_or_forgotten_is_not_waited_for(caller: RawPeer, asker: RawPeer) -> None:
    for call_id in (1, 3, 5):
        caller.call(call_id, "desk", "echo", call_id)
        assert value_of(caller, call_id) == call_id
    for needed, beyond in ((1, []), (3, [5])):
        caller.send(messages.header(Kind.ACK, needed, caller.token), *([codec.pack(beyond)] if beyond else []))
        caller.call(call_id := call_id + 2, "desk", "echo", 0)
        assert value_of(caller, call_id) == 0
        for number in (1, 3, 5):
            with within(AT_ONCE_S):
                ask(asker, 10 * call_id + number, task_of(caller, number))
                assert isinstance(error_of(asker, 10 * call_id + number), UnknownTask)


def test_a_client_that_the_host_does_not_know_is_not_waited_for(server: RpcAgentServerLauncher, asker: RawPeer) -> None:
    with RawPeer(server) as gone:
        gone.hello()
        gone.send(messages.header(Kind.BYE, 0, gone.token))
        stranger = client_prefix(os.urandom(CLIENT_ID_BYTES))
        with client_of(server) as client:
            assert eventually(lambda: client.get_server_info()["clients"] == 2, 3)
        odd = task_of(asker, 9).upper(), task_of(asker, 9).replace("-", ""), f"{task_of(asker, 9)}x", "-9", "é-9"
        for call_id, task_id in enumerate((task_id_of(stranger, 1), task_of(gone, 1), *odd), 1):
            with within(AT_ONCE_S):
                ask(asker, call_id, task_id)
                assert isinstance(error_of(asker, call_id), UnknownTask)


def test_a_client_whose_connection_is_lost_is_waited_for(server: RpcAgentServerLauncher, asker: RawPeer) -> None:
    client_id = os.urandom(CLIENT_ID_BYTES)
    with client_of(server) as client:
        with RawPeer(server, client_id) as lost:
            lost.hello()
        assert eventually(lambda: client.get_server_info()["clients_lost"] >= 1, 3)
    ask_early(asker, 1, task_of(lost, 1))
    with RawPeer(server, client_id) as back:
        back.hello()
        back.call(1, "desk", "echo", "back")
        assert value_of(asker, 1) == "back"


def test_a_host_that_stops_answers_what_waits_for_a_call() -> None:
    with host(Desk) as server, RawPeer(server) as asker:
        asker.hello()
        ask_early(asker, 1, task_of(asker, 7))
        with ThreadPoolExecutor() as pool:
            stopping = pool.submit(server.shutdown)
            assert isinstance(error_of(asker, 1), HostStopping)
            stopping.result()


def test_questions_for_calls_that_nobody_makes_are_bounded_and_another_client_is_served() -> None:
    """They are about a client of the asker's own, which shows numbers that it never uses."""
    with host(Desk, max_calls=1024) as server, client_of(server) as client, RawPeer(server) as greedy:
        desk = client.create_agent(Desk)
        greedy.hello()
        for call_id in range(1, 201):
            ask(greedy, call_id, task_of(greedy, 10**6 + call_id))
        for value in range(20):
            with within(AT_ONCE_S):
                assert desk.echo(value) == value
        ends = [type(error_of(greedy)) for _ in range(200)]
        assert ends.count(UnknownTask) == 14, "seven eighths of a sixty-fourth of max_calls"
        assert ends.count(HostBusy) == 186
