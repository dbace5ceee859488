"""`as_server result --no-wait` says at once that a result is not there yet."""

from __future__ import annotations

from typing import Any

from hosts import as_server
from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, async_func


class Slow(AgentBase):
    def __init__(self) -> None:
        self.opened = False

    @async_func
    async def hold(self) -> str:
        import asyncio

        while not self.opened:
            await asyncio.sleep(0.01)
        return "there"

    async def open(self) -> None:
        self.opened = True


def test_no_wait_exits_6_while_a_result_is_not_there_and_wait_brings_it() -> None:
    with RpcAgentServerLauncher(custom_agent_classes=[Slow]) as server, RpcClient(server.host, server.port) as client:
        slow: Any = client.create_agent(Slow, agent_options={"max_concurrency": 2})
        result = slow.hold()
        missing = as_server("result", result.task_id, "--no-wait", port=server.port)
        assert (missing.returncode, missing.stdout) == (6, "")
        slow.open().result(30)
        there = as_server("result", result.task_id, "--wait", port=server.port)
        assert (there.returncode, there.stdout.strip()) == (0, "there")
