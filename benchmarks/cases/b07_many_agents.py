"""B7: 10,000 agents on one host, made one by one: how many a second, and how much memory beside the object itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial

import psutil

from zmqagents import AgentBase, RpcClient

from .. import ours
from . import Measurement, Options, run, seconds_of

AGENTS = 10_000
WARM_UP = 500  # pages that the host shares with its parent are touched, and its arenas exist


class Small(AgentBase):
    """An agent with nothing of its own."""

    def nothing(self) -> None:
        return


def object_bytes() -> int:
    """What one instance takes by itself."""
    agent = Small()
    return sys.getsizeof(agent) + sys.getsizeof(vars(agent))


def rounds(options: Options) -> Iterator[list[Measurement]]:
    agents = options.scaled(AGENTS, 2_000)
    for number in range(options.rounds):
        with ours.host(options, Small) as (server, client):
            process = psutil.Process(server.pid)
            make(client, WARM_UP)
            before = process.memory_info().rss
            took_s = seconds_of(partial(make, client, agents))
            each = (process.memory_info().rss - before) / agents - object_bytes()
        figures = {"agents_per_s": agents / took_s, "bytes_each": each}
        yield [{"subject": "zmqagents", "round": number, "figures": figures}]


def make(client: RpcClient, count: int) -> None:
    for _ in range(count):
        client.create_agent(Small)


if __name__ == "__main__":
    run(rounds)
