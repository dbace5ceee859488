"""Who gets in, with everything as it is out of the box: real hosts, real key stores, real users."""

from __future__ import annotations

import ast
import contextlib
import os
import pickle
import re
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

import hosts
import zmqagents
from actors import Desk, within
from raw_peer import RawPeer, ipc_path
from scale import LATE_S
from zmqagents import AgentProxy, RpcAgentServerLauncher, RpcClient, ZmqAgentsError, codec
from zmqagents.connection.connection import connect
from zmqagents.connection.target import target_of
from zmqagents.wire import messages
from zmqagents.wire.messages import Kind
from zmtp import Wire, connect_tcp, greeting

pytestmark = pytest.mark.timeout(60)

KEYS = Path(os.environ["ZMQAGENTS_KEYS"])
PACKAGE = Path(zmqagents.__file__).parent

# ---------------------------------------------------------------- the key store


def test_keys_are_for_their_owner_alone(server: RpcAgentServerLauncher) -> None:
    assert server.is_running
    paths = [KEYS, *KEYS.rglob("*")]
    assert any(path.name == "server.key" for path in paths)
    for path in paths:
        mode = path.stat().st_mode
        assert stat.S_IMODE(mode) == (0o700 if path.is_dir() else 0o600), path


def test_no_key_is_in_the_arguments_or_the_environment_of_a_host(server: RpcAgentServerLauncher) -> None:
    (secret,) = re.findall(r"^secret = (\S{40})$", (KEYS / "server.key").read_text(), re.MULTILINE)
    process = Path("/proc", str(server.pid))
    for name in ("cmdline", "environ"):
        assert secret.encode() not in (process / name).read_bytes()


# ---------------------------------------------------------------- other keys, none, and other users

CLIENTS = {
    "blocking": """
import sys, time
from zmqagents import RpcClient, AuthenticationError
client = RpcClient("localhost", int(sys.argv[1]), transport="tcp", timeout=20)
start = time.monotonic()
try:
    client.get_agent_list()
    end = "let in"
except Exception as exc:
    end = type(exc).__name__
""",
    "future": """
import sys, time
from zmqagents import RpcClient, AuthenticationError
client = RpcClient("localhost", int(sys.argv[1]), transport="tcp", timeout=20)
start = time.monotonic()
end = type(client.get_result("aaaaaaaaaaaaaaaa-1").exception()).__name__
""",
    "asyncio": """
import asyncio, sys, time
from zmqagents import AsyncRpcClient
async def main():
    async with AsyncRpcClient("localhost", int(sys.argv[1]), transport="tcp", timeout=20) as client:
        try:
            await client.get_agent_list()
            return "let in"
        except Exception as exc:
            return type(exc).__name__
start = time.monotonic()
end = asyncio.run(main())
""",
}
TELL = "\nimport json; print(json.dumps([end, time.monotonic() - start]))"


@pytest.mark.parametrize("kind", CLIENTS)
def test_another_key_store_is_refused_within_a_second(
    server: RpcAgentServerLauncher, kind: str, tmp_path: Path
) -> None:
    """That knows the host's key, so that it is its own which the host refuses."""
    keys = tmp_path / "keys"
    _other_store(keys, server.port or 0)
    end, took = hosts.output_of(CLIENTS[kind] + TELL, str(server.port), ZMQAGENTS_KEYS=str(keys))
    assert end == "AuthenticationError"
    assert took < 0.5 + LATE_S


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_key_store_that_takes_the_host_for_its_own_is_refused_within_a_second(
    server: RpcAgentServerLauncher, kind: str, tmp_path: Path
) -> None:
    end, took = hosts.output_of(
        CLIENTS[kind] + TELL,
        str(server.port),
        ZMQAGENTS_KEYS=str(tmp_path / "keys"),
        ZMQAGENTS_RUNTIME=str(_private(tmp_path)),
    )
    assert end == "AuthenticationError"
    assert took < 0.5 + LATE_S


@pytest.mark.parametrize("kind", CLIENTS)
def test_the_own_key_store_needs_no_set_up(server: RpcAgentServerLauncher, kind: str) -> None:
    end, took = hosts.output_of(CLIENTS[kind] + TELL, str(server.port))
    assert end == ("UnknownTask" if kind == "future" else "let in")
    assert took < 1.5 + LATE_S


def _other_store(path: Path, port: int) -> None:
    public = hosts.output_of(
        "import json\nfrom zmqagents.security.keys import KeyStore\n"
        "print(json.dumps(KeyStore.open().server_keypair().public))"
    )
    hosts.output_of(
        "import sys, json\nfrom zmqagents.security.keys import KeyStore\n"
        "KeyStore.open(sys.argv[1]).remember_host('localhost', int(sys.argv[2]), sys.argv[3])\nprint(json.dumps(None))",
        str(path), str(port), public,
    )  # fmt: skip


def _private(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir(mode=0o700)
    return path


def test_a_plain_client_gets_nothing_on_tcp(server: RpcAgentServerLauncher) -> None:
    with connect_tcp(server.port) as end, pytest.raises((ConnectionError, TimeoutError)):
        Wire(end).hello()
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.connect(f"tcp://127.0.0.1:{server.port}")
        dealer.send_multipart([messages.header(Kind.HELLO), codec.pack({"client": bytes(10), "versions": [1]})])
        assert not dealer.poll(300)


def test_what_a_stranger_is_told_is_no_more_than_a_greeting(server: RpcAgentServerLauncher) -> None:
    for mechanism in (b"NULL", b"PLAIN", b"CURVE", b"GSSAPI"):
        with connect_tcp(server.port) as end:
            end.sendall(greeting(mechanism))
            end.settimeout(0.2)
            heard = b""
            try:
                while data := end.recv(1000):
                    heard += data
            except (ConnectionError, TimeoutError):
                pass
        assert heard[12:17] in (b"CURVE", b"")  # "": the end came before it was read
        assert len(heard) <= 64 + 64  # and perhaps an ERROR that says nothing of the host
        assert b"localhost" not in heard


# It changes its user after the imports: another user may not be able to read this Python's files.
NOBODY = """
import asyncio, json, os, socket, sys, zmq.backend
import zmqagents.connection.connection, zmqagents.security.keys
from zmqagents import RpcClient
home = sys.argv[3]
os.environ.update(ZMQAGENTS_KEYS=home + "/keys", ZMQAGENTS_RUNTIME=home + "/run", HOME=home)
os.chdir(home)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
os.mkdir("run", 0o700)
ended = []
for transport in (None, "tcp", "ipc"):
    client = RpcClient("localhost", int(sys.argv[1]), transport=transport, timeout=5)
    try:
        client.get_agent_list()
        ended.append("let in")
    except Exception as exc:
        ended.append(type(exc).__name__)
    client.close()
try:
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(sys.argv[2])
    ended.append("let in")
except OSError as exc:
    ended.append(type(exc).__name__)
print(json.dumps(ended))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_unix_user_gets_neither_ipc_nor_tcp(server: RpcAgentServerLauncher) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as home:
        os.chown(home, 65534, 65534)
        ended = hosts.output_of(NOBODY, str(server.port), ipc_path(server), home)
    assert ended == ["AuthenticationError", "AuthenticationError", "HostUnreachable", "PermissionError"]


# ---------------------------------------------------------------- strangers among friends


@pytest.mark.parametrize("key", [{}, {"resume": None}, {"resume": b""}, {"resume": b"a key that is not it"}])
def test_a_stranger_who_says_hello_with_anothers_client_id_harms_it_not(
    server: RpcAgentServerLauncher, client: RpcClient, latch: AgentProxy, key: dict[str, Any]
) -> None:
    """The id is no secret: it is in every task id. The key with which a session goes on is one."""
    with RawPeer(server) as victim, RawPeer(server) as stranger:
        hello = {"client": victim.client_id, "versions": [1]}
        victim.send(messages.header(Kind.HELLO), codec.pack({**hello, "resume": os.urandom(16)}))
        victim.token = victim.receive()[0].token
        victim.call(1, latch.agent_id, "hold", "mine")
        latch.entered()
        stranger.send(messages.header(Kind.HELLO), codec.pack({**hello, **key}))
        assert stranger.hears_nothing(50)
        latch.release()
        head, (payload,) = victim.answer_to(1)
        assert (head.kind, codec.decode(payload)) == (Kind.RESULT, "mine")
        assert stranger.hears_nothing(50)
    assert client.is_alive()


@pytest.mark.parametrize("secret", [[{}] * 250_000, "a text", 7, bytes(65)])
def test_a_client_leaves_nothing_large_in_its_session(server: RpcAgentServerLauncher, secret: object) -> None:
    """A quarter of a MiB of empty maps would be 16 MiB of memory for as long as the client is connected."""
    with RawPeer(server) as stranger:
        hello = {"client": stranger.client_id, "versions": [1], "resume": secret}
        stranger.send(messages.header(Kind.HELLO), codec.pack(hello))
        assert stranger.hears_nothing(50)
        assert stranger.hello().kind == Kind.WELCOME


@pytest.mark.parametrize(
    "name", ["_secret", "__init__", "__class__", "__dict__", "__globals__", "_za_read", "__getattr__", "__reduce__"]
)
@pytest.mark.parametrize("flags", [0, messages.Flag.ATTRIBUTE, messages.Flag.STREAM])
def test_private_names_are_out_of_reach(
    server: RpcAgentServerLauncher, client: RpcClient, name: str, flags: int
) -> None:
    desk = client.create_agent(Desk)
    with RawPeer(server) as peer:
        peer.hello()
        peer.call(1, desk.agent_id, name, flags=flags)
        head, rest = peer.answer_to(1)
        assert head.kind == Kind.ERROR
        assert codec.unpack(rest[0], max_bytes=10_000)["type"].endswith(":UnknownMethod")


# ---------------------------------------------------------------- nothing that a peer sends is unpickled


def test_pickles_are_read_in_two_modules_only() -> None:
    """`child_main` and `children` read what their parent gave them on stdin, `pickling` what comes from either."""
    readers: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name.partition(".")[0] for alias in node.names} | {(getattr(node, "module", "") or "")}
                found = names & {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
                if found:
                    readers.setdefault(path.name, set()).update(found)
            name = node.func if isinstance(node, ast.Call) else None
            if isinstance(name, ast.Name) and name.id in ("eval", "exec", "compile", "__import__"):
                readers.setdefault(path.name, set()).add(name.id)
    assert set(readers) <= {"child_main.py", "children.py", "pickling.py", "loader.py"}, readers
    assert "eval" not in str(readers)


class _Trap:
    def __init__(self, proof: Path) -> None:
        self._proof = proof

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._proof),)


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[bytes]:
    """A pickle that leaves a proof when it is loaded."""
    proof = tmp_path / "loaded"
    pickle.loads(pickle.dumps(_Trap(tmp_path / "it works")))
    assert (tmp_path / "it works").exists()
    yield pickle.dumps(_Trap(proof))
    assert not proof.exists()


def test_no_place_of_any_message_unpickles(server: RpcAgentServerLauncher, client: RpcClient, trap: bytes) -> None:
    desk = client.create_agent(Desk)
    extensions = [b"\xc9" + len(trap).to_bytes(4, "big") + bytes([code]) + trap for code in range(128)]
    boxes = [b"\x92\xd4\x01" + bytes([letter]) + codec.pack(trap) for letter in range(128)]
    bodies = [b"\xc1\x92" + data + b"\x80" for data in (*extensions, *boxes, trap)]
    bodies += [trap, b"\xc1" + trap, codec.pack(trap), codec.encode_call((trap,), {}).payload]
    with RawPeer(server) as peer:
        peer.hello()
        call_id = 0
        for agent, method in (
            (desk.agent_id, "echo"),
            ("", "register_class"),
            ("", "create_agent"),
            ("", "set_model_configs"),
        ):
            for body in bodies:
                call_id += 1
                meta = codec.pack([agent, method, None, {"class": "Desk", "pickle": True}])
                peer.send(messages.header(Kind.CALL, call_id, peer.token), meta, body)
                assert peer.answer_to(call_id)[0].kind in (Kind.RESULT, Kind.ERROR)
        for kind in (Kind.HELLO, Kind.FETCH, Kind.CANCEL, Kind.CALL):
            for data in (trap, *extensions):
                peer.send(messages.header(kind, 1, peer.token), data, *([data] if kind == Kind.CALL else []))
    with within(5):
        assert desk.echo(1) == 1


def _false_host(path: str, reply: bytes, stop: threading.Event) -> None:
    """Says WELCOME to everybody, that it takes pickles, and gives ``reply`` to every call."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.bind(f"ipc://{path}")
        while not stop.is_set():
            if not router.poll(20):
                continue
            routing_id, first, *_ = router.recv_multipart()
            head = messages.parse_header(first)
            if head.kind == Kind.HELLO:
                welcome = {"server_id": "false", "pickle": True, "max_message_bytes": 1_000_000}
                answer = [messages.header(Kind.WELCOME, 0, 1), codec.pack(welcome)]
            else:
                answer = [messages.header(Kind.RESULT, head.call_id, 1), reply]
            router.send_multipart([routing_id, *answer])


def test_no_reply_of_a_false_host_is_unpickled(tmp_path: Path) -> None:
    """A client reads pickles from a host that this program has started, whatever another one says of itself.

    References carry addresses: an agent that gets a proxy as an argument connects to where its caller wants.
    """
    proof = tmp_path / "loaded"
    value = codec.encode(threading.Lock(), pickler=lambda _: pickle.dumps(_Trap(proof))).payload
    with tempfile.TemporaryDirectory(dir="/tmp") as home:
        stop = threading.Event()
        thread = threading.Thread(target=_false_host, args=(f"{home}/s", value, stop))
        thread.start()
        try:
            link = connect(target_of(f"ipc:{home}/s"))
            with (
                RpcClient(link=link, timeout=5) as client,
                contextlib.suppress(ZmqAgentsError, TypeError, AttributeError),
            ):
                client.get_agent_list()  # what it ends in is another matter
        finally:
            stop.set()
            thread.join()
            link.close()
    assert not proof.exists()
