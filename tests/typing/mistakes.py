"""Thirty mistakes that both type checkers must find, one on each line that ends in ``# wrong``, and none elsewhere."""

from __future__ import annotations

import asyncio

from proxies import Hit, Plain, Reader

from zmqagents import AgentBase, RpcClient, Stream, as_completed, method, wait


def creating(client: RpcClient) -> None:
    client.create_agent(Reader)  # wrong: the corpus is missing
    client.create_agent(Reader, 5)  # wrong: the corpus is a text
    client.create_agent(Reader, "corpus", limits=3)  # wrong: limit
    client.create_agent(Reader, "corpus", limit="3")  # wrong: a number
    client.create_agent(7)  # wrong: no class
    client.get_agent("r1", "Reader")  # wrong: the class, not its name
    client.options(agent_id="r1").create_agent(Reader, "corpus", limit="3")  # wrong: a number
    client.create_agnet(Reader, "corpus")  # wrong: create_agent
    Reader("corpus").to_dist("localhost", "7411")  # wrong: a port is a number
    plain: Plain = client.create_agent(Reader, "corpus")  # wrong: another class
    plain.greet("x")


def calling(reader: Reader) -> None:
    reader.laod("x")  # wrong: load
    reader.load(5)  # wrong: a text
    reader.load()  # wrong: no path
    reader.load(file="x")  # wrong: path
    reader.load("x").result()  # wrong: a plain method gives its value
    reader.reply(question=3)  # wrong: a text
    reader.reply("x", n=3)  # wrong: k
    reader.fetch("x").decode()  # wrong: a result, not its value
    reader.fetch("x").reslt()  # wrong: result
    reader.fetch("x").result(timeout="3")  # wrong: seconds
    reader.fetch.with_timeout("3")  # wrong: seconds
    reader.fetch.aio(3)  # wrong: a text
    text: str = reader.fetch("x").result()  # wrong: bytes
    print(text)


def reading(reader: Reader) -> None:
    for hit in reader.hits("x"):
        print(hit.scroe)  # wrong: score
    hits: Stream[str] = reader.hits("x")  # wrong: of Hit
    wait([hits])  # wrong: a stream is no result
    for done in as_completed([reader.reply("x")]):
        print(done.result().path)  # wrong: a list of them


async def awaiting(reader: Reader) -> None:
    number: int = await reader.fetch("x")  # wrong: bytes
    async for line in reader.lines("x"):
        print(line + 1, number)  # wrong: a text
    hits = await asyncio.gather(reader.reply("x"), reader.reply("y"))
    print(hits[0][0] == Hit("x", 1))


class Wrong(AgentBase, isolation="fork"):  # wrong: thread, process, pool
    @method
    async def go(self) -> int:
        return "x"  # wrong: a number
