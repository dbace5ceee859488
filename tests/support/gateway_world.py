"""A host, and a real web process with its gateway, for the tests of that."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, ParamSpec

import shown_agents
from zmqagents import RpcAgentServerLauncher, RpcClient

LIMIT_S = 60.0
P = ParamSpec("P")


@dataclass
class World:
    """``url`` and ``token`` are those of the web process; ``client`` is connected to the host."""

    launcher: RpcAgentServerLauncher | None
    client: RpcClient
    url: str
    token: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def host_port(self) -> int | None:
        """That of the host."""
        return None if self.launcher is None else self.launcher.port

    @property
    def bearer(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}

    def ask(
        self, method: str, path: str, body: Any = None, *, raw: bytes | None = None, token: str | None = None,
        **headers: str,
    ) -> tuple[int, Any]:  # fmt: skip
        """The status, and the body as JSON; ``token`` "": none is sent."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        sent = {"content-type": "application/json"}
        if token != "":
            sent["authorization"] = f"Bearer {self.token if token is None else token}"
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, data, sent)
            answer = connection.getresponse()
            text = answer.read()
            is_json = "json" in (answer.getheader("content-type") or "")
            return answer.status, json.loads(text) if is_json else text.decode()
        finally:
            connection.close()

    def call(self, agent: str, method: str, **arguments: Any) -> tuple[int, Any]:
        """``POST /agents/AGENT/METHOD``."""
        return self.ask("POST", f"/agents/{agent}/{method}", arguments)

    def becomes(self, agent: str, method: str, value: Any) -> bool:
        """Whether a method without arguments gives ``value`` before long."""
        deadline = time.monotonic() + LIMIT_S / 3
        while time.monotonic() < deadline:
            if self.call(agent, method) == (200, value):
                return True
            time.sleep(0.02)
        return False


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test that is a coroutine."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def token_of(*words: str) -> str:
    """What ``as_server keys token`` prints."""
    command = [sys.executable, "-m", "zmqagents", "keys", "token", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True).stdout.strip()


@contextlib.contextmanager
def web_process(port: int | None, *words: str) -> Iterator[str]:
    """``as_server web`` for the host at ``port``; gives its address."""
    command = [sys.executable, "-m", "zmqagents", "web", "--listen", "127.0.0.1:0", "--json", "--port", str(port)]
    with subprocess.Popen([*command, *words], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["url"]
            process.terminate()
            process.wait(LIMIT_S)
        finally:
            process.kill()


@contextlib.contextmanager
def gateway(*words: str, **settings: Any) -> Iterator[World]:
    """A host with an agent of each class of `shown_agents`, called like it, and a web process with ``words`` beside."""
    shown = [word for agent_id in shown_agents.SHOWN for word in ("--expose", agent_id)]
    with (
        RpcAgentServerLauncher(custom_agent_classes=shown_agents.CLASSES, local_mode=True, **settings) as launcher,
        RpcClient("localhost", launcher.port) as client,
        web_process(launcher.port, *shown, *words) as url,
    ):
        for cls in shown_agents.CLASSES:
            client.create_agent(cls, agent_id=cls.__name__.lower())
        client.create_agent(shown_agents.Caller, agent_id="other caller")
        yield World(launcher, client, url, token_of())
