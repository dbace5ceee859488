"""A chat room: one agent, a stream for each listener."""

import asyncio
from collections.abc import AsyncIterator

from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, method, sync_func


class Room(AgentBase, max_concurrency=100):
    """Passes what is said to all who listen. Its methods run on the host's event loop, so it needs no lock."""

    def __init__(self) -> None:
        super().__init__()
        self.queues: dict[str, asyncio.Queue[str | None]] = {}

    @method
    async def listen(self, name: str) -> AsyncIterator[str]:
        """A stream of what is said from now on, until `leave`."""
        mine = self.queues[name] = asyncio.Queue()
        try:
            yield "welcome"
            while (text := await mine.get()) is not None:
                yield text
        finally:  # also when the listener's program has gone
            self.queues.pop(name, None)

    @sync_func
    async def say(self, name: str, text: str) -> int:
        """Pass a text on; how many get it."""
        for each in self.queues.values():
            each.put_nowait(f"{name}: {text}")
        return len(self.queues)

    @sync_func
    async def leave(self, name: str) -> None:
        """End the stream of a listener."""
        self.queues[name].put_nowait(None)


if __name__ == "__main__":
    with RpcAgentServerLauncher(custom_agent_classes=[Room]) as server, RpcClient(server.host, server.port) as client:
        room = client.create_agent(Room)
        with room.listen("ann") as ann, room.listen("ben") as ben:
            print(next(ann), next(ben))
            print(room.say("ann", "is somebody here?"), "listeners")
            room.say("ben", "I am")
            room.leave("ben")
            print("ben heard:", list(ben))
            print("ann heard:", [next(ann), next(ann)])
