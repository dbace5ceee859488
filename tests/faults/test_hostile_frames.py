"""Messages made from the frame table of ``frames.py``, by Hypothesis: right in most places and wrong in some.

Whatever comes, the session goes on, what is refused was not run, no other client notices, and no handler of the host
failed: that would be one line in its log, "could not be handled" or "could not be carried out".
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

import hosts
from actors import Desk, Latch, Node, host, within
from raw_peer import RawPeer
from scale import Memory, pick
from zmqagents import RpcAgentServerLauncher, RpcClient, codec
from zmqagents.wire import messages as frames
from zmqagents.wire.messages import Kind

pytestmark = pytest.mark.timeout(pick(60, 1200))

EXAMPLES = pick(60, 3000)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("host") / "log"


@pytest.fixture(scope="module")
def server(log: Path) -> Iterator[RpcAgentServerLauncher]:
    """A host that writes its stderr to `log`: a child inherits descriptor 2."""
    kept = os.dup(2)
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 2)
    try:
        stack = contextlib.ExitStack()
        launcher = stack.enter_context(host(capacity=4, max_message_bytes=2_000_000, max_timeout_seconds=0.3))
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    with stack:
        yield launcher


@pytest.fixture(scope="module")
def agents(client: RpcClient) -> list[str]:
    """Real ones: a message that hits nothing proves little."""
    return [client.create_agent(cls, agent_id=cls.__name__).agent_id for cls in (Desk, Latch, Node)]


# ---------------------------------------------------------------- what may stand where

numbers = st.sampled_from([0, 1, 2, 3, 5, 255, 2**16, 2**31, 2**32, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)
texts = st.sampled_from(
    ["", "Desk", "Latch", "Node", "nobody", "x" * 255, "x" * 256, "\0", "\ud800", "é", "../..", "_y"]
)
methods = st.sampled_from(
    ["bump", "echo", "later", "soon", "nothing", "count", "loud", "broken", "unsendable", "reply", "numbers",
     "numbers_on_loop", "entered", "mark", "value", "leaf", "__init__", "__class__", "_secret", "_private", "",
     *(op for name, op in vars(frames.Op).items() if name.isupper() and name not in ("STOP", "DELETE", "DELETE_ALL"))],
)  # fmt: skip
ids = st.sampled_from(
    ["aaaaaaaaaaaaaaaa-1", "x", "", "a-1-2", "x" * 255, "-", "-1", "aaaaaaaaaaaaaaaa-99999999999999999999"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | texts | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts | st.integers(0, 9), inner, max_size=4),
    max_leaves=8,
)
options = st.none() | values | st.fixed_dictionaries(
    {},
    optional={
        "chain": st.lists(ids, max_size=5) | values,
        "far": st.dictionaries(ids, st.tuples(texts, st.sampled_from(["127.0.0.1:9", "ipc:/nowhere", "", ":", "x:y"]))
                               .map(list), max_size=3) | values,
        "id": texts | values, "class": st.sampled_from(["Desk", "Latch", "Nope", "", "os:system"]) | values,
        "max_concurrency": values, "reentrant": values, "on_busy": values, "name": values,
        "isolation": st.sampled_from(["thread", "pool", "fork"]) | values, "memory_mb": values, "env": values,
        "max_restarts": values, "on_timeout": values, "persist": values, "lifetime": values, "idle_s": values,
        "grace_s": values,
        "items": values, "exclusive": values,
    },
)  # fmt: skip
metas = (
    st.tuples(texts, methods, st.none() | st.lists(ids, max_size=4) | values, options).map(list)
    | st.tuples(st.just(""), methods, st.none(), options).map(list)
    | values
)
good_bodies = st.sampled_from([((), {}), ((1,), {}), ((b"x",), {"x": 1}), (([1, {2}],), {}), ((range(3), None), {})])
broken = st.binary(max_size=60) | st.sampled_from(
    [b"", b"\xc1", b"\xc1\x92", b"\x91" * 3000, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff",
     b"\xc6\xff\xff\xff\xff",
     b"\xc9\xff\xff\xff\xff\x01", b"\xc1\xdc\x00\x02\xc7\x01\x01o\xa1x\xc0", b"\xd9\xff", b"\xc1\xd4\x03\x00"]
)  # fmt: skip


def _body(given: tuple[Any, Any]) -> list[bytes]:
    encoded = codec.encode_call(*given)
    return [encoded.payload, *map(bytes, encoded.buffers)]


bodies = good_bodies.map(_body) | broken.map(lambda data: [data]) | st.lists(broken, max_size=5)


def _packed(value: Any) -> bytes:
    try:
        return codec.pack(value)
    except Exception:  # what our own packer refuses: as near to it as may be
        return b"\xc0"


@st.composite
def messages(draw: Any) -> Any:
    """A function from the token of a session to the frames of a message."""
    kind = draw(st.sampled_from([int(kind) for kind in Kind]) | st.integers(0, 255))
    if kind == Kind.BYE and draw(st.integers(0, 3)):
        kind = int(Kind.CALL)
    call_id, flags, code = draw(numbers), draw(st.integers(0, 15) | st.integers(0, 65_535)), draw(st.integers(0, 3))
    time_ms = draw(st.sampled_from([0, 1, 50, 2**32 - 1]))
    token = draw(st.sampled_from([None, None, None, None, None, 0, 1, 2**64 - 1]))
    rest: list[bytes] = []
    if kind == Kind.CALL or draw(st.integers(0, 9)) == 0:
        rest = [draw(metas.map(_packed) | broken), *draw(bodies)]
    elif kind in (Kind.FETCH, Kind.CANCEL):
        rest = [draw((ids | values).map(_packed) | broken)]
    elif kind == Kind.HELLO:
        client = draw(st.binary(min_size=10, max_size=10) | values)
        rest = [
            _packed({"client": client, "versions": draw(values), **draw(st.just({}) | st.just({"resume": b"x" * 16}))})
        ]
    damage = draw(st.sampled_from([None] * 12 + ["cut", "flip", "drop", "twice", "long", "join", "join", "join"]))
    place, byte = draw(st.integers(0, 27)), draw(st.integers(0, 255))
    length = draw(st.none() | st.integers(0, 65_535))  # of the list in a CALL of one frame; None: the right one
    longer = draw(st.sampled_from([0] * 5 + [33_000, 70_000]))  # such frames are read in another way, and have no hash

    def make(session_token: int) -> list[bytes]:
        head = frames.header(
            kind, call_id, session_token if token is None else token, flags=flags, code=code, time_ms=time_ms
        )
        parts = [head, *rest]
        if damage == "cut":
            parts[0] = head[:place]
        elif damage == "flip":
            parts[0] = head[:place] + bytes([byte]) + head[place + 1 :]
        elif damage == "drop":
            parts = parts[1:] or [b""]
        elif damage == "join":
            meta = rest[0] if rest else b""
            said = min(len(meta), 65_535) if length is None else length
            parts = [head + said.to_bytes(2, "big") + b"".join(rest[:2]) + b"\xc0" * longer, *rest[2:]]
        elif damage == "long":
            parts[place % len(parts)] += b"\xc0" * longer
        elif damage == "twice":
            parts = [*parts, *parts]
        return parts

    return make


@hypothesis.settings(
    max_examples=EXAMPLES, deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)  # fmt: skip
@hypothesis.given(sent=st.lists(messages(), min_size=1, max_size=30))
def test_whatever_a_peer_sends_its_next_good_request_is_answered(
    server: RpcAgentServerLauncher, client: RpcClient, agents: list[str], log: Path, sent: list[Any]
) -> None:
    with RawPeer(server) as peer:
        peer.hello()
        for make in sent:
            peer.send(*make(peer.token))
        peer.say_hello()  # it may have said BYE
        while True:
            head, _ = peer.receive()
            if head.kind == Kind.WELCOME:
                peer.token = head.token
                peer.call(77_777, "", "get_agent_list")
            elif head.call_id == 77_777 and head.kind == Kind.RESULT:
                break
    assert server.is_running
    text = log.read_text(errors="replace")
    assert "could not be" not in text, text[-4000:]
    assert "Traceback" not in text, text[-4000:]


def test_after_all_that_the_host_is_as_it_was(
    server: RpcAgentServerLauncher, client: RpcClient, agents: list[str], log: Path
) -> None:
    with within(2):
        assert client.get_agent("Node").value() == "value"
    client.get_agent("Latch").release()

    def is_idle() -> bool:
        info = client.get_server_info()
        return (info["calls_open"], info["running"], info["waiting"]) == (0, 0, 0)

    assert hosts.eventually(is_idle, 5), client.get_server_info()
    with RawPeer(server) as peer:
        peer.send(b"malformed")
        assert hosts.eventually(lambda: "malformed" in log.read_text(errors="replace"), 5)
    assert len(log.read_text(errors="replace").splitlines()) < 200
    assert Memory(server.pid).grown < 100
