"""One process of a subject, told by the benchmark what to do. Standard library alone, and the subject's own module.

    python -m benchmarks.driver serve NAME SETUP    prints where it is, as JSON, and ends with its standard input
    python -m benchmarks.driver client NAME WHERE   connects there; then for each line of JSON like
                                                    {"do": "lat", "calls": 100, "payload_bytes": 64} prints one

A subject's module has ``serve(name, setup, directory)``, a context manager that gives what clients need to know
(plain data; so is ``setup``: transport, store and redis_url), and ``connect(name, where)``, which gives a
`loops.Client`. `Process` is the other end of it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .loops import LOOPS, Client, NotOffered

ROOT = Path(__file__).parents[1]
PEER_ENVIRONMENTS = ROOT / ".bench" / "peers"
FLOORS = ("echo", "workers", "tight", "raw", "pipe")
OURS = "zmqagents"
PEERS = ("ray", "pyro5", "zerorpc", "rpyc", "xoscar", "dask", "agentscope")
ENCRYPTED_PEERS = ("pyro5", "rpyc")  # those whose driver can use TLS


def module_of(name: str) -> str:
    """The module of a subject."""
    if name == "pipe":
        return "benchmarks.pipe"
    if name in FLOORS:
        return "benchmarks.floors"
    return "benchmarks.ours" if name == OURS else f"benchmarks.peers.{name}_peer"


def python_of(name: str) -> str:
    """The interpreter that a subject runs on."""
    return str(PEER_ENVIRONMENTS / name / "bin" / "python") if name in PEERS else sys.executable


class Process:
    """A subject's server, or one of its clients, as a child of the benchmark."""

    def __init__(self, role: str, name: str, argument: Any) -> None:
        """``argument``: the setup for ``role`` "serve", where the server is for "client"."""
        self.name = name
        command = [python_of(name), "-m", "benchmarks.driver", role, name, json.dumps(argument)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    def tell(self, do: str, **arguments: Any) -> None:
        """Have a client run one of `LOOPS`; the answer is the next `hear`."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._child.stdin.flush()

    def hear(self) -> Any:
        """The next line. Raises NotOffered if that is the answer, RuntimeError when the process has failed."""
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} has ended with exit status {self._child.wait()}, see its messages")
        answer = json.loads(line)
        if isinstance(answer, dict) and "not_offered" in answer:
            raise NotOffered(answer["not_offered"])
        return answer

    def ask(self, do: str, **arguments: Any) -> Any:
        self.tell(do, **arguments)
        return self.hear()

    def close(self) -> None:
        """End it, by the end of its standard input; a process that does not is killed."""
        try:
            self._child.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.communicate()


def serve(name: str, setup: dict[str, Any]) -> None:
    """Be the server until standard input ends."""
    module = importlib.import_module(module_of(name))
    # In /tmp itself: the path of a Unix socket may have 107 characters.
    with (
        tempfile.TemporaryDirectory(dir="/tmp", prefix="zb") as directory,
        own_stdout() as answers,
        module.serve(name, setup, directory) as where,
    ):
        print(json.dumps(where), file=answers, flush=True)
        sys.stdin.read()


def attend(name: str, where: Any) -> None:
    """Be a client: run the loops that are asked for until standard input ends."""
    with own_stdout() as answers:
        client: Client = importlib.import_module(module_of(name)).connect(name, where)
        with contextlib.closing(client):
            print(json.dumps("connected"), file=answers, flush=True)
            for line in sys.stdin:
                arguments = json.loads(line)
                try:
                    answer = LOOPS[arguments.pop("do")](client, **arguments)
                except NotOffered as exc:
                    answer = {"not_offered": str(exc)}
                print(json.dumps(answer), file=answers, flush=True)


@contextlib.contextmanager
def own_stdout() -> Any:
    """Standard output for the answers alone: what libraries print goes to standard error."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        yield answers


if __name__ == "__main__":
    role, name, argument = sys.argv[1:]
    {"serve": serve, "client": attend}[role](name, json.loads(argument))
