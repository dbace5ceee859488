"""Small messages that would be large, deep or slow to read: msgpack's lengths and depths, and the values of the codec.

Each comes as the body of a call, which a worker decodes, and as the list of a call, which the router thread decodes.
It is answered or dropped at once, on little memory, and the host serves on.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator

import psutil
import pytest

from actors import Desk, host
from raw_peer import RawPeer
from scale import Memory
from zmqagents import RpcAgentServerLauncher, RpcClient, codec
from zmqagents.wire import messages
from zmqagents.wire.messages import Kind

pytestmark = pytest.mark.timeout(60)

AT_ONCE_S = 5.0  # of the processor, for three calls; less than 1 s on two quiet cores
DEPTHS = [100, 129, 1000, 1025, 100_000]


def _ext(code: int, data: bytes) -> bytes:
    return b"\xc9" + struct.pack(">IB", len(data), code) + data


MARK = {letter: b"\xd4\x01" + letter for letter in (bytes([i]) for i in b"tsfdrlqbagoxAT")}
LENGTHS = [
    b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdd\x7f\xff\xff\xff", b"\xde\xff\xff", b"\xdf\xff\xff\xff\xff",
    b"\xc5\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xda\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x03",
    b"\xc8\xff\xff\x01", b"\xc7\xff\x05", b"\x9f", b"\x8f", b"\xbf", b"\xd8\x01",
]  # fmt: skip
BOMBS = {
    **{f"length {data.hex()}": data for data in LENGTHS},
    **{f"length {data.hex()} inside": b"\x92\x91" + data + b"\x00" * 100 for data in LENGTHS},
    **{f"lists {depth} deep": b"\x91" * depth + b"\xc0" for depth in DEPTHS},
    **{f"maps {depth} deep": b"\x81\xa0" * depth + b"\xc0" for depth in DEPTHS},
    **{f"tuples {depth} deep": (b"\x92" + MARK[b"t"]) * depth + b"\xc0" for depth in DEPTHS},
    **{f"exceptions {depth} deep": (b"\x93" + MARK[b"x"] + b"\x80") * depth + b"\xc0" for depth in (5, 50, 1000)},
    "keys of keys": b"\x81" * 1000 + b"\xc0" * 1001,
    "a list of a million lists of 65535": b"\xdd\x00\x0f\x42\x40" + b"\xdc\xff\xff" * 1000,
    "a number of a megabyte": _ext(3, b"\x7f" * 1_000_000),
    "a Decimal of a megabyte": _ext(8, b"9" * 1_000_000),
    "every extension with a megabyte": b"\x9f" + b"".join(_ext(code, b"1" * 70_000) for code in range(1, 16)),
    "every extension, empty": b"\xdc\x00\x80" + b"".join(_ext(code, b"") for code in range(128)),
    "every extension, one byte": b"\xdc\x00\x80" + b"".join(_ext(code, b"\xff") for code in range(128)),
    "a Decimal with a huge exponent": b"\x91" + _ext(8, b"1e999999999999999999"),
    "a fraction by zero": b"\x93" + MARK[b"q"] + b"\x01\x00",
    "an array of 2^60 items": b"\x96" + MARK[b"a"] + b"\xa3<f8\x91\xcf\x10" + bytes(7) + b"\xa1C\xc4\x08" + bytes(8),
    "an array of 2^31 x 2^31 x 0": b"\x96"
    + MARK[b"a"]
    + b"\xa3<f8\x93\xce\x80\x00\x00\x00\xce\x80\x00\x00\x00\x00\xa1C\xc4\x00",
    "an array of objects": b"\x96" + MARK[b"a"] + b"\xa2|O\x91\x01\xa1C\xc4\x08" + bytes(8),
    "an array of a dtype of a gigabyte": b"\x96" + MARK[b"a"] + b"\xab<V999999999\x91\x01\xa1C\xc4\x00",
    "an array of a dtype that nests": b"\x96" + MARK[b"a"] + b"\x91\x92\xa1x" * 200 + b"\xa2<i\x91\x01\xa1C\xc4\x00",
    "a deque of maxlen 2^63": b"\x93" + MARK[b"d"] + b"\xcf\x80" + bytes(7) + b"\x90",
    "a buffer that is not there": b"\x92" + MARK[b"b"] + b"\xcd\xff\xff",
    "an object of a class of the standard library": b"\x93" + MARK[b"o"] + b"\xa9os:system\xa2id",
    "marks of nothing": b"\x9e" + b"".join(MARK.values()),
    "a million empty lists": b"\xdd\x00\x0f\x42\x40" + b"\x90" * 1_000_000,
    "100,000 maps": b"\xdd\x00\x01\x86\xa0" + b"\x81\xa1a\x01" * 100_000,
}


@pytest.fixture(scope="module")
def server() -> Iterator[RpcAgentServerLauncher]:
    with host(capacity=2, max_message_bytes=4_000_000) as launcher:
        yield launcher


@pytest.fixture(scope="module")
def peer(server: RpcAgentServerLauncher) -> Iterator[RawPeer]:
    with RawPeer(server) as peer:
        peer.hello()
        yield peer


@contextlib.contextmanager
def computing_at_most(server: RpcAgentServerLauncher, seconds: float) -> Iterator[None]:
    """The block keeps the host busy for no longer. On the clock it may be longer, while others use the processors."""
    process = psutil.Process(server.pid)
    before = process.cpu_times()
    yield
    after = process.cpu_times()
    took = after.user + after.system - before.user - before.system
    assert took <= seconds, f"took {took:.3f} s, limit {seconds} s"


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_in_the_body_of_a_call(
    server: RpcAgentServerLauncher, client: RpcClient, peer: RawPeer, name: str
) -> None:
    desk, memory = client.create_agent(Desk), Memory(server.pid)
    meta = codec.pack([desk.agent_id, "echo", None, None])
    with computing_at_most(server, AT_ONCE_S):
        for call_id, body in (
            (1, BOMBS[name]),
            (2, b"\xc1" + BOMBS[name]),
            (3, b"\xc1\x92\x91" + BOMBS[name] + b"\x80"),
        ):
            peer.send(messages.header(Kind.CALL, call_id, peer.token), meta, body)
            head, _ = peer.answer_to(call_id)
            assert head.kind in (Kind.RESULT, Kind.ERROR)
        assert desk.echo("served") == "served"
    assert memory.grown < 128


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_in_the_list_of_a_call(
    server: RpcAgentServerLauncher, client: RpcClient, peer: RawPeer, name: str
) -> None:
    desk, memory = client.create_agent(Desk), Memory(server.pid)
    with computing_at_most(server, AT_ONCE_S):
        for meta in (
            BOMBS[name],
            b"\x94\xa4Desk\xa4echo\xc0" + BOMBS[name],
            b"\x94" + BOMBS[name] + b"\xa4echo\xc0\xc0",
        ):
            peer.send(messages.header(Kind.CALL, 1, peer.token), meta, codec.encode_call((), {}).payload)
        peer.call(9, desk.agent_id, "echo", "served")
        assert peer.answer_to(9)[0].kind == Kind.RESULT
    assert memory.grown < 64
