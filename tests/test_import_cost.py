"""What a program pays that only calls agents: the import of the client, beside those of pyzmq and msgpack."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from zmqagents import RpcClient

pytestmark = pytest.mark.program

ROOT = Path(__file__).parents[1]
HOST_PACKAGES = ("adapters", "broker", "cli", "execution", "models", "process", "scheduler", "server", "store")
OF_THE_HOST = {f"zmqagents.{name}" for name in (*HOST_PACKAGES, "config", "telemetry")}
WEB = {"starlette", "uvicorn", "jsonschema", "mcp", "mcp_types", "a2a", "langgraph", "langchain_core", "pydantic_ai"}
HEAVY = {"click", "redis", "cachetools", "numpy", "pydantic", "openai", "rich", "cloudpickle", "hdrh", "asyncio"}
FOREIGN = "import zmq, msgpack"
CLIENT = f"{FOREIGN}; from zmqagents import AgentBase, AsyncResult, RpcClient, deadline"
LIMIT_S = 0.15
RUNS = 4


def cpu_s(source: str, environment: dict[str, str]) -> float:
    """CPU time of a program, which on a busy machine says more than the wall's: an import waits for nothing."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", source], check=True, cwd=ROOT, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_importing_the_client_costs_little_beyond_pyzmq_and_msgpack(tmp_path: Path) -> None:
    # Compiled files, as an installed package has them: the first run writes them, the best of the others counts.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    cpu_s(CLIENT, environment)
    pairs = [(cpu_s(FOREIGN, environment), cpu_s(CLIENT, environment)) for _ in range(RUNS)]
    assert min(ours for _, ours in pairs) - min(foreign for foreign, _ in pairs) <= LIMIT_S


def loaded_by(source: str) -> set[str]:
    program = f"import json, sys; {source}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return set(json.loads(done.stdout))


def test_what_a_client_imports_is_nothing_heavy_and_nothing_of_the_host() -> None:
    loaded = loaded_by(CLIENT) - loaded_by(FOREIGN)
    assert "zmqagents.client.proxy" in loaded
    of_the_library = {"multiprocessing", "subprocess", "http", "email", "_hashlib", "ssl", "sqlite3", "xml"}
    assert not loaded & (OF_THE_HOST | HEAVY | WEB | of_the_library)


def test_a_process_of_agents_loads_no_keys_and_nothing_heavy() -> None:
    loaded = loaded_by("import zmqagents.server.child_main, zmqagents.members.upward")
    assert "zmqagents.broker.broker" in loaded
    heavy = HEAVY - {"cachetools"}  # of the store for results
    later = {"subprocess", "ssl"} - loaded_by("import uuid")  # which loads `subprocess` on 3.10
    assert not loaded & (heavy | WEB | {"zmqagents.security.keys", "zmqagents.client.rpc"} | later)


AGENT = """
import sys
from zmqagents import AgentBase
class Looks(AgentBase):
    def loaded(self):
        return sorted(sys.modules)
"""


# Of the host that no agent's code has asked for a call, a process or a model yet.
LATER = {
    "_hashlib", "ssl", "asyncio", "redis", "numpy", "rich", "subprocess", "tempfile", "zmqagents.client",
    "zmqagents.connection.session", "zmqagents.models.checking", "zmqagents.models.values",
    "zmqagents.process.children", "zmqagents.store.write_behind",
}  # fmt: skip
# Of the host that has not said yet that it listens.
AFTER_THE_START = {
    "decimal", "fractions", "zmqagents.codec.builtin", "zmqagents.codec.classes.types", "zmqagents.codec.decoder"
}  # fmt: skip


def test_what_reads_values_that_msgpack_does_not_know_is_loaded_after_the_start() -> None:
    before = loaded_by("import zmqagents.server.serve, zmqagents.server.child_main, zmqagents.broker.broker")
    assert not (AFTER_THE_START - loaded_by("pass")) & before


def test_a_host_loads_what_is_large_only_when_it_needs_it(tmp_path: Path) -> None:
    """`hashlib`, `hmac` and `secrets` load OpenSSL: 3.6 MiB, 10 ms of the start; the client costs 1 MiB, 8 ms."""
    later = LATER - loaded_by("import click, zmq")  # older ones load `subprocess`; coverage loads some, too
    (tmp_path / "looks.py").write_text(AGENT)
    command = [sys.executable, "-m", "zmqagents", "start", "--agent-dir", str(tmp_path), "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        bound = json.loads(process.stdout.readline())
        with RpcClient(bound["host"], bound["port"]) as client:
            loaded = client.create_agent("Looks").loaded()
            of_child = client.create_agent("Looks", agent_options={"isolation": "process"}).loaded()
            client.stop(grace_s=0.0)
        assert process.wait(20) == 0
    assert "zmqagents.broker" in loaded
    assert not later & set(loaded)
    assert "zmqagents.members.upward" in of_child
    assert not (later - {"zmqagents.connection.session"}) & set(of_child)  # over which it calls its host


def test_the_package_alone_loads_no_framework_and_nothing_of_the_web() -> None:
    loaded = loaded_by("import zmqagents, zmqagents.server.launcher, zmqagents.adapters")
    assert not loaded & WEB
    assert not [name for name in loaded if name.startswith("zmqagents.web")]
