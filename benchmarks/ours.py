"""zmqagents as a subject: through its public API, with the settings that a user gets who says nothing."""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack
from typing import Literal

from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, async_func


class Echo(AgentBase):
    """Gives back what it gets."""

    def echo(self, value: bytes) -> bytes:
        return value

    @async_func
    def aecho(self, value: bytes) -> bytes:
        return value


class Ours:
    """A host of its own with one agent on it, and a client of that."""

    def __init__(self, name: str, transport: str, directory: str) -> None:
        """``transport`` is "ipc", what a client on the same machine takes by itself, or "tcp"."""
        self._open = ExitStack()
        try:
            server = self._open.enter_context(RpcAgentServerLauncher(custom_agent_classes=[Echo]))
            override: Literal["tcp"] | None = None if transport == "ipc" else "tcp"
            client = self._open.enter_context(RpcClient(server.host, server.port, transport=override))
            self._agent = client.create_agent(Echo)
        except BaseException:
            self._open.close()
            raise

    def call(self, payload: bytes) -> bytes:
        """One blocking call."""
        answer: bytes = self._agent.echo(payload)
        return answer

    def pipeline(self, payload: bytes, calls: int, in_flight: int) -> None:
        """``calls`` asynchronous calls with up to ``in_flight`` of them not yet collected."""
        results = deque(self._agent.aecho(payload) for _ in range(min(in_flight, calls)))
        for _ in range(in_flight, calls):
            results.popleft().result()
            results.append(self._agent.aecho(payload))
        for result in results:
            result.result()

    def close(self) -> None:
        self._open.close()
