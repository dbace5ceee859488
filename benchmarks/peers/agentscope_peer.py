"""The agent server of AgentScope 0.1.6: gRPC, pickled values, results polled. Over TCP on the loopback interface."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import agentscope
from agentscope.agents import AgentBase
from agentscope.rpc import async_func, sync_func
from agentscope.server import RpcAgentServerLauncher


class Echo(AgentBase):
    def __init__(self, name: str = "echo") -> None:
        super().__init__(name=name)

    @sync_func
    def echo(self, value: bytes) -> bytes:
        return value

    @async_func
    def aecho(self, value: bytes) -> bytes:
        return value

    @async_func
    def nap(self, seconds: float) -> float:
        time.sleep(seconds)
        return time.monotonic()


def quietly() -> None:
    agentscope.init(
        disable_saving=True, save_code=False, save_api_invoke=False, save_log=False, use_monitor=False,
        logger_level="ERROR",
    )  # fmt: skip


@contextlib.contextmanager
def serve(name: str, setup: dict[str, Any], directory: str) -> Iterator[int]:
    quietly()
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    server = RpcAgentServerLauncher(
        host="localhost", port=port, local_mode=True, custom_agent_classes=[Echo], capacity=32
    )
    server.launch()
    yield port
    server.shutdown()


class Client:
    def __init__(self, port: int) -> None:
        quietly()
        self._port = port
        self._echo = self._agent()
        self._nappers: list[Any] = []

    def _agent(self) -> Any:
        to_dist = {"host": "localhost", "port": self._port}
        return Echo(to_dist=to_dist)  # type: ignore[call-arg]

    def call(self, payload: bytes) -> bytes:
        return self._echo.echo(payload)

    def pipeline(self, payload: bytes, calls: int, in_flight: int) -> None:
        aecho = self._echo.aecho
        results = deque(aecho(payload) for _ in range(min(in_flight, calls)))
        for _ in range(in_flight, calls):
            results.popleft().result()
            results.append(aecho(payload))
        for result in results:
            result.result()

    def naps(self, seconds: float, count: int) -> None:
        while len(self._nappers) < count:
            self._nappers.append(self._agent())
        for result in [napper.nap(seconds) for napper in self._nappers[:count]]:
            result.result()

    def late(self, seconds: float) -> float:
        ended: float = self._echo.nap(seconds).result()
        return time.monotonic() - ended

    def close(self) -> None:
        pass


def connect(name: str, where: int) -> Client:
    return Client(where)
