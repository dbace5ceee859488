"""The log of a host as a program: each line is what was asked for, with the ids of the call that it is about."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hosts import eventually
from zmqagents import RpcAgentServerLauncher, RpcClient, errors

pytestmark = pytest.mark.timeout(180)
LIMIT_S = 30.0
COMMAND = [sys.executable, "-m", "zmqagents"]
AGENTS = """
import asyncio
import logging
import os
import sys
import warnings

from zmqagents import AgentBase


class Talker(AgentBase):
    def say(self, text):
        print(text)
        sys.stderr.write(f"aside: {text}\\n")
        logging.getLogger("mine").warning("careful: %s", text)

    async def slowly(self, first, second):
        print(first, end=" ")
        await asyncio.sleep(0.1)
        print(second)

    def half(self):
        print("no end of the line", end="")

    def vanish(self):
        os._exit(7)

    def die(self):
        print("famous")
        logging.getLogger("mine").error("last")
        print("words", file=sys.stderr)
        os._exit(7)

    def run_program(self):
        os.system("echo from a program")

    def warn(self):
        warnings.warn("odd")

    def fail(self):
        raise ValueError("no such luck")

    def flood(self, count):
        for number in range(count):
            print(number, "x" * 1000)
"""


class Program:
    """A host begun by ``as_server start --json``, and what it writes."""

    def __init__(self, process: subprocess.Popen[bytes], said: dict[str, Any], out: Path, err: Path) -> None:
        self.process = process
        self.said = said
        self._out = out
        self._err = err

    @property
    def stdout(self) -> list[str]:
        return self._out.read_text().splitlines()

    @property
    def stderr(self) -> list[str]:
        return self._err.read_text().splitlines()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stderr]

    def events_of(self, logger: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["logger"] == f"zmqagents.{logger}"]


@contextlib.contextmanager
def started(tmp_path: Path, *words: str) -> Iterator[tuple[Program, RpcClient]]:
    (tmp_path / "agents").mkdir(exist_ok=True)
    (tmp_path / "agents" / "talker.py").write_text(AGENTS)
    out, err = tmp_path / "out", tmp_path / "err"
    command = [*COMMAND, "start", "--json", "--local-mode", "--agent-dir", str(tmp_path / "agents"), *words]
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr)
    try:
        assert eventually(lambda: out.read_text().endswith("\n"), LIMIT_S)
        said = json.loads(out.read_text())
        with RpcClient("localhost", said["port"]) as client:
            yield Program(process, said, out, err), client
            with contextlib.suppress(ConnectionError):
                client.stop(5.0)
        assert process.wait(LIMIT_S) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("isolation", ["thread", "process", "pool"])
def test_what_agents_print_and_log_has_the_ids_of_the_call_and_every_line_is_json(
    tmp_path: Path, isolation: str
) -> None:
    with started(tmp_path, "--log-format", "json", "--isolation", isolation) as (program, client):
        agent = client.create_agent("Talker", agent_id="t")
        agent.say("hello")
        texts = [agent.slowly("one", "two"), agent.slowly("three", "four")]
        for text in texts:
            text.result()
        agent.run_program()
        agent.warn()
        with pytest.raises(ValueError, match="no such luck"):
            agent.fail()
    assert len(program.stdout) == 1, "nothing but the line that says where it listens"
    said = {event["msg"]: event for event in program.events if event["logger"] in ("zmqagents.output", "mine")}
    assert {"hello", "aside: hello", "careful: hello", "one two", "three four", "from a program"} <= said.keys()
    for text in ("hello", "aside: hello", "careful: hello", "one two", "three four"):
        event = said[text]
        assert (event["agent"], event["host"]) == ("t", program.said["server_id"])
        assert event["method"] == ("slowly" if " " in text and ":" not in text else "say")
        assert event["class"].endswith(":Talker")
        assert ("user" in event) == (isolation == "thread"), "other processes do not know whose call it is"
        assert event["task_id"]
    assert said["one two"]["task_id"] != said["three four"]["task_id"]
    assert (said["hello"]["stream"], said["aside: hello"]["stream"]) == ("stdout", "stderr")
    assert any("UserWarning: odd" in event["msg"] for event in program.events)
    (failed,) = program.events_of("calls")
    assert failed["msg"] == "t.fail failed: ValueError: no such luck"
    assert (failed["level"], failed["method"]) == ("WARNING", "fail")
    assert failed["exc"].endswith("ValueError: no such luck\n")
    assert "in fail" in failed["exc"]


def test_the_life_of_a_host_is_told_at_info_and_not_at_warning(tmp_path: Path) -> None:
    with started(tmp_path, "--log-format", "json", "--log-level", "info", "--capacity", "3") as (program, client):
        client.create_agent("Talker", agent_id="t").run_program()
        client.delete_agent("t")
    (begun, *_, ended) = program.events_of("host")
    assert str(program.said["port"]) in begun["msg"]
    assert "capacity 3" in begun["msg"]
    assert ended["msg"].endswith("has ended")
    assert [event["msg"] for event in program.events_of("agents")] == ["t is made", "t is gone"]
    assert program.events_of("clients")[0]["msg"].endswith("has come")
    audited = [(event["action"], event["user"], event["msg"]) for event in program.events_of("audit")]
    user = f"uid:{os.getuid()}"
    assert audited == [
        ("delete_agent", user, f"delete_agent t by {user}: begun"), ("stop", user, f"stop by {user}: done"),
    ]  # fmt: skip
    assert any("stopping" in event["msg"] for event in program.events)
    with started(tmp_path, "--log-format", "json") as (program, client):
        client.create_agent("Talker", agent_id="t")
    assert program.stderr == []


def test_what_a_process_of_agents_logs_as_each_does_is_no_audit_and_no_last_word(tmp_path: Path) -> None:
    with started(tmp_path, "--log-format", "json", "--log-level", "info", "--isolation", "pool") as (program, client):
        agent = client.create_agent("Talker", agent_id="t")
        client.create_agent("Talker", agent_id="u")
        client.delete_agent("u")
        agent.say("alive")  # after the deletion, in the same process
        with pytest.raises(errors.AgentCrashed) as caught:
            agent.vanish()
    audited = [event["msg"] for event in program.events_of("audit")]
    user = f"uid:{os.getuid()}"
    assert audited == [f"delete_agent u by {user}: begun", f"stop by {user}: done"]
    assert set(caught.value.stderr.splitlines()) <= {"alive", "aside: alive", "careful: alive"}


@pytest.mark.parametrize("form", ["json", "text"])
def test_what_an_agent_says_just_before_its_process_ends_is_in_the_log_and_in_the_error(
    tmp_path: Path, form: str
) -> None:
    with started(tmp_path, "--log-format", form, "--isolation", "process") as (program, client):
        for _ in range(3):
            with pytest.raises(errors.AgentCrashed) as caught:
                client.create_agent("Talker").die()
            assert caught.value.stderr.split("\n") == ["famous", "last", "words"]
        assert eventually(lambda: sum("words" in line for line in program.stderr) >= 3, 5.0)


def test_lines_of_text_end_in_the_ids_and_a_traceback_follows_its_line(tmp_path: Path) -> None:
    with started(tmp_path) as (program, client):
        agent = client.create_agent("Talker", agent_id="t")
        agent.half()
        with pytest.raises(ValueError, match="no such luck"):
            agent.fail()
    text = "\n".join(program.stderr)
    assert re.search(r" INFO zmqagents\.output: no end of the line \[agent=t method=half task_id=\S+ user=\S+", text)
    assert re.search(
        r" WARNING zmqagents\.calls: t\.fail failed: ValueError: no such luck \[agent=t .*\]\n  Traceb", text
    )
    assert program.stderr[-1] == "ValueError: no such luck" or "no end" in program.stderr[-1]


@pytest.mark.parametrize(("output", "expected"), [("stderr", ["hello", "aside: hello"]), ("off", [])])
def test_what_agents_print_may_go_to_stderr_as_it_is_or_nowhere(
    tmp_path: Path, output: str, expected: list[str]
) -> None:
    with started(tmp_path, "--agent-output", output, "--log-level", "error") as (program, client):
        client.create_agent("Talker").say("hello")
    assert sorted(program.stderr) == sorted(expected)
    assert len(program.stdout) == 1


def test_lines_for_people_among_json_are_refused(tmp_path: Path) -> None:
    command = [*COMMAND, "start", "--log-format", "json", "--agent-output", "stderr"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 2
    assert "--agent-output" in done.stderr


def test_a_flood_of_failures_is_cut_and_the_rest_is_counted(tmp_path: Path) -> None:
    with started(tmp_path, "--log-format", "json") as (program, client):
        agent = client.create_agent("Talker")
        for _ in range(200):
            with pytest.raises(ValueError, match="no such luck"):
                agent.fail()
        time.sleep(1.1)
        with pytest.raises(ValueError, match="no such luck"):
            agent.fail()
        (fail,) = (each for each in client.get_metrics()["methods"] if each["method"] == "fail")
        assert fail["ends"]["error"] == 201, "counters are not limited"
    lines = [event["msg"] for event in program.events_of("calls")]
    assert 11 <= len(lines) < 100
    left_out = sum(int(found.group(1)) for line in lines if (found := re.search(r"\((\d+) like it left out\)", line)))
    assert len(lines) + left_out == 201


def test_a_reader_of_stderr_that_stops_holds_up_nobody(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "talker.py").write_text(AGENTS)
    command = [*COMMAND, "start", "--json", "--local-mode", "--agent-dir", str(tmp_path / "agents")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # a pipe nobody reads
        assert process.stdout is not None
        with RpcClient("localhost", json.loads(process.stdout.readline())["port"], timeout=LIMIT_S) as client:
            agent = client.create_agent("Talker")
            agent.flood(12_000)
            assert client.get_health(LIMIT_S)["ready"]
            assert client.get_metrics()["log_lines_dropped"] > 0
            client.stop(5.0)
        process.stdout.close()
        assert process.wait(LIMIT_S) == 0, "and the end does not wait for it"


def logs(port: int, *words: str) -> list[dict[str, Any]]:
    command = [*COMMAND, "logs", "--json", "--port", str(port), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_latest_lines_can_be_asked_for_whatever_goes_to_stderr(tmp_path: Path) -> None:
    with started(tmp_path, "--log-level", "error") as (program, client):
        for name in ("t", "u"):
            client.create_agent("Talker", agent_id=name).half()
        port = program.said["port"]
        found = [event["msg"] for event in logs(port)]
        assert {"t is made", "u is made"} <= set(found)
        about = logs(port, "--agent", "u")
        assert {event["agent"] for event in about} == {"u"}
        assert [event["msg"] for event in logs(port, "--agent", "u", "--lines", "1")] == [about[-1]["msg"]]
        assert logs(port, "--lines", "0") == []


def test_whoever_follows_sees_each_line_once_as_it_comes(tmp_path: Path) -> None:
    with started(tmp_path) as (program, client):
        agent = client.create_agent("Talker", agent_id="t")
        command = [*COMMAND, "logs", "--json", "--follow", "--agent", "t", "--port", str(program.said["port"])]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
            assert follower.stdout is not None
            assert json.loads(follower.stdout.readline())["msg"] == "t is made"
            for text in ("first", "second"):
                agent.say(text)
                said = [json.loads(follower.stdout.readline())["msg"] for _ in range(3)]
                assert sorted(said) == sorted([text, f"aside: {text}", f"careful: {text}"])
            follower.terminate()


def test_a_host_in_a_program_keeps_no_lines_and_prints_none(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "talker.py").write_text(AGENTS)
    with (
        RpcAgentServerLauncher(agent_dir=str(tmp_path), local_mode=True) as launcher,
        RpcClient("localhost", launcher.port) as client,
    ):
        agent = client.create_agent("Talker")
        with pytest.raises(ValueError, match="no such luck"):
            agent.fail()
        agent.half()
        with pytest.raises(errors.ConfigError, match="keeps no log lines"):
            client.get_log()
    written = capfd.readouterr()
    assert "no such luck" not in written.err
    assert written.out in ("no end of the line", ""), "what an agent prints is the program's matter"


def test_a_host_that_is_started_again_goes_on_with_its_log(tmp_path: Path) -> None:
    with started(tmp_path, "--log-format", "json", "--restart") as (program, client):
        first = client.get_server_info()["pid"]
        os.kill(first, 9)
        assert eventually(lambda: _pid(client) not in (None, first), LIMIT_S)
        agent = client.create_agent("Talker")
        agent.say("again")
        agent.run_program()
        assert any(event["msg"] == "again" for event in logs(program.said["port"]))
    assert len(program.stdout) == 1
    assert any("starting it again" in event["msg"] for event in program.events)
    assert {"again", "from a program"} <= {event["msg"] for event in program.events_of("output")}


def _pid(client: RpcClient) -> int | None:
    try:
        return int(client.get_server_info()["pid"])
    except ConnectionError:
        return None
