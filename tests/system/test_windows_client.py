"""A client where the modules and functions of POSIX are missing, as on Windows; a host is refused there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hosts import ROOT, environment
from zmqagents import RpcAgentServerLauncher
from zmqagents.security.keys import KeyStore

pytestmark = pytest.mark.program

BARE = "import bare_system; bare_system.take_away()\n"
CALLS = """
import asyncio, sys
from zmqagents import AgentBase, AsyncRpcClient, RpcClient
host, port = sys.argv[1], int(sys.argv[2])
with RpcClient(host, port, timeout=30) as client:
    agent = client.create_agent("Worker", agent_id="w")
    print(agent.echo([1, "two"]), agent.nap(0.01).result())

async def main():
    async with AsyncRpcClient(host, port, timeout=30) as client:
        print(await (await client.get_agent("w")).echo(3))

asyncio.run(main())
"""


def run_bare(source: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    given = environment(PYTHONPATH=f"{ROOT}:{ROOT / 'tests' / 'support'}", **more)
    command = [sys.executable, "-c", BARE + source, *arguments]
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=60)


def test_a_client_without_posix_calls_a_host_over_tcp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hosts import Worker

    with RpcAgentServerLauncher(custom_agent_classes=[Worker]) as server:
        assert server.port is not None
        server_key = KeyStore.open().server_keypair().public
        keys = tmp_path / "keys"
        made = run_bare(
            "import sys; from zmqagents.security.keys import KeyStore\n"
            "store = KeyStore.open(); store.remember_host('localhost', int(sys.argv[1]), sys.argv[2])\n"
            "print(store.client_keypair().public)", str(server.port), server_key, ZMQAGENTS_KEYS=str(keys),
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        KeyStore.open().authorize("bare", made.stdout.strip(), "call")
        done = run_bare(CALLS, server.host, str(server.port), ZMQAGENTS_KEYS=str(keys))
    assert (done.stdout.split("\n"), done.returncode) == (["[1, 'two'] 0.01", "3", ""], 0), done.stderr
    assert not (keys / ".lock").exists()


def test_every_name_but_those_that_start_hosts_can_be_imported_without_posix() -> None:
    done = run_bare(
        "import zmqagents\n"
        "for name in zmqagents.__all__:\n"
        "    try: getattr(zmqagents, name)\n"
        "    except zmqagents.ConfigError: print(name)\n"
    )
    assert (done.stdout, done.stderr) == ("RpcAgentServerLauncher\nto_dist\n", "")


@pytest.mark.parametrize(
    "source",
    [
        "from zmqagents import RpcAgentServerLauncher",
        "from zmqagents import AgentBase\nclass A(AgentBase): pass\nA().to_dist()",
    ],
)
def test_a_host_is_refused_with_a_sentence_where_it_cannot_run(source: str) -> None:
    done = run_bare(source)
    assert done.stderr.splitlines()[-1].startswith("zmqagents.errors.ConfigError: a host needs Linux or macOS, and ")


def test_the_shell_refuses_to_start_a_host_and_still_lists_its_verbs() -> None:
    shell = "import sys; from zmqagents.cli import main; main(sys.argv[1:])"
    refused = run_bare(shell, "start")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert "call it from here with RpcClient(HOST, PORT)" in refused.stderr
    assert "start" in run_bare(shell, "--help").stdout
