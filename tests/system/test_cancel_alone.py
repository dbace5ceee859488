"""`AsyncResult.cancel(recursive=False)` leaves the calls that the cancelled one has made alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, concurrent


class Parent(AgentBase):
    async def start(self, child: Any) -> Any:
        return await child.work()


class Child(AgentBase):
    def __init__(self) -> None:
        self.ended = ""
        self.begun = asyncio.Event()
        self.open = False

    async def work(self) -> None:
        self.begun.set()
        try:
            while not self.open:
                await asyncio.sleep(0.01)
            self.ended = "done"
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise

    @concurrent
    async def has_begun(self) -> None:
        await self.begun.wait()

    @concurrent
    async def let_go(self) -> None:
        self.open = True

    @concurrent
    async def how(self) -> str:
        while not self.ended:
            await asyncio.sleep(0.01)
        return self.ended


@pytest.mark.parametrize(("recursive", "ended"), [(True, "cancelled"), (False, "done")])
def test_a_cancel_reaches_the_children_unless_asked_otherwise(recursive: bool, ended: str) -> None:
    launcher = RpcAgentServerLauncher(custom_agent_classes=[Parent, Child])
    with launcher as server, RpcClient(server.host, server.port) as client:
        parent, child = client.create_agent("Parent"), client.create_agent("Child")
        result = parent.start(child)
        child.has_begun().result(30)  # a coroutine that is cancelled before its first step sees nothing of it
        assert result.cancel(recursive=recursive)
        while any(call["method"] == "start" for call in client.get_call_list()):
            pass
        child.let_go().result(30)
        assert child.how().result(30) == ended
