"""``init``, ``describe``, Tab completion, and ``--json`` of every verb."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from hosts import ROOT, environment
from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, cli, discovery, to_dist
from zmqagents.server.private_host import stop_private_host

pytestmark = pytest.mark.program


class Librarian(AgentBase):
    """Keeps books."""

    def lend(self, title: str, days: int = 14) -> str:
        """Lend a book, and say until when."""
        return f"{title} for {days} days"

    def shelve(self, titles: list[str]) -> Iterator[str]:
        """Name each book as it is put away."""
        yield from titles


@pytest.fixture(scope="module")
def server() -> Iterator[RpcAgentServerLauncher]:
    with RpcAgentServerLauncher(custom_agent_classes=[Librarian], server_id="library") as launcher:
        with RpcClient(launcher.host, launcher.port) as client:
            client.create_agent(Librarian, agent_id="ann")
        yield launcher


def shell(*words: str, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    given = environment(PYTHONPATH=str(ROOT), **more)
    command = [sys.executable, "-m", "zmqagents", *words]
    return subprocess.run(command, cwd=cwd, env=given, capture_output=True, text=True, timeout=60)


def completed(line: str) -> list[str]:
    """What Tab offers in bash at the end of ``line``."""
    words = line.split(" ")
    given = environment(
        PYTHONPATH=str(ROOT), _AS_SERVER_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1)
    )
    source = "from zmqagents.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", source], env=given, capture_output=True, text=True, timeout=60)
    return [text.partition(",")[2] for text in done.stdout.split()]


def test_the_methods_of_an_agent_are_shown_with_signatures_and_docstrings(server: RpcAgentServerLauncher) -> None:
    said = shell("describe", "ann", "--port", str(server.port)).stdout
    assert said.startswith("ann, of class ")
    assert "  Keeps books." in said
    assert "  lend(title: str, days: int = 14) -> str\n      Lend a book, and say until when." in said.replace(
        "(title: 'str', days: 'int' = 14) -> 'str'", "(title: str, days: int = 14) -> str"
    )
    assert "→ Stream\n      Name each book as it is put away." in said


def test_a_class_is_described_from_its_agent_from_the_host_or_from_its_module(
    server: RpcAgentServerLauncher, tmp_path: Path
) -> None:
    port = str(server.port)
    by_class = json.loads(shell("describe", "Librarian", "--port", port, "--json").stdout)
    assert {row["name"]: row["gives"] for row in by_class["methods"]}["shelve"] == "stream"
    everything = json.loads(shell("describe", "--port", port, "--json").stdout)
    assert [one["class"].rpartition(":")[2] for one in everything] == ["Librarian"]
    (tmp_path / "shop.py").write_text("class Shop:\n    def sell(self, n: int): 'Sell some.'\n")
    here = json.loads(shell("describe", "shop:Shop", "--json", cwd=tmp_path).stdout)
    assert [(row["name"], row["doc"]) for row in here["methods"]] == [("sell", "Sell some.")]


def test_what_there_is_not_is_refused_with_the_nearest_name(server: RpcAgentServerLauncher) -> None:
    refused = shell("describe", "Libarian", "--port", str(server.port))
    assert refused.returncode == 2
    assert "has no agent and no class 'Libarian'; it has: ann, Librarian; did you mean 'Librarian'?" in refused.stderr


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("as_server describe --server-id library a", ["ann"]),
        ("as_server call --server-id library ann l", ["lend"]),
        ("as_server create --server-id library Lib", ["Librarian"]),
        ("as_server status --server-id lib", ["library"]),
        ("as_server call --server-id gone a", []),
        ("as_server desc", ["describe"]),
    ],
)
def test_tab_completes_what_there_is_now(server: RpcAgentServerLauncher, line: str, offered: list[str]) -> None:
    assert completed(line) == offered


def test_tab_offers_no_port_of_a_host_that_has_none(server: RpcAgentServerLauncher) -> None:
    assert to_dist(Librarian("bob")).lend("Emma") == "Emma for 14 days"  # on a private host
    try:
        assert any(record.port is None for record in discovery.list_hosts())
        assert completed("as_server status --port ") == [str(server.port)]
    finally:
        stop_private_host()


def test_a_new_project_runs_as_it_says(tmp_path: Path) -> None:
    made = shell("init", "first", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stdout.endswith("now:\n  cd first\n  as_server start      # in this shell, until Ctrl-C\n"
                                "  python use.py        # in another one\n")  # fmt: skip
    place = tmp_path / "first"
    given = environment(PYTHONPATH=str(ROOT), ZMQAGENTS_RUNTIME=str(tmp_path / "run"))  # no other host is there
    command = [sys.executable, "-m", "zmqagents", "start"]
    with subprocess.Popen(command, cwd=place, env=given, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "listening on" in process.stdout.readline()
        used = subprocess.run([sys.executable, "use.py"], cwd=place, env=given, capture_output=True, text=True)
        process.terminate()
    assert used.stdout == "value: 2\nmeanwhile: [2, 3, 4]\nlater: 2\n", used.stderr
    tested = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_counter.py"]
    assert subprocess.run(tested, cwd=place, env=given, capture_output=True).returncode == 0
    again = shell("init", "first", cwd=tmp_path)
    assert (again.returncode, "first/counter.py is there already" in again.stderr) == (2, True)


def verbs(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from verbs(inner, (*path, name))
    else:
        yield path, command


def test_every_verb_takes_json_but_a_screen_and_a_script() -> None:
    without = [path for path, verb in verbs(cli.shell) if not any(param.name == "as_json" for param in verb.params)]
    assert without == [("top",), ("completion",)]


WRONG: list[tuple[list[str], int]] = [
    (["stop", "--port", "x"], 2),
    (["cancel", "t1", "--port", "1"], 4),
    (["delete", "a", "--port", "1"], 4),
    (["describe", "a", "--port", "1"], 4),
    (["keys", "forget", "nowhere"], 2),
    (["keys", "remove", "nobody"], 2),
    (["init", "."], 2),
    (["start", "nothing:Here"], 2),
]


@pytest.mark.parametrize(("words", "code"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_an_error_is_json_where_json_is_asked_for(words: list[str], code: int, tmp_path: Path) -> None:
    (tmp_path / "use.py").touch()
    ended = shell(*words, "--json", cwd=tmp_path)
    said: dict[str, Any] = json.loads(ended.stderr)
    assert (ended.returncode, said["exit_code"]) == (code, code)
    assert said["message"]


SLOW = "import time\nclass Slow:\n    def nap(self, seconds):\n        time.sleep(seconds)\n        return seconds\n"


@pytest.mark.parametrize("by", ["signal", "stop"])
def test_a_stop_says_at_once_what_it_waits_for_and_how_to_force_it(by: str, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    given = environment(PYTHONPATH=str(ROOT))
    command = [sys.executable, "-m", "zmqagents", "start", "--json", "--agent", "s=slow:Slow", "--server-id", by]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, env=given, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = json.loads(process.stdout.readline())
        with RpcClient(said["host"], said["port"]) as client:
            napping = client.get_agent("s").nap.aio(60)
            while not client.get_call_list():
                pass
            if by == "signal":
                os.kill(process.pid, signal.SIGINT)
            else:
                stopped = shell("stop", "--server-id", by, "--grace", "1")
                assert "waiting up to 1 s for 1 call of stop; as_server stop --grace 0 ends them now" in stopped.stderr
            line = process.stderr.readline()
            assert line == f"{by} lets running and queued calls end, up to 10 s; Ctrl-C ends them now\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(30) in (0, -signal.SIGALRM)  # a thread that sleeps cannot be ended in order
            assert napping.exception() is not None


NEXT = [
    (["call", "nobody", "lend"], "there is no agent 'nobody' on library; as_server agents lists those there are"),
    (["result", "nonsense"], "as_server result --list lists the results that are kept"),
    (
        ["create", "Lender"],
        "knows no agent class 'Lender'; it knows: Librarian; as_server start MODULE:CLASS",
    ),
    (["create", "Librrian"], "did you mean 'Librarian'?"),
    (["call", "ann", "lent"], "did you mean 'lend'?"),
    (["strat"], "did you mean 'start'?"),
]


@pytest.mark.parametrize(("words", "text"), NEXT, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_a_mistake_is_one_line_that_names_the_next_thing_to_type(
    server: RpcAgentServerLauncher, words: list[str], text: str
) -> None:
    where = [] if words == ["strat"] else ["--port", str(server.port)]
    ended = shell(*words[:1], *where, *words[1:])
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert text in ended.stderr
