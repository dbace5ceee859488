"""A reference from a peer does not make a host connect to where its sender likes."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import Desk, client_of, host
from raw_peer import RawPeer
from zmqagents import HostUnreachable, codec
from zmqagents.codec import TaskRef
from zmqagents.wire import messages
from zmqagents.wire.link import rebuild_error
from zmqagents.wire.messages import Kind, Reply

pytestmark = pytest.mark.timeout(60)

TASK = "aaaaaaaaaaaaaaaa-1"


@contextlib.contextmanager
def listening(family: socket.AddressFamily, address: str | tuple[str, int]) -> Iterator[socket.socket]:
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen(8)
        listener.setblocking(False)
        yield listener


def asked(peer: RawPeer, call_id: int, address: str, *, as_dependency: bool) -> Exception:
    """What a call with a reference to ``address`` ends in."""
    ref = TaskRef(TASK, "other", address)
    deps, options = ([TASK], {"far": {TASK: ["other", address]}}) if as_dependency else (None, None)
    head = messages.header(Kind.CALL, call_id, peer.token, time_ms=2500)
    peer.send(head, codec.pack(["desk", "echo", deps, options]), codec.encode_call((ref,), {}).payload)
    answer, body = peer.answer_to(call_id)
    assert answer.kind == Kind.ERROR
    return rebuild_error(Reply(answer.code, body))


@pytest.mark.parametrize("as_dependency", [True, False])
def test_a_host_connects_to_no_address_that_only_a_peer_knows_and_says_the_same_of_each(
    tmp_path: Path, as_dependency: bool
) -> None:
    path = f"{tmp_path}/s"
    with (
        host(Desk) as launcher, client_of(launcher) as client, RawPeer(launcher) as peer,
        listening(socket.AF_INET, ("127.0.0.1", 0)) as tcp, listening(socket.AF_UNIX, path) as unix,
    ):  # fmt: skip
        client.create_agent(Desk, agent_id="desk")
        peer.hello()
        port = tcp.getsockname()[1]
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            nobody = closed.getsockname()[1]
        addresses = [
            f"127.0.0.1:{port}", f"localhost:{nobody}", f"ipc:{path}", "ipc:/etc/passwd", "ipc:/nowhere/s", "ipc:evil",
            "192.0.2.1:80", "localhost:0", "localhost:99999", "localhost:\u0663", "localhost", ":80", "a b:80",
            "a/b:80", "@", "[::1]:x", "ipc:@abstract", "ipc:\0abstract", "ipc:/\0x", "a\x1b[2J\n:80",
        ]  # fmt: skip
        for call_id, address in enumerate(addresses, 1):
            error = asked(peer, call_id, address, as_dependency=as_dependency)
            assert isinstance(error, HostUnreachable), error
            shown = address if address.isprintable() else repr(address)
            assert f"{shown} is the address of no host that is known here" in str(error)
        for listener in (tcp, unix):
            with pytest.raises(BlockingIOError):
                listener.accept()
