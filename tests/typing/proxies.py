"""What type checkers know of proxies and results. Never run: `test_checkers` has it read by mypy and by pyright."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from typing_extensions import assert_type

from zmqagents import (
    AgentBase,
    AsyncResult,
    AsyncRpcClient,
    RpcClient,
    Stream,
    agent,
    as_completed,
    async_func,
    concurrent,
    idempotent,
    method,
    stream_func,
    sync_func,
    wait,
)


@dataclass
class Hit:
    path: str
    score: float


class Reader(AgentBase):
    def __init__(self, corpus: str, *, limit: int = 10) -> None:
        super().__init__(corpus)
        self.limit = limit

    def load(self, path: str) -> int:
        return len(path)

    @async_func
    def reply(self, question: str, k: int = 3) -> list[Hit]:
        return []

    @method
    async def fetch(self, url: str) -> bytes:
        return b""

    @method
    def hits(self, question: str) -> Iterator[Hit]:
        yield Hit("", 0)

    @method
    async def lines(self, path: str) -> AsyncIterator[str]:
        yield ""

    @method
    def count(self) -> int:
        return 1

    @stream_func
    def parts(self) -> Iterator[bytes]:
        return iter([])

    @sync_func
    async def at_once(self, x: int) -> str:
        return ""

    @concurrent
    def progress(self) -> float:
        return 0.5

    @idempotent
    @async_func
    def look(self, path: str) -> bool:
        return True


class Embedder(AgentBase, isolation="process", memory_mb=2048, max_restarts=3, env={"A": "1"}, persist=None):
    def embed(self, text: str) -> list[float]:
        return []


@agent(max_concurrency=4, isolation="process", on_timeout="kill", persist="idle")
class Plain:
    def greet(self, name: str) -> str:
        return name


def proxies(client: RpcClient) -> None:
    reader = client.create_agent(Reader, "corpus", limit=3)
    assert_type(reader, Reader)
    assert_type(client.create_agent(Reader, "corpus", agent_id="r1"), Reader)
    assert_type(client.create_agent(Reader, "corpus", agent_options={"max_concurrency": 2}), Reader)
    assert_type(client.options(agent_id="r1", max_concurrency=2).create_agent(Reader, "corpus", limit=1), Reader)
    assert_type(client.options(isolation="pool", persist="call").create_agent(Embedder), Embedder)
    assert_type(client.options(on_busy="reject").create_agent("Reader", "corpus"), Any)
    assert_type(client.create_agent(Plain), Plain)
    assert_type(client.create_agent(Plain).greet("ann"), str)
    assert_type(client.create_agent("Reader", "corpus", agent_id="r2"), Any)
    assert_type(client.get_agent("r1"), Any)
    assert_type(client.get_agent("r1", Reader), Reader)
    assert_type(Reader("corpus").to_dist("localhost", 7411), Reader)
    assert_type(Reader("corpus").to_dist(), Reader)
    assert_type(reader.agent_id, str)
    assert_type(reader.limit, int)


def calls(reader: Reader) -> None:
    assert_type(reader.load("x"), int)
    assert_type(reader.reply("x", k=4), AsyncResult[list[Hit]])
    assert_type(reader.reply("x").result(timeout=3), list[Hit])
    assert_type(reader.reply("x").exception(), BaseException | None)
    assert_type(reader.fetch("x"), AsyncResult[bytes])
    assert_type(reader.fetch("x").result(), bytes)
    assert_type(reader.look("x"), AsyncResult[bool])
    assert_type(reader.count(), int)
    assert_type(reader.count.aio(), AsyncResult[int])
    assert_type(reader.at_once(1), str)
    assert_type(reader.progress(), float)
    assert_type(reader.fetch.with_timeout(3)("x"), AsyncResult[bytes])
    assert_type(reader.count.with_timeout(None)(), int)


def streams(reader: Reader) -> None:
    assert_type(reader.hits("x"), Stream[Hit])
    assert_type(reader.lines("x"), Stream[str])
    assert_type(reader.parts(), Stream[bytes])
    with reader.hits("x") as stream:
        for hit in stream:
            assert_type(hit, Hit)


def several(reader: Reader) -> None:
    results = [reader.fetch("x"), reader.fetch("y")]
    for result in as_completed(results, timeout=3):
        assert_type(result, AsyncResult[bytes])
    done, _ = wait(results)
    assert_type(done, set[AsyncResult[bytes]])
    assert_type(wait(results).not_done, set[AsyncResult[bytes]])


async def awaited(reader: Reader) -> None:
    assert_type(await reader.reply("x"), list[Hit])
    async for line in reader.lines("x"):
        assert_type(line, str)
    async with AsyncRpcClient("localhost", 7411) as client:
        assert_type(await client.get_server_info(), dict[str, Any])
        found: Any = await client.create_agent(Reader, "corpus")
        await found.load("x")
