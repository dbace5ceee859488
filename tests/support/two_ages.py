"""A host of one version of the package, and a client of another: what works between them.

Not run by pytest, since building the former version takes longer than a test should::

    git archive COMMIT | tar x -C /tmp/former
    python tests/support/two_ages.py /tmp/former .

Each path is the root of a source tree, or a folder that a wheel was installed in. Each is host and client in turn, over
the Unix socket and over TCP; a line tells for each question what came of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

AGENTS = """
import time
from zmqagents import AgentBase, async_func, current_call, stream_func

class Aged(AgentBase):
    def __init__(self, start=0):
        self.count, self.memory = start, ["begun"]
    def echo(self, value):
        return value
    def add(self, number):
        self.count += number
        return self.count
    def fail(self):
        raise KeyError("as asked for")
    @async_func
    def later(self, seconds):
        time.sleep(seconds)
        return seconds
    @stream_func
    def items(self, most):
        yield from range(most)
    def wait(self):
        while not current_call().cancelled:
            time.sleep(0.01)
    def ask(self, other, number):
        return other.add(number)
"""


def main(paths: list[str]) -> int:
    """Both directions; the exit status is the number of questions that did not end as they should."""
    failures = 0
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="zaages") as place:
        agents = Path(place, "agents")
        agents.mkdir()
        (agents / "aged.py").write_text(AGENTS)
        environment = {**os.environ, "ZMQAGENTS_KEYS": f"{place}/keys", "ZMQAGENTS_RUNTIME": f"{place}/run"}
        for there, here in ((0, 1), (1, 0)):
            for transport in ("ipc", "tcp"):
                host = started(paths[there], place, environment)
                try:
                    found = asked(paths[here], host.port, transport, environment)
                finally:
                    host.end()
                print(f"host {paths[there]}, client {paths[here]}, {transport}:")
                for question, outcome in found.items():
                    failures += not outcome.startswith("ok")
                    print(f"    {question:<12} {outcome}")
    return failures


class started:
    """A host with the agents of this file, by the shell's verb."""

    def __init__(self, path: str, place: str, environment: dict[str, str]) -> None:
        command = [sys.executable, "-m", "zmqagents", "start", "--agent-dir", f"{place}/agents", "--host", "127.0.0.1"]
        command += ["--port", "0", "--grace", "1"]
        with open(f"{place}/log", "wb") as log:
            self._process = subprocess.Popen(
                command, env={**environment, "PYTHONPATH": path}, cwd=place, stdout=log, stderr=log
            )
        self.port = self._wait(Path(place))

    def _wait(self, place: Path) -> int:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            for record in place.glob("run/*.json"):
                said = json.loads(record.read_text() or "{}")
                if said.get("pid") == self._process.pid or said.get("port"):
                    return int(said["port"])
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise SystemExit((place / "log").read_text())

    def end(self) -> None:
        """End it in order."""
        self._process.terminate()
        self._process.wait(20)


def asked(path: str, port: int, transport: str, environment: dict[str, str]) -> dict[str, str]:
    """What the questions of `questions` end in, by a client of the version at ``path``."""
    code = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); import two_ages; two_ages.ask_all()"
    runtime = environment["ZMQAGENTS_RUNTIME"] if transport == "ipc" else environment["ZMQAGENTS_RUNTIME"] + "-none"
    done = subprocess.run(
        [sys.executable, "-c", code, str(port)], capture_output=True, text=True, timeout=120, cwd="/",
        env={**environment, "PYTHONPATH": path, "ZMQAGENTS_RUNTIME": runtime},
    )  # fmt: skip
    if done.returncode:
        return {"all": done.stderr.strip().rpartition("\n")[2]}
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def ask_all() -> None:
    """The program behind `asked`."""
    from zmqagents import RpcClient

    found = {}
    with RpcClient("127.0.0.1", int(sys.argv[1]), timeout=20) as client:
        for name, ask in questions(client):
            try:
                found[name] = "ok" if ask() else "another answer"
            except Exception as exc:
                found[name] = f"{type(exc).__name__}: {exc}"[:300]
    print(json.dumps(found))


def questions(client: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What a program asks of a host."""
    agent: Any = client.create_agent("Aged", 5)
    yield "call", lambda: agent.add(1) == 6
    yield "attribute", lambda: agent.count == 6
    yield "values", lambda: agent.echo(VALUES) == VALUES
    yield "large", lambda: agent.echo(b"x" * 5_000_000) == b"x" * 5_000_000
    yield "error", lambda: _raises(KeyError, agent.fail)
    yield "future", lambda: agent.later(0.05).result() == 0.05
    yield "stream", lambda: list(agent.items(100)) == list(range(100))
    yield "time-out", lambda: _raises(TimeoutError, lambda: agent.wait(timeout=0.3))
    yield "reference", lambda: agent.ask(client.create_agent("Aged", 1), 1) == 2
    yield "list", lambda: len(client.get_agent_list()) == 2
    yield "information", lambda: client.get_server_info()["state"] == "running"
    yield "memory", lambda: client.get_agent_memory(_id_of(client)) == ["begun"]
    yield "delete", lambda: client.delete_agent(_id_of(client)) is True
    yield "is alive", client.is_alive


VALUES = {"a": [1, 2.5, None, True, "ä", b"b", (1, 2), {3}], 7: {"deep": [[[]]]}}


def _id_of(client: Any) -> str:
    return str(client.get_agent_list()[0]["agent_id"])


def _raises(kind: type[Exception], action: Callable[[], object]) -> bool:
    try:
        action()
    except kind:
        return True
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
