"""A host that does not keep to the protocol: its clients get a typed error, soon, and never wait for nothing."""

from __future__ import annotations

import contextlib
import inspect
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from actors import within
from zmqagents import RpcClient, ZmqAgentsError, codec
from zmqagents.client.result import AsyncResult
from zmqagents.connection.connection import connect
from zmqagents.connection.target import Target
from zmqagents.errors import MessageTooLarge, RemoteProtocolError
from zmqagents.wire import messages
from zmqagents.wire.messages import Code, Kind

pytestmark = pytest.mark.timeout(60)

GOOD = {"server_id": "liar", "epoch": "e"}
TOKEN = 7
Answer = Callable[[messages.Header], list[bytes]]


@contextlib.contextmanager
def liar(welcome: Any, answer: Answer) -> Iterator[RpcClient]:
    """A client of a host that says WELCOME with ``welcome``, and to each call what ``answer`` gives."""
    stop, bound = threading.Event(), threading.Event()
    with tempfile.TemporaryDirectory(prefix="za", dir="/tmp") as place:
        path = str(Path(place, "liar.ipc"))

        def serve() -> None:
            with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
                router.linger = 0
                router.bind(f"ipc://{path}")
                bound.set()
                while not stop.is_set():
                    if router.poll(20):
                        peer, *parts = router.recv_multipart()
                        head = messages.parse_header(parts[0])
                        if head.kind == Kind.HELLO:
                            said = [messages.header(Kind.WELCOME, head.call_id, TOKEN), codec.pack(welcome)]
                            router.send_multipart([peer, *said])
                        elif head.kind == Kind.CALL or head.kind == Kind.FETCH:
                            router.send_multipart([peer, *answer(head)])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            bound.wait(5)
            with RpcClient(link=connect(Target("", None, ipc=path)), timeout=None) as client:
                yield client
        finally:
            stop.set()
            thread.join()


def _result(body: bytes | None) -> Answer:
    def answer(head: messages.Header) -> list[bytes]:
        frame = messages.header(Kind.RESULT, head.call_id, TOKEN)
        return [frame] if body is None else [frame, body]

    return answer


def _frames(*frames: bytes) -> Answer:
    return lambda head: list(frames)


def _bare(kind: int) -> Answer:
    return lambda head: [messages.header(kind, head.call_id, TOKEN)]


@pytest.mark.parametrize(
    "welcome",
    [
        [], None, 1, {**GOOD, "max_calls": "x"}, {**GOOD, "max_calls": 0}, {**GOOD, "max_calls": -5},
        {**GOOD, "max_message_bytes": 0}, {**GOOD, "max_message_bytes": None}, {**GOOD, "max_structured_bytes": "1"},
        {**GOOD, "max_open_bytes": []},
        {**GOOD, "max_timeout_s": "soon"}, {**GOOD, "max_timeout_s": float("nan")}, {**GOOD, "max_timeout_s": -1},
        {**GOOD, "epoch": 5}, {**GOOD, "server_id": ["a"]}, {**GOOD, "server_id": "a\x1b[2J"},
    ],
)  # fmt: skip
def test_a_welcome_that_makes_no_sense_is_an_error_at_once(welcome: Any) -> None:
    with liar(welcome, _result(codec.pack(1))) as client, within(3):
        with pytest.raises(RemoteProtocolError, match="WELCOME"):
            client.get_server_info()
        with pytest.raises(RemoteProtocolError, match="WELCOME"):  # and so is the next
            client.get_agent("a")


@pytest.mark.parametrize(
    "answer",
    [
        _bare(Kind.PENDING), _bare(Kind.PONG), _result(None), _bare(Kind.ERROR), _result(b"\xc1\xff"), _result(b""),
        _result(codec.pack(1)), _result(codec.pack([])), _result(codec.pack(["a", "b", "c", b"\xc1"])),
        _result(codec.pack(["a", "b", "c", codec.pack({"f": [1, 2, 3]})])), _result(codec.pack(["\x1b", 2, 3, 4])),
    ],
    ids=range(11),
)  # fmt: skip
def test_an_answer_that_makes_no_sense_is_an_error_at_once(answer: Answer) -> None:
    requests: list[Callable[[RpcClient], Any]] = [
        lambda client: client.get_agent("a"),
        lambda client: client.create_agent("Reader"),
        lambda client: client.get_agent_list()[0]["agent_id"],
        lambda client: client.get_server_info()["server_id"],
    ]
    with liar(GOOD, answer) as client, within(5):
        for request in requests:
            with pytest.raises((ZmqAgentsError, LookupError)):  # an empty list or map is an answer
                request(client)


@pytest.mark.parametrize("named", ["StopIteration", "StopAsyncIteration", "ValueError", "ExceptionGroup"])
def test_an_error_of_the_host_is_none_that_a_loop_takes_for_its_end(named: str) -> None:
    body = codec.pack({"type": f"builtins:{named}", "message": "m"})

    def answer(head: messages.Header) -> list[bytes]:
        return [messages.header(Kind.ERROR, head.call_id, TOKEN, code=Code.HOST_ERROR), body]

    with liar(GOOD, answer) as client, within(3), pytest.raises(ZmqAgentsError):
        client.get_agent("a")


@pytest.mark.parametrize(
    "answer",
    [_frames(b"\xff" * 50), _frames(b""), _frames(b"ZA\x09" + bytes(25)), _bare(99), _bare(Kind.CHUNK)],
    ids=range(5),
)
def test_a_message_that_does_not_fit_the_protocol_is_an_error_at_once(answer: Answer) -> None:
    with liar(GOOD, answer) as client, within(5):
        for _ in range(2):
            with pytest.raises(RemoteProtocolError):
                client.get_server_info()
        with pytest.raises(RemoteProtocolError):
            client.get_result("mfzwizltoqqhk4tf-17").result()


@pytest.mark.parametrize("answer", [_bare(Kind.PENDING), _bare(Kind.PONG), _result(None), _bare(Kind.ERROR)])
def test_an_answer_to_a_call_of_an_agent_that_makes_no_sense_is_an_error_at_once(answer: Answer) -> None:
    methods = codec.pack({"echo": ["value", "(self, x)", ""], "later": ["future", "(self, x)", ""]})
    described = codec.pack(["a", "m:A", "", methods])
    is_first = True

    def answers(head: messages.Header) -> list[bytes]:
        nonlocal is_first
        if is_first:
            is_first = False
            return _result(described)(head)
        return answer(head)

    with liar(GOOD, answers) as client, within(5):
        agent = client.get_agent("a")
        with pytest.raises(RemoteProtocolError):
            agent.echo(1)
        with pytest.raises(RemoteProtocolError):
            agent.later(1).result()


def test_a_result_that_would_take_too_much_memory_is_refused_unbuilt() -> None:
    methods = codec.pack({"echo": ["value", "(self, x)", ""]})
    described = codec.pack(["a", "m:A", "", methods])
    maps = b"\xdd" + (15 << 20).to_bytes(4, "big") + b"\x80" * (15 << 20)
    answers = iter((_result(described), _result(maps), _result(maps + bytes(2 << 20))))
    with liar(GOOD, lambda head: next(answers)(head)) as client, within(15):
        agent = client.get_agent("a")
        for _ in range(2):
            with pytest.raises(MessageTooLarge, match="max_structured_bytes"):
                agent.echo(1)


def test_a_fetch_that_gets_nothing_it_could_be_is_an_error_at_once() -> None:
    with liar(GOOD, _bare(Kind.PONG)) as client, within(5):
        result: AsyncResult[Any] = client.get_result("a-1", 5)
        with pytest.raises(RemoteProtocolError):
            result.result(5)


@pytest.mark.parametrize("text", ["(" * 5000, "(self, x=" + "-" * 100_000 + "1)", "(self, x=" + "[" * 300 + "]" * 300])
def test_a_signature_that_python_cannot_read_is_one_that_says_nothing(text: str) -> None:
    described = codec.pack(["a", "m:A", "", codec.pack({"f": ["value", text, ""]})])
    with liar(GOOD, _result(described)) as client, within(10):
        agent = client.get_agent("a")
        assert str(inspect.signature(agent.f)) == "(*args, **kwargs)"
