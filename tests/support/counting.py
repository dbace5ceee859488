"""Agents of a cluster that count, and a program whose clients have them count and write down what they were told.

    counting.py HOSTS SECONDS AGENTS FOLDER

SECONDS 0: until standard input ends. Each client has a file in FOLDER, which gets a line ``agent epoch count`` for each
count that it was told is kept. At the end a line of JSON says what each agent has counted then, how many calls ended in
what nobody knows, by agent, and which other errors there were.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter as Tally
from collections.abc import Callable
from pathlib import Path

from zmqagents import AgentBase, AsyncCluster, current_call
from zmqagents.errors import CallLost, CallTimeout, ZmqAgentsError

CLIENTS = 2
CALL_S = 10.0  # what a call may take


class Counter(AgentBase):
    """Counts, and keeps that across crashes."""

    def __init__(self) -> None:
        self.number = 0

    def save_state(self) -> int:
        return self.number

    def load_state(self, state: int) -> None:
        self.number = state

    def count(self) -> list[int]:
        call = current_call()
        assert call is not None
        self.number += 1
        return [call.fence, self.number]

    def read(self) -> int:
        return self.number


class Clients:
    """What becomes of their calls."""

    def __init__(self, is_over: Callable[[], bool], folder: Path) -> None:
        self._is_over, self._folder = is_over, folder
        self.unsure: Tally[str] = Tally()
        self.errors: Tally[str] = Tally()

    async def count(self, cluster: AsyncCluster, number: int, names: list[str]) -> None:
        with (self._folder / f"client-{number}").open("w", encoding="utf-8") as file:
            await asyncio.gather(*(self._count(cluster, name, file.write) for name in names))

    async def _count(self, cluster: AsyncCluster, name: str, write: Callable[[str], object]) -> None:
        agent = await cluster.get_agent(name, cls=Counter)
        while not self._is_over():
            try:
                epoch, count = await agent.count(timeout=CALL_S)
            except (CallLost, CallTimeout):
                self.unsure[name] += 1
            except ZmqAgentsError as exc:
                self.errors[type(exc).__name__] += 1
                await asyncio.sleep(0.05)  # nothing ran
            else:
                write(f"{name} {epoch} {count}\n")


async def read(cluster: AsyncCluster, name: str) -> int:
    """What the agent has counted, once it can be asked."""
    agent = await cluster.get_agent(name, cls=Counter)
    end = time.monotonic() + 30
    while True:
        try:
            return int(await agent.read(timeout=CALL_S))
        except ZmqAgentsError:
            if time.monotonic() > end:
                raise


async def main(hosts: str, seconds: float, agents: int, folder: Path) -> None:
    end, told = time.monotonic() + seconds, None
    if not seconds:
        told = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    clients = Clients(lambda: told.done() if told is not None else time.monotonic() >= end, folder)
    names = [f"counter-{number}" for number in range(agents)]
    clusters = [AsyncCluster(hosts) for _ in range(CLIENTS)]
    try:
        await asyncio.gather(*(clients.count(cluster, number, names) for number, cluster in enumerate(clusters)))
        kept = {name: await read(clusters[0], name) for name in names}
    finally:
        for cluster in clusters:
            await cluster.close()
    print(json.dumps({"kept": kept, "unsure": clients.unsure, "errors": clients.errors}), flush=True)


if __name__ == "__main__":
    where, seconds, agents, folder = sys.argv[1:]
    asyncio.run(main(where, float(seconds), int(agents), Path(folder)))
