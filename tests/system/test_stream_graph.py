"""Agents that read each other's streams: a wait for an item or for a credit is never taken for a deadlock."""

from __future__ import annotations

import asyncio
import os
import random
import time
from typing import Any

import pytest

from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, async_func

ROUNDS = int(os.environ.get("ZMQAGENTS_STREAM_ROUNDS", "25"))  # six chains of two agents each


class Chain(AgentBase):
    def count(self, n: int, pause_s: float) -> Any:
        for i in range(n):
            if pause_s and random.random() < 0.1:
                time.sleep(random.random() * pause_s)
            yield i

    async def acount(self, n: int, pause_s: float) -> Any:
        for i in range(n):
            if pause_s and random.random() < 0.1:
                await asyncio.sleep(random.random() * pause_s)
            yield i

    @async_func
    def total(self, other: Any, method: str, n: int, their_pause_s: float, my_pause_s: float) -> int:
        result = 0
        for i in getattr(other, method)(n, their_pause_s):
            if my_pause_s and random.random() < 0.1:
                time.sleep(random.random() * my_pause_s)
            result += i
        return result

    async def atotal(self, other: Any, method: str, n: int, their_pause_s: float, my_pause_s: float) -> int:
        result = 0
        async for i in getattr(other, method)(n, their_pause_s):
            if my_pause_s and random.random() < 0.1:
                await asyncio.sleep(random.random() * my_pause_s)
            result += i
        return result


@pytest.mark.parametrize("capacity", [1, 4])
def test_readers_and_producers_of_every_speed_get_through_without_a_false_alarm(capacity: int) -> None:
    launcher = RpcAgentServerLauncher(custom_agent_classes=[Chain], capacity=capacity)
    with launcher as server, RpcClient(server.host, server.port) as client:
        for _ in range(ROUNDS):
            chains = []
            for _ in range(6):
                reader, producer = client.create_agent(Chain), client.create_agent(Chain)
                n = random.choice([1, 15, 16, 17, 100, 300])
                call = getattr(reader, random.choice(["total", "atotal"]))
                pauses = random.choice([0, 0.002]), random.choice([0, 0.002])
                chains.append((n, call(producer, random.choice(["count", "acount"]), n, *pauses)))
            assert [result.result(30) for _, result in chains] == [n * (n - 1) // 2 for n, _ in chains]
            client.delete_all_agent()
        assert client.get_server_info()["calls"]["deadlocks"] == 0
