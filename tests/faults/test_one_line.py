"""What is refused of a peer is one line of the log for each peer and kind, however often it comes, on both doors."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from actors import Desk, Latch, client_of, host
from raw_peer import RawPeer
from zmqagents import RpcAgentServerLauncher, codec
from zmqagents.codec import AgentRef, TaskRef
from zmqagents.security.keys import KeyStore
from zmqagents.wire import messages
from zmqagents.wire.messages import Flag, Kind

pytestmark = pytest.mark.timeout(60)

TIMES = 5


def _hello(client_id: bytes, secret: bytes) -> bytes:
    return codec.pack({"client": client_id, "versions": [messages.VERSION], "resume": secret})


def _break_off(launcher: RpcAgentServerLauncher, running: str) -> None:
    with RawPeer(launcher) as peer:
        peer.hello()
        peer.send(b"nonsense")
        peer.call(1, "", "get_agent_list")
        peer.answer_to(1)


def _take_anothers_id(launcher: RpcAgentServerLauncher, running: str) -> None:
    victim = b"the victim"
    with RawPeer(launcher) as owner, RawPeer(launcher) as thief:
        owner.send(messages.header(Kind.HELLO), _hello(victim, b"secret"))
        assert owner.receive()[0].kind == Kind.WELCOME
        thief.send(messages.header(Kind.HELLO), _hello(victim, b"guess"))
        thief.hello()  # what it sent before is refused without an answer


def _forge_a_chain(launcher: RpcAgentServerLauncher, running: str) -> None:
    with RawPeer(launcher) as peer:
        peer.hello()
        for call_id, entry in enumerate((running, f"{running}!", f"{running}!{'0' * 16}"), 1):
            peer.call(call_id, "latch", "hold", options={"chain": [entry]}, time_ms=100)
            assert peer.answer_to(call_id)[0].kind == Kind.ERROR


def _say_no_names(launcher: RpcAgentServerLauncher, running: str) -> None:
    with RawPeer(launcher) as peer:
        peer.hello()
        for call_id, (agent, name) in enumerate((("latch", ""), ("latch", "a\x1b[2J"), ("a\nb", "hold")), 1):
            peer.call(call_id, agent, name, flags=Flag.ATTRIBUTE, time_ms=3000)
            assert peer.answer_to(call_id)[0].kind == Kind.ERROR


def _refer_to_what_is_none(launcher: RpcAgentServerLauncher, running: str) -> None:
    with RawPeer(launcher) as peer:
        peer.hello()
        refs = (
            AgentRef("other", "localhost:1", "", "Desk", {}), AgentRef("other", "localhost:1", "a\x1b[2J", "Desk", {}),
            AgentRef("other", "a b:80", "desk", "Desk", {}), TaskRef("", "other", "localhost:1"),
            TaskRef("aaaaaaaaaaaaaaaa-1", "other", "ipc:/nowhere"),
        )  # fmt: skip
        for call_id, ref in enumerate(refs, 1):
            peer.call(call_id, "desk", "echo", ref, time_ms=3000)
            assert peer.answer_to(call_id)[0].kind == Kind.ERROR
        task_id = "aaaaaaaaaaaaaaaa-1"
        peer.call(
            9, "desk", "echo", deps=[task_id], options={"far": {task_id: ["other", "ipc:/nowhere"]}}, time_ms=3000
        )
        assert peer.answer_to(9)[0].kind == Kind.ERROR


KINDS: dict[str, Callable[[RpcAgentServerLauncher, str], None]] = {
    "malformed messages": _break_off,
    "ids of other clients": _take_anothers_id,
    "forged chains of calls": _forge_a_chain,
    "names that are none": _say_no_names,
    "references": _refer_to_what_is_none,
}


def test_what_is_refused_of_a_process_is_one_line_for_each_kind_over_many_connections(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with host(Latch, Desk) as launcher, client_of(launcher) as client:
        client.create_agent(Desk, agent_id="desk")
        latch = client.create_agent(Latch, agent_id="latch")
        held = latch.hold_async()
        latch.entered()
        for refused in KINDS.values():
            for _ in range(TIMES):
                refused(launcher, held.task_id)
        latch.release()
        held.result()
    lines = [line for line in capfd.readouterr().err.splitlines() if "refusing" in line]
    assert [line.partition(" of peer ")[0].partition("refusing ")[2] for line in lines] == list(KINDS)
    assert all(f"process {os.getpid()} of uid:{os.getuid()}" in line and line.isprintable() for line in lines)


@contextlib.contextmanager
def _dealer(port: int, server: str, keys: KeyStore) -> Iterator[zmq.Socket[bytes]]:
    pair = keys.client_keypair()
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.rcvtimeo = 5000
        dealer.curve_publickey, dealer.curve_secretkey = pair.public.encode(), pair.secret.encode()
        dealer.curve_serverkey = server.encode()
        dealer.connect(f"tcp://127.0.0.1:{port}")
        yield dealer


def test_a_key_is_one_peer_over_many_connections(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store, bobs = KeyStore.open(tmp_path / "host"), KeyStore.open(tmp_path / "bob")
    store.authorize("bob", bobs.client_keypair().public, "call")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZMQAGENTS_KEYS", str(store.path))
        with host(Latch) as launcher:
            for _ in range(TIMES):
                with _dealer(launcher.port or 0, store.server_keypair().public, bobs) as dealer:
                    dealer.send(b"nonsense")
                    dealer.send_multipart([messages.header(Kind.HELLO), _hello(os.urandom(10), b"")])
                    dealer.recv_multipart()
    lines = [line for line in capfd.readouterr().err.splitlines() if "refusing" in line]
    assert len(lines) == 1
    assert "malformed messages of peer key:bob: " in lines[0]
