"""The shell command: real hosts as processes of their own, the verbs in this process where that shows the same.

`Here` runs a verb by ``main([...])``; `run` runs it as a user does. Tests named ``test_defect_<n>_...`` are the
regressions for defects of the earlier system's command line and start-up, which had this very command.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
import numpy
import psutil
import pytest

from hosts import freeze
from scale import linux_only
from zmqagents import AgentBase, RpcClient, cli, discovery, errors
from zmqagents.agents.loader import load_custom_class_from_file
from zmqagents.cli.values import plain
from zmqagents.config import BrokerConfig
from zmqagents.process.end_timer import FORCED

COMMAND = [sys.executable, "-m", "zmqagents"]
LIMIT_S = 30.0  # for what should take a second: a loaded machine must not fail a test

AGENTS = """
import time
from concurrent.futures import ThreadPoolExecutor

from zmqagents import AgentBase, agent, async_func


class Worker(AgentBase):
    def __init__(self, total=0, **more):
        super().__init__()
        self.total = total
        self.more = more

    def reply(self, text=""):
        return f"you said {text}"

    def add(self, number, step=1):
        self.total += number * step
        return self.total

    def given(self, *args, **kwargs):
        return [list(args), kwargs]

    def patient(self, timeout):
        return timeout

    def sleep(self, seconds):
        time.sleep(seconds)

    @async_func
    def slow(self, seconds):
        time.sleep(seconds)
        return seconds

    def boom(self):
        raise KeyError("nope")

    def late(self):
        raise TimeoutError("my own")

    def count(self, number):
        yield from range(number)

    def configured(self, name):
        return self.model_config(name)["model_name"]

    def linger(self):
        ThreadPoolExecutor().submit(time.sleep, 1e6)  # which Python joins at its end


@agent
class Plain:
    def __init__(self, name):
        self.name = name

    def hello(self):
        return f"hello {self.name}"
"""


# ---------------------------------------------------------------- running things


class Host:
    """A host started by ``as_server start --json``: its process and what it said when it listened."""

    def __init__(self, process: subprocess.Popen[str], said: dict[str, Any]) -> None:
        self.process = process
        self.said = said

    @property
    def port(self) -> str:
        return str(self.said["port"])

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Signal it and wait: exit code, and what it wrote since to stdout and stderr."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, out, err


@contextlib.contextmanager
def started(*options: str, **environment: str) -> Iterator[Host]:
    process = subprocess.Popen(
        [*COMMAND, "start", "--json", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                pytest.fail(f"the host did not start: {process.communicate(timeout=LIMIT_S)[1]}")
            yield Host(process, json.loads(line))
        finally:
            process.send_signal(signal.SIGCONT)
            for number in (signal.SIGTERM, signal.SIGKILL):
                process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.communicate(timeout=15)
                    break


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A verb as a process of its own."""
    return subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, timeout=LIMIT_S, env=os.environ | environment
    )


@dataclasses.dataclass
class Ended:
    code: Any
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        assert self.out.count("\n") == 1
        return json.loads(self.out)


Here = Callable[..., Ended]


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Here:
    """Runs a verb in this process."""

    def run_here(*words: str) -> Ended:
        with pytest.raises(SystemExit) as ended:
            cli.main(list(words))
        return Ended(ended.value.code, *capsys.readouterr())

    return run_here


@pytest.fixture(scope="module")
def agent_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("agents")
    (directory / "workers.py").write_text(AGENTS)
    return str(directory)


@pytest.fixture(scope="module")
def host(agent_dir: str) -> Iterator[Host]:
    """A host with one agent ``w``; nothing may be said on stderr in its whole life but what tests provoke."""
    with started("--agent-dir", agent_dir, "--server-id", "cli-test") as host:
        with RpcClient("localhost", host.said["port"]) as client:
            client.create_agent("Worker", agent_id="w")
        yield host


@pytest.fixture
def on(host: Host, here: Here) -> Here:
    """Runs a verb in this process against the module's host."""
    return lambda verb, *words: here(verb, "--port", host.port, *words)


def eventually(what: Callable[[], Any]) -> Any:
    end = time.monotonic() + LIMIT_S
    while not (found := what()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)
    return found


def open_calls(port: str) -> list[dict[str, Any]]:
    with RpcClient("localhost", int(port)) as client:
        return client.get_call_list()


def result_of(port: str, agent: str, method: str, *args: Any) -> Any:
    with RpcClient("localhost", int(port)) as client:
        return getattr(client.get_agent(agent), method)(*args)


# ---------------------------------------------------------------- the whole way, as a user goes it


def test_start_status_agents_call_and_stop_as_a_user_types_them(agent_dir: str) -> None:
    process = subprocess.Popen(
        [*COMMAND, "start", "--port", "0", "--agent-dir", agent_dir],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        said = re.fullmatch(
            r"zmqagents host (\S+) listening on localhost:(\d+) \(pid (\d+)\), on all its addresses, with keys\n", ready
        )
        assert said is not None, ready
        assert int(said[3]) == process.pid

        status = run("status")
        assert (status.returncode, status.stderr) == (0, "")
        assert f"{said[1]} at localhost:{said[2]} (pid {said[3]})" in status.stdout
        assert "Plain, Worker" in status.stdout

        made = run("create", "Worker", "5", "--agent-id", "mine")
        assert (made.returncode, made.stdout, made.stderr) == (0, "mine\n", "")
        agents = run("agents")
        assert agents.stdout.splitlines()[0].split() == ["agent_id", "type", "calls", "running", "queued", "age_s"]
        assert agents.stdout.splitlines()[1].split()[:2] == ["mine", "Worker"]
        called = run("call", "mine", "add", "3", "step=-1")
        assert (called.returncode, called.stdout, called.stderr) == (0, "2\n", "")

        stopped = run("stop")
        assert (stopped.returncode, stopped.stderr) == (0, "")
        assert stopped.stdout == f"stopped {said[1]} at localhost:{said[2]}\n"
        said_last, complained = process.communicate(timeout=LIMIT_S)
        complained = re.sub(r"\S+ lets running and queued calls end, .*\n", "", complained)  # on a busy machine
        assert (said_last, complained) == ("", ""), "nothing on stderr in a good run"
        assert process.returncode == 0


def test_start_says_as_one_line_of_json_where_it_is(host: Host) -> None:
    said = host.said
    assert set(said) == {"server_id", "host", "port", "pid", "ipc"}
    assert (said["server_id"], said["host"], said["pid"]) == ("cli-test", "localhost", host.process.pid)
    assert 0 < said["port"] < 65536
    assert Path(said["ipc"]).is_socket()


def assert_ended_in_order(code: Any, out: str, err: str) -> None:
    """With nothing on stderr, but for the line that says what a stop waits for, if it waited."""
    assert (code, out) == (0, "")
    assert re.fullmatch(r"(\S+ lets running and queued calls end, up to 10 s; Ctrl-C ends them now\n)?", err)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_running_call_end_and_the_exit_code_is_0(agent_dir: str, number: int) -> None:
    with started("--agent-dir", agent_dir) as host, RpcClient("localhost", host.said["port"]) as client:
        running = client.create_agent("Worker").slow(0.3)
        eventually(lambda: any(call["state"] == "running" for call in client.get_call_list()))
        host.process.send_signal(number)
        assert running.result(LIMIT_S) == 0.3
        assert_ended_in_order(*host.wait())


def test_a_second_signal_ends_the_host_at_once(agent_dir: str) -> None:
    with started("--agent-dir", agent_dir) as host, RpcClient("localhost", host.said["port"]) as client:
        stuck = client.create_agent("Worker").slow(1e6)
        eventually(lambda: any(call["state"] == "running" for call in client.get_call_list()))
        began = time.monotonic()
        host.process.send_signal(signal.SIGINT)
        eventually(lambda: client.get_server_info()["state"] == "draining")
        code, _, err = host.end(signal.SIGINT)
        assert time.monotonic() - began < 10.0  # the grace
        assert code in (0, FORCED)  # a busy machine may not get to the end in 1.8 s, and then the kernel does it
        assert "1 calls were cut off" in err or code == FORCED
        with pytest.raises(errors.HostStopping):
            stuck.result(LIMIT_S)


def test_a_thread_that_an_agent_has_started_does_not_keep_the_process(agent_dir: str) -> None:
    with started("--agent-dir", agent_dir) as host:
        with RpcClient("localhost", host.said["port"]) as client:
            client.create_agent("Worker").linger()
        began = time.monotonic()
        code, _, err = host.end()
        assert code == 0
        assert time.monotonic() - began < 5.0  # of a grace of 10 s; 0.3 s on a quiet machine
        assert "although a thread or an exit handler of an agent's is still running" in err


@linux_only("the timer that needs no interpreter is Linux'")
@pytest.mark.parametrize("what", ["lock.acquire()", "any(iter(int, 1))"], ids=["waits", "computes"])
def test_what_an_agents_module_holds_does_not_keep_the_process_by_its_finalizer(tmp_path: Path, what: str) -> None:
    """The interpreter runs it when no other thread of Python can run any more."""
    source = "import threading\nclass Last:\n    def __del__(self, lock=threading.Lock()):\n        lock.acquire()\n"
    (tmp_path / "last.py").write_text(f"{source}        {what}\nlast = Last()\n")
    with started("--agent-dir", str(tmp_path)) as host:
        began = time.monotonic()
        code, _, err = host.end()
        assert code == 0
        assert time.monotonic() - began < 8.0  # of a grace of 10 s; 1.5 s on a quiet machine
        assert f'File "{tmp_path / "last.py"}", line 5 in __del__' in err  # of its stack


def test_a_signal_while_a_host_is_ending_does_not_change_its_exit_code(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text("import atexit, time\natexit.register(time.sleep, 0.4)\n")
    with started("--agent-dir", str(tmp_path)) as host:
        ipc = Path(host.said["ipc"])
        host.process.send_signal(signal.SIGTERM)
        while ipc.exists() and host.process.poll() is None:  # the host is gone then, and the exit handler runs
            time.sleep(0.002)
        time.sleep(0.05)
        began = time.monotonic()
        code = host.end()[0]
        took_s = time.monotonic() - began
        assert code == 0 or (code == FORCED and took_s > 1.5)  # as above, on a busy machine: no sooner than in 1.8 s


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full, a disk that is always full")
@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["start"], 3, "the address of the host cannot be written to stdout: No space left on device"),
        (["start", "--restart"], 3, "the address of the host cannot be written to stdout: No space left on device"),
        (["doctor"], 1, "No space left on device"),
        (["keys", "show"], 1, "No space left on device"),
    ],
)
def test_a_full_disk_at_stdout_is_one_line_and_leaves_no_host(words: list[str], code: int, told: str) -> None:
    with open("/dev/full", "w") as full, started():
        before = {record.pid for record in discovery.list_hosts()}
        ended = subprocess.run(
            [*COMMAND, *words], stdout=full, stderr=subprocess.PIPE, text=True, timeout=LIMIT_S, check=False
        )
        assert ended.returncode == code
        assert told in ended.stderr.splitlines()[0]
        assert "Traceback" not in ended.stderr
        assert {record.pid for record in eventually(lambda: _hosts_if_no_others(before))} == before


def _hosts_if_no_others(pids: set[int]) -> list[discovery.ConnectionFile]:
    found = discovery.list_hosts()
    return found if {record.pid for record in found} == pids else []


# ---------------------------------------------------------------- exit codes


def test_exit_code_1_the_agent_raised_and_its_error_is_one_line(on: Here) -> None:
    ended = on("call", "w", "boom")
    assert (ended.code, ended.out, ended.err) == (1, "", "KeyError: 'nope' (in w.boom); --traceback shows where\n")


def test_exit_code_1_also_when_the_agent_raises_a_timeout_of_its_own(on: Here) -> None:
    ended = on("call", "w", "late")
    assert (ended.code, ended.err) == (1, "TimeoutError: my own (in w.late); --traceback shows where\n")


def test_the_agents_traceback_is_shown_when_asked_for(on: Here) -> None:
    ended = on("call", "w", "boom", "--traceback")
    assert ended.code == 1
    assert 'raise KeyError("nope")' in ended.err
    assert ended.err.endswith("\nKeyError: 'nope' (in w.boom)\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["call", "nobody", "add"], "there is no agent 'nobody' on cli-test"),
        (["call", "w", "missing"], "w has no public method 'missing'; it has: __call__, add, boom"),
        (["call", "w", "missing", "1"], "w has no public method 'missing'; it has: __call__, add, boom"),
        (["call", "w", "_secret"], "'_secret' is private"),
        (["create", "Nope"], "no agent class 'Nope'; it knows: Plain, Worker"),
        (["create", "Worker", "--agent-id", "w"], "there is already an agent 'w'"),
        (["delete", "nobody"], "there is no agent 'nobody'"),
        (["result", "nonsense"], "cli-test does not know the task 'nonsense'"),
        (["call", "w", "add", "--no-wait", "1"], "the result of add is not kept: call it without --no-wait"),
    ],
)
def test_exit_code_2_for_a_name_that_the_host_does_not_know(on: Here, words: list[str], told: str) -> None:
    ended = on(*words)
    assert (ended.code, ended.out) == (2, "")
    assert told in ended.err
    assert ended.err.count("\n") == 1


def test_exit_code_5_until_the_key_is_known_on_both_sides(host: Host, tmp_path: Path) -> None:
    other = {"ZMQAGENTS_KEYS": str(tmp_path / "keys"), "ZMQAGENTS_RUNTIME": str(tmp_path / "run")}
    refused = run("status", "--port", host.port, **other)
    assert refused.returncode == 5
    assert refused.stderr.startswith(f"as_server status: localhost:{host.port}: ")
    assert refused.stderr.count("\n") == 1

    ours, theirs = (json.loads(run("keys", "show", "--json", **env).stdout) for env in ({}, other))
    assert run("keys", "add", f"localhost:{host.port}", ours["server"], **other).returncode == 0
    assert run("status", "--port", host.port, **other).returncode == 5  # they know us, we not them
    try:
        assert run("keys", "add", "them", theirs["client"]).returncode == 0
        eventually(lambda: run("status", "--port", host.port, **other).returncode == 0)
    finally:
        assert run("keys", "remove", "them").returncode == 0


@pytest.mark.parametrize("words", [["call", "w", "sleep", "0.5"], ["call", "w", "slow", "0.5"]])
def test_exit_code_6_when_the_time_is_over(on: Here, words: list[str]) -> None:
    ended = on(*words, "--timeout", "0.05")
    assert (ended.code, ended.out) == (6, "")
    assert re.match(r"as_server call: w\.\w+ timed out after 0\.0\d+ s", ended.err)
    eventually(lambda: not open_calls(ended_port(on)))


def ended_port(on: Here) -> str:
    return str(on("status", "--json").json["port"])


def test_exit_code_130_for_a_call_that_is_interrupted_which_goes_on(host: Host) -> None:
    process = subprocess.Popen(
        [*COMMAND, "call", "w", "slow", "1.0", "--port", host.port],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        [call] = eventually(lambda: open_calls(host.port))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, out) == (130, "")
    assert f"as_server result {call['task_id']} gives its result" in err
    result = run("result", call["task_id"], "--port", host.port)
    assert (result.returncode, result.stdout) == (0, "1.0\n")


def test_a_host_that_hangs_is_exit_code_4_for_status_and_is_ended_by_stop() -> None:
    with started("--server-id", "hanging") as host:
        freeze(host.process.pid)
        status = run("status", "--port", host.port)
        assert (status.returncode, status.stderr.count("\n")) == (4, 1)
        stop = run("stop", "--port", host.port, "--grace", "0.5")
        assert stop.returncode == 0
        assert f"SIGKILL to its process {host.process.pid}" in stop.stderr
        assert host.process.wait(LIMIT_S) == -signal.SIGKILL


def test_the_id_of_a_call_is_not_printed_if_the_host_may_not_have_it(
    agent_dir: str, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started("--agent-dir", agent_dir, "--max-timeout-seconds", "0.5") as host:
        with RpcClient("localhost", host.said["port"]) as client:
            client.create_agent("Worker", agent_id="w")
        get_agent = RpcClient.get_agent

        def get_agent_and_hang(client: RpcClient, agent_id: str) -> Any:
            proxy = get_agent(client, agent_id)
            freeze(host.process.pid)
            return proxy

        monkeypatch.setattr(RpcClient, "get_agent", get_agent_and_hang)
        ended = here("call", "--port", host.port, "w", "slow", "0", "--no-wait")
        assert (ended.code, ended.out) == (4, "")
        assert "does not answer: it may have the call" in ended.err


def test_a_store_that_cannot_be_reached_is_exit_code_3_for_start() -> None:
    ended = run("start", "--pool-type", "redis", "--redis-url", "redis://127.0.0.1:1")
    assert (ended.returncode, ended.stdout) == (3, "")
    assert "the store for results cannot be reached" in ended.stderr


# ---------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("words", "thing"),
    [
        (["--nonsense"], "--nonsense"),
        (["--capacity", "0"], "--capacity must be a whole number of at least 1, not 0"),
        (["--capacity", "-1"], "--capacity must be"),
        (["--capacity", "many"], "--capacity"),
        (["--port", "70000"], "--port must be a whole number from 0"),
        (["--port", "-1"], "--port must be"),
        (["--max-pool-size", "-1"], "--max-pool-size must be"),
        (["--max-expire-time", "-1"], "--max-expire-time must be"),
        (["--max-expire", "0"], "--max-expire-time must be"),
        (["--max-timeout-seconds", "-1"], "--max-timeout-seconds must be"),
        (["--max-timeout-seconds", "nan"], "--max-timeout-seconds must be"),
        (["--grace", "-1"], "--grace must be a number of seconds, 0 or more"),
        (["--host", "two words"], "--host must be a host name"),
        (["--server-id", "a/b"], "--server-id must be"),
        (["--agent-dir", "/nowhere"], "--agent-dir: '/nowhere' is not a directory; give one that holds .py files"),
        (["--model-config-path", "/nowhere.json"], "--model-config-path: there is no file '/nowhere.json'"),
        (["--studio-url", "nowhere"], "--studio-url must be a URL"),
        (["--redis-url", "nowhere"], "--redis-url must be a URL"),
        (["--pool-type", "disk"], "--pool-type"),
        (["--log-level", "loud"], "--log-level"),
        (["--insecure"], "--insecure opens the host to every program that can reach its port: add --local-mode"),
        (["--insecure=sure"], "--insecure must be True, False or 'yes-i-mean-it', not 'sure'"),
        (["--file-root", "/nowhere"], "--file-root: '/nowhere' is not a directory"),
        (["--max-message-mb", "0"], "'--max-message-mb': '0' is not a number of MiB above 0"),
        (["--max-pool-mb", "many"], "'--max-pool-mb': 'many' is not a number of MiB above 0"),
        (["extra"], "extra"),
    ],
)
def test_a_wrong_option_of_start_is_one_line_that_names_it(here: Here, words: list[str], thing: str) -> None:
    ended = here("start", *words)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("as_server start: ")
    assert thing in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["frobnicate"], "as_server: No such command 'frobnicate'"),
        (["--nonsense"], "as_server: No such option"),
        (["call"], "as_server call: Missing argument 'AGENT'"),
        (["call", "w", "add", "-x"], "as_server call: No such option"),
        (["call", "w", "add", "True"], "True is no JSON: write true"),
        (["call", "w", "add", "step=None"], "None is no JSON: write null"),
        (["call", "w", "add", "{step: 1}"], "'{step: 1}' begins like JSON and is none"),
        (["call", "w", "add", "step=1", "step=2"], "step= is given twice"),
        (["call", "w", "add", "--timeout", "-1"], "'-1' is not a number of seconds"),
        (["call", "w", "add", "--timeout", "soon"], "'soon' is not a number of seconds"),
        (["create", "Worker", "agent_id=x"], "the id of the agent is --agent-id"),
        (["stop", "--grace", "nan"], "'nan' is not a number of seconds"),
        (["status", "--port", "70000"], "--port"),
        (["status", "--host", "elsewhere.example"], "a host on elsewhere.example needs its --port"),
        (["keys", "frobnicate"], "as_server keys: No such command"),
        (["completion", "tcsh"], "as_server completion: "),
    ],
)
def test_wrong_usage_is_one_line(here: Here, words: list[str], told: str) -> None:
    ended = here(*words)
    assert (ended.code, ended.out) == (2, "")
    assert told in ended.err
    assert ended.err.count("\n") == 1


def test_without_a_verb_the_help_is_a_message_and_the_exit_code_2(here: Here) -> None:
    ended = here()
    assert (ended.code, ended.out) == (2, "")
    assert "Exit codes: 0 done" in ended.err


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_verb_explains_itself_and_each_of_its_options(here: Here, flag: str) -> None:
    for words in [[], ["keys"], *([name] for name in cli.shell.commands), *(["keys", n] for n in KEY_VERBS)]:
        ended = here(*words, flag)
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.startswith("Usage: as_server")
    undocumented = [
        (name, param.name)
        for name, command in cli.shell.commands.items()
        for param in command.params
        if param.param_type_name == "option" and not getattr(param, "help", None)
    ]
    assert undocumented == []


def test_every_option_can_come_from_the_environment() -> None:
    keys = cli.shell.commands["keys"]
    assert isinstance(keys, click.Group)
    options = {
        (command.name, param.opts[0].lstrip("-").replace("-", "_")): param.envvar
        for command in [*cli.shell.commands.values(), *keys.commands.values()]
        for param in command.params
        if isinstance(param, click.Option)
    }
    assert ("result", "wait") in options
    assert {key: name for key, name in options.items() if name != f"AS_SERVER_{key[1].upper()}"} == {}


KEY_VERBS = ["path", "show", "add", "token", "list", "export", "import", "rotate", "retire", "remove", "forget"]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"a.py": "import nothing_of_this_name"}, r"agents/a\.py:1: ModuleNotFoundError: No module named"),
        (
            {"a.py": "1 / 0", "b.py": "def broken("},
            r"2 files cannot be loaded; correct or remove: .*a\.py:1: ZeroDivisionError.*b\.py:1: SyntaxError",
        ),
    ],
)
def test_a_directory_of_which_nothing_can_be_loaded_is_one_line(
    tmp_path: Path, files: dict[str, str], told: str
) -> None:
    directory = tmp_path / "agents"
    directory.mkdir()
    for name, text in files.items():
        (directory / name).write_text(text)
    ended = run("start", "--agent-dir", str(directory))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1
    assert re.search(told, ended.stderr), ended.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [("{", "models.json"), ('[{"config_name": "a", "api_key": "sk-secret"}]', "model_type")],
)
def test_a_malformed_model_config_is_one_line_without_its_secrets(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "models.json"
    path.write_text(text)
    ended = run("start", "--model-config-path", str(path))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert told in ended.stderr
    assert "sk-secret" not in ended.stderr
    assert ended.stderr.count("\n") == 1


# ---------------------------------------------------------------- the options of start


def test_every_option_of_start_reaches_the_host(tmp_path: Path, agent_dir: str) -> None:
    models = tmp_path / "models.json"
    models.write_text('{"config_name": "m", "model_type": "openai_chat", "model_name": "q", "api_key": "sk-secret"}')
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    wanted = {
        "host": "127.0.0.1", "port": port, "capacity": 3, "pool_type": "local",
        "redis_url": "redis://***@localhost:1/2", "max_pool_size": 7, "max_expire_time": 8.5,
        "max_timeout_seconds": 2.5, "local_mode": True, "model_config_path": str(models), "agent_dir": agent_dir,
        "server_id": "flipped", "studio_url": "http://***@127.0.0.1:9/x", "grace_s": 0.25, "insecure": True,
        "file_roots": [agent_dir, str(tmp_path)], "max_message_bytes": 3 << 19, "max_pool_bytes": 2 << 20,
        "max_queued_bytes": 3 << 20, "max_structured_bytes": 1 << 20, "hang_limit_s": 4.5,
        "logs": {"level": "error", "format": "text", "output": "stderr", "child": ""},
    }  # fmt: skip
    default = BrokerConfig().public()
    assert [name for name, value in wanted.items() if default[name] == value] == ["pool_type"]
    options = [
        "--host", "127.0.0.1", "--port", str(port), "--capacity", "3", "--pool-type", "local",
        "--redis-url", "redis://me:sk-secret@localhost:1/2", "--max-pool-size", "7", "--max-expire", "8.5",
        "--max-timeout-seconds", "2.5", "--local-mode", "--model-config-path", str(models), "--agent-dir", agent_dir,
        "--server-id", "flipped", "--studio-url", "http://me:sk-secret@127.0.0.1:9/x", "--grace", "0.25", "--insecure",
        "--file-root", agent_dir, "--file-root", str(tmp_path), "--max-message-mb", "1.5", "--max-pool-mb", "2",
        "--max-queued-mb", "3", "--max-structured-mb", "1", "--hang-limit", "4.5", "--log-level", "error",
        "--log-format", "text", "--agent-output", "stderr",
    ]  # fmt: skip
    with started(*options) as host:
        shown = run("status", "--server-id", "flipped", "--json")
        assert shown.returncode == 0, shown.stderr
        settings = json.loads(shown.stdout)["settings"]
        assert {name: settings[name] for name in wanted} == wanted
        assert {name for name in settings if name not in wanted and settings[name] != default[name]} <= {"max_threads"}
        made = run("create", "Worker", "--port", str(port), "--agent-id", "w")
        assert made.returncode == 0, made.stderr
        assert run("call", "w", "configured", "m", "--port", str(port)).stdout == "q\n"
        text = run("status", "--port", str(port))
        assert "sk-secret" not in text.stdout + shown.stdout
        code, _, err = host.end()
    assert code == 0
    assert f"warning: --insecure: any user of this machine can call the agents on port {port}\n" in err
    assert "sk-secret" not in err


def test_the_defaults_of_start_are_those_of_the_launcher(here: Here) -> None:
    shown = here("doctor", "--json").json["settings"]
    defaults = BrokerConfig().public() | {"server_id": ""}
    assert {name: found["value"] for name, found in shown.items()} == {name: defaults[name] for name in shown}
    assert {found["origin"] for found in shown.values()} == {"default"}


def test_capacity_1_runs_one_agent_at_a_time_and_2_two(agent_dir: str) -> None:
    took = {}
    for capacity in (1, 2):
        options = ["--agent-dir", agent_dir, "--capacity", str(capacity)]
        with started(*options) as host, RpcClient("localhost", host.said["port"]) as client:
            agents = [client.create_agent("Worker") for _ in range(2)]
            began = time.monotonic()
            for result in [agent.slow(0.4) for agent in agents]:
                assert result.result(LIMIT_S) == 0.4
            took[capacity] = time.monotonic() - began
    assert took[1] >= 0.8
    assert 0.4 <= took[2] < 0.8


def test_results_are_kept_in_the_number_and_for_the_seconds_that_were_said(agent_dir: str, here: Here) -> None:
    with started("--agent-dir", agent_dir, "--max-pool-size", "1", "--max-expire-time", "0.5") as host:
        with RpcClient("localhost", host.said["port"]) as client:
            worker = client.create_agent("Worker", agent_id="w")
            tasks = []
            for number in range(2):
                result = worker.slow(number / 1000)
                result.result(LIMIT_S)
                tasks.append(result.task_id)
        old, new = (here("result", task, "--port", host.port) for task in tasks)
        assert (old.code, new.code, new.out) == (1, 0, "0.001\n")
        assert "was dropped: results are kept 0.5 s, at most 1 of them" in old.err
        eventually(lambda: here("result", tasks[1], "--port", host.port).code == 1)


def test_the_host_registers_with_the_studio_under_its_real_port() -> None:
    bodies: list[dict[str, Any]] = []

    class Studio(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b'{"status": "ok"}')

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    with http.server.HTTPServer(("127.0.0.1", 0), Studio) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            with started("--studio-url", url, "--host", "127.0.0.1", "--server-id", "seen") as host:
                eventually(lambda: bodies)
                assert bodies == [{"server_id": "seen", "host": "127.0.0.1", "port": host.said["port"]}]
                assert host.end() == (0, "", "")
        finally:
            server.shutdown()
            thread.join()


def test_a_bad_agent_file_is_reported_and_left_out_unless_strict(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(AGENTS)
    (tmp_path / "bad.py").write_text("import nothing_of_this_name")
    with started("--agent-dir", str(tmp_path)) as host:
        assert "Worker" in run("status", "--port", host.port).stdout
        code, _, err = host.end()
    assert code == 0
    assert err.startswith(f"agent file left out: {tmp_path}/bad.py:1: ModuleNotFoundError: No module named")
    assert err.count("\n") == 1
    strict = run("start", "--agent-dir", str(tmp_path), "--strict")
    assert (strict.returncode, strict.stdout) == (2, "")
    assert "bad.py:1: ModuleNotFoundError" in strict.stderr
    assert strict.stderr.count("\n") == 1


def test_log_level_info_logs_to_stderr_what_warning_does_not() -> None:
    with started("--log-level", "info", "--server-id", "talking") as host:
        code, out, err = host.end()
    assert (code, out) == (0, "")
    assert re.search(r"INFO zmqagents\.[\w.]+: talking: stopping", err)


def test_no_log_logs_nothing() -> None:
    with started("--no-log", "--log-level", "info", "--server-id", "silent") as host:
        code, out, err = host.end()
    assert (code, out, err) == (0, "", "")


def test_grace_bounds_the_stop_of_a_host_with_a_stuck_method(agent_dir: str) -> None:
    with (
        started("--agent-dir", agent_dir, "--grace", "0.2") as host,
        RpcClient("localhost", host.said["port"]) as client,
    ):
        stuck = client.create_agent("Worker").slow(1e6)
        eventually(lambda: any(call["state"] == "running" for call in client.get_call_list()))
        began = time.monotonic()
        code, _, err = host.end()
        assert 0.2 <= time.monotonic() - began < 4
        assert code in (0, FORCED)  # as above
        assert "1 calls were cut off" in err or code == FORCED
        with pytest.raises(errors.HostStopping):
            stuck.result(LIMIT_S)


# ---------------------------------------------------------------- the environment


def test_each_option_of_start_can_come_from_the_environment(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "HOST": "127.0.0.1", "PORT": "7411", "CAPACITY": "3", "POOL_TYPE": "redis", "REDIS_URL": "redis://h:1",
        "REDIS_NAMESPACE": "mine",
        "MAX_POOL_SIZE": "7", "MAX_EXPIRE_TIME": "8.5", "MAX_TIMEOUT_SECONDS": "2.5", "LOCAL_MODE": "true",
        "MODEL_CONFIG_PATH": __file__, "AGENT_DIR": str(Path(__file__).parent), "SERVER_ID": "x",
        "STUDIO_URL": "http://h:2", "GRACE": "0.5", "INSECURE": "true", "FILE_ROOT": str(Path(__file__).parent),
        "MAX_MESSAGE_MB": "2", "MAX_STRUCTURED_MB": "1",
            "MAX_POOL_MB": "2", "MAX_QUEUED_MB": "3", "MAX_AGENTS": "9", "HANG_LIMIT": "4.5",
        "TYPES": "shop", "PLAIN_TYPES": "true", "ISOLATION": "pool", "PROCESSES": "2", "OTEL": "true",
            "CLUSTER": "shop", "LEASE": "9", "LABEL": "zone=a",
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(f"AS_SERVER_{name}", value)
    shown = json.loads(here("doctor", "--json").out)["settings"]
    assert {found["origin"] for found in shown.values()} == {f"AS_SERVER_{name}" for name in given}
    defaults = BrokerConfig().public()
    assert [name for name, found in shown.items() if found["value"] == defaults[name]] == []


def test_what_is_typed_wins_over_the_environment(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AS_SERVER_CAPACITY", "3")
    monkeypatch.setenv("AS_SERVER_LOCAL_MODE", "True")
    shown = here("doctor", "--capacity", "4", "--no-local-mode", "--json").json["settings"]
    assert shown["capacity"] == {"value": 4, "origin": "argument"}
    assert shown["local_mode"] == {"value": False, "origin": "argument"}


def test_as_server_port_serves_the_other_verbs_too(host: Host, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AS_SERVER_PORT", host.port)
    monkeypatch.setenv("AS_SERVER_JSON", "1")
    assert here("status").json["server_id"] == "cli-test"


def test_a_wrong_value_from_the_environment_is_told_under_the_variables_name(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AS_SERVER_CAPACITY", "0")
    assert here("start").err.startswith("as_server start: AS_SERVER_CAPACITY must be a whole number")
    monkeypatch.setenv("AS_SERVER_CAPACITY", "many")
    assert "AS_SERVER_CAPACITY" in here("start").err


def test_as_server_version_and_help_are_no_options(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AS_SERVER_VERSION", "1")  # as an image's Dockerfile may say
    monkeypatch.setenv("AS_SERVER_HELP", "1")
    assert here("doctor", "--json").json["versions"]["zmqagents"]


# ---------------------------------------------------------------- which host


def test_without_a_port_the_one_host_is_meant_and_of_several_one_must_be_chosen(host: Host, here: Here) -> None:
    assert here("status", "--json").json["server_id"] == "cli-test"
    with started("--server-id", "second") as second:
        several = here("status")
        assert (several.code, several.out) == (2, "")
        assert (
            f"2 hosts are running: cli-test at localhost:{host.port}, second at localhost:{second.port}" in several.err
        )
        assert several.err.count("\n") == 1
        assert here("stop").code == 2
        assert here("status", "--server-id", "second", "--json").json["port"] == second.said["port"]
        assert here("status", "--host", "127.0.0.1", "--port", host.port, "--json").json["server_id"] == "cli-test"
        assert here("status", "--server-id", "second", "--port", host.port).code == 4
    assert here("status", "--json").json["server_id"] == "cli-test"


def test_a_private_host_is_meant_only_by_its_id(host: Host, here: Here) -> None:
    from zmqagents.server.launcher import RpcAgentServerLauncher

    with RpcAgentServerLauncher(private=True, server_id="private") as private:
        assert here("status", "--json").json["server_id"] == "cli-test"
        assert here("status", "--server-id", "private", "--json").json["pid"] == private.pid


# ---------------------------------------------------------------- calls


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["1", "2.5", "true", "null"], [[1, 2.5, True, None], {}]),
        (["word", "two words", "", "-1", "--", "-x"], [["word", "two words", "", -1, "-x"], {}]),
        (['"quoted"', '"true"', "3rd"], [["quoted", "true", "3rd"], {}]),
        (['[1, {"a": [2]}]', "k={}", "text=why?", "n=-2"], [[[1, {"a": [2]}]], {"k": {}, "text": "why?", "n": -2}]),
        (["http://h/?q=1", '"a=b"', "not-a-name=1", "if=1"], [["http://h/?q=1", "a=b", "not-a-name=1", "if=1"], {}]),
        (["a==b", "NaN", "x="], [["NaN"], {"a": "=b", "x": ""}]),
        (["123456789012345678901234567890"], [[123456789012345678901234567890], {}]),
    ],
)
def test_arguments_arrive_as_they_were_typed(on: Here, words: list[str], given: list[Any]) -> None:
    assert on("call", "w", "given", "--json", *words).json == given


def test_a_methods_own_parameter_timeout_is_no_deadline(on: Here) -> None:
    assert on("call", "w", "patient", "timeout=0").out == "0\n"
    assert on("call", "w", "sleep", "0.5", "timeout=0.05").code == 6  # it has none: as in Python


def test_a_value_is_a_text_as_it_is_or_json(on: Here) -> None:
    assert on("call", "w", "reply", "a\nb").out == "you said a\nb\n"
    assert on("call", "w", "reply", "ä").out == "you said ä\n"
    assert on("call", "w", "reply", "ä", "--json").out == '"you said ä"\n'
    assert on("call", "w", "__call__", "x").out == "you said x\n"
    assert on("call", "w", "sleep", "0").out == "null\n"
    assert on("call", "w", "given", "1").out == "[\n  [\n    1\n  ],\n  {}\n]\n"


def test_an_attribute_is_read_like_a_call_without_arguments(on: Here) -> None:
    assert on("create", "Worker", "-7", "more=1", "--agent-id", "seven").out == "seven\n"
    assert on("call", "seven", "total").out == "-7\n"
    assert on("call", "seven", "more", "--json").out == '{"more": 1}\n'
    assert on("delete", "seven").out == "deleted seven\n"
    assert on("call", "seven", "total").code == 2


def test_a_stream_is_printed_item_by_item(on: Here) -> None:
    assert on("call", "w", "count", "3").out == "0\n1\n2\n"


def test_a_call_that_nobody_waits_for_can_be_listed_cancelled_and_read(host: Host, on: Here) -> None:
    first = on("call", "w", "slow", "1.5", "--no-wait")
    assert (first.code, first.err) == (0, "")
    second = on("call", "w", "slow", "0.0", "--no-wait", "--json").json["task_id"]
    rows = on("calls", "--json").json
    assert [row["task_id"] for row in rows] == [first.out.strip(), second]
    assert on("calls").out.splitlines()[0].split()[:5] == ["task_id", "agent", "method", "state", "age_s"]
    assert on("result", first.out.strip(), "--timeout", "0").code == 6
    assert on("cancel", second).out == f"cancelled {second}\n"
    cancelled = on("result", second)
    assert cancelled.code == 1
    assert "w.slow was cancelled" in cancelled.err
    assert on("result", first.out.strip()).out == "1.5\n"
    assert on("cancel", first.out.strip()).out == f"{first.out.strip()} had ended already\n"


def test_empty_lists_are_empty_on_stdout_and_said_on_stderr(on: Here) -> None:
    eventually(lambda: on("calls", "--json").json == [])
    ended = on("calls")
    assert (ended.code, ended.out, ended.err) == (0, "", "no open calls\n")


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    tags: set[str]


class Sent:
    def to_dict(self) -> dict[str, Any]:
        return {"role": "user", "parts": (1, b"\x00")}


ID = uuid.UUID(int=7)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ((1, [2.5, None], True), [1, [2.5, None], True]),
        ({"a": 1, 2: "b", (3, 4): "c", None: "d"}, {"a": 1, "2": "b", "[3, 4]": "c", "null": "d"}),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({"b", "a"}), ["a", "b"]),
        ({1, "a"}, ["a", 1]),
        (b"\x00\xff", "AP8="),
        ([float("nan"), float("inf"), -0.0], ["nan", "inf", -0.0]),
        (datetime.datetime(2024, 2, 29, 12, 0, tzinfo=datetime.timezone.utc), "2024-02-29T12:00:00+00:00"),
        ([datetime.date(2024, 2, 29), datetime.time(1, 2)], ["2024-02-29", "01:02:00"]),
        (datetime.timedelta(minutes=1.5), 90.0),
        ([Decimal("1.10"), ID, Path("/a"), 1 + 2j], ["1.10", str(ID), "/a", "(1+2j)"]),
        (
            [Colour.RED, Point(1, {"t"}), Sent()],
            ["red", {"x": 1, "tags": ["t"]}, {"role": "user", "parts": [1, "AA=="]}],
        ),
        (ValueError("wrong"), "ValueError: wrong"),
    ],
)
def test_what_json_lacks_is_shown_as_what_says_most(value: Any, shown: Any) -> None:
    assert plain(value) == shown
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == shown


def test_a_numpy_array_is_shown_as_a_list() -> None:
    assert plain({"a": numpy.arange(4).reshape(2, 2), "b": numpy.float32(0.5)}) == {"a": [[0, 1], [2, 3]], "b": 0.5}


def test_a_proxy_and_a_pending_result_are_shown_without_a_call(host: Host) -> None:
    with RpcClient("localhost", host.said["port"]) as client:
        proxy = client.get_agent("w")
        [named] = [agent["class"] for agent in client.get_agent_list() if agent["agent_id"] == "w"]
        assert plain(proxy) == {"agent_id": "w", "proxy": f"<AgentProxy {named} 'w' at {client.address}>"}
        pending = proxy.slow(0.2)
        assert plain([pending]) == [{"task_id": pending.task_id, "server_id": "cli-test"}]
        assert not pending.done()
        pending.result(LIMIT_S)


# ---------------------------------------------------------------- stop


def test_a_host_that_is_still_there_after_its_time_is_exit_code_6(
    agent_dir: str, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zmqagents.cli.verbs.host.END_WAIT_S", -30.0)  # less than no time
    with started("--agent-dir", agent_dir) as host, RpcClient("localhost", host.said["port"]) as client:
        running = client.create_agent("Worker").slow(0.5)
        eventually(lambda: any(call["state"] == "running" for call in client.get_call_list()))
        ended = here("stop", "--port", host.port, "--grace", "30")
        assert (ended.code, ended.out) == (6, "")
        assert f"(pid {host.process.pid}) is still there" in ended.err
        assert running.result(LIMIT_S) == 0.5  # it does stop, in its own time
        assert_ended_in_order(*host.wait())


def test_stop_waits_until_the_port_can_be_used_again(here: Here) -> None:
    with started() as host:
        assert here("stop", "--port", host.port).code == 0
        with started("--port", host.port) as again:
            assert again.port == host.port


def test_stop_of_a_host_without_a_connection_file_waits_for_it_too(host: Host, tmp_path: Path) -> None:
    keys = tmp_path / "keys"  # the same keys and another runtime directory: as from another machine
    shutil.copytree(os.environ["ZMQAGENTS_KEYS"], keys)
    with started(ZMQAGENTS_KEYS=str(keys)) as other:
        elsewhere = {"ZMQAGENTS_KEYS": str(keys), "ZMQAGENTS_RUNTIME": str(tmp_path / "run")}
        stopped = run("stop", "--port", other.port, **elsewhere)
        assert (stopped.returncode, stopped.stdout, stopped.stderr) == (0, f"stopped localhost:{other.port}\n", "")
        assert other.wait() == (0, "", "")


# ---------------------------------------------------------------- keys, doctor, completion


def test_keys_are_shown_added_listed_and_removed(here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = tmp_path / "keys"
    monkeypatch.setenv("ZMQAGENTS_KEYS", str(store))
    assert here("keys", "path").out == f"{store}\n"
    own = here("keys", "show", "--json").json
    assert own.keys() == {"client", "server"}
    secrets = [re.search(r"secret = (\S+)", (store / f"{name}.key").read_text()) for name in own]
    shown = here("keys", "show").out + here("keys", "list").out
    assert all(secret is not None and secret[1] not in shown for secret in secrets)
    assert own["client"] in shown

    assert here("keys", "list", "--json").json == [{"name": "self", "role": "admin", "public": own["client"]}]
    assert here("keys", "add", "ann", own["server"]).out == "added ann\n"
    assert here("keys", "add", "Far.Example:7411", own["server"]).out == "added Far.Example:7411\n"
    assert [(row["name"], row["role"]) for row in here("keys", "list", "--json").json] == [
        ("ann", "call"), ("self", "admin"), ("far.example:7411", "host"),
    ]  # fmt: skip
    assert here("keys", "add", "ann", own["server"], "--role", "admin").code == 0
    other = "-^fEzTFoCvFqgxg8+3)k5NmGI6i1(Qv^62kt4kzW"  # such keys there are
    assert here("keys", "add", "bob", other).code == 0
    assert here("keys", "remove", "bob").code == 0
    assert "ann               admin" in here("keys", "list").out
    token = here("keys", "token", "ann").out
    assert re.fullmatch(r"zat\.[\w-]+\.[\w-]{43}\n", token)
    assert here("keys", "token", "ann", "--json").json == {"name": "ann", "token": token.strip()}
    assert here("keys", "token").out == here("keys", "token", "self").out != token
    assert here("keys", "add", "eve", other, "--role", "view").code == 0
    assert here("keys", "remove", "eve").code == 0
    assert here("keys", "remove", "ann").out == "removed ann\n"
    assert here("keys", "forget", "FAR.example:7411").out == "forgot FAR.example:7411\n"
    assert here("keys", "add", "far.example:7411", own["server"]).code == 0
    assert here("keys", "remove", "far.example:7411").code == 0
    assert [row["name"] for row in here("keys", "list", "--json").json] == ["self"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["add", "ann", "tooshort"], "a key is 40 characters of Z85 text"),
        (["add", "../ann", "x" * 40], "'../ann' cannot be the name of a key"),
        (["add", "host:port", "x" * 40], "'host:port' is no HOST:PORT"),
        (["remove", "nobody"], "there is no key of 'nobody'; as_server keys list shows those there are"),
        (["remove", "far.example:1"], "there is no key of 'far.example:1'"),
        (["forget", "far.example:1"], "there is no key of 'far.example:1'"),
        (["forget", "nobody"], "'nobody' is no HOST:PORT"),
        (["token", "nobody"], "there is no key of 'nobody'; as_server keys list shows those there are"),
    ],
)
def test_a_wrong_key_or_name_is_exit_code_2(
    here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], told: str
) -> None:
    monkeypatch.setenv("ZMQAGENTS_KEYS", str(tmp_path / "keys"))
    ended = here("keys", *words)
    assert (ended.code, ended.out) == (2, "")
    assert told in ended.err


def test_doctor_looks_at_the_keys_and_at_what_may_be_downloaded(
    here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = tmp_path / "keys"
    monkeypatch.setenv("ZMQAGENTS_KEYS", str(store))
    public = here("keys", "show", "--json").json["client"]
    assert here("keys", "add", "far.example:1", public).code == 0
    assert here("doctor").code == 0
    (store / "authorized" / "twice.pub").write_text(f"public = {public}\n")
    (store / "known_hosts" / "far.example_1.pub").chmod(0o622)
    ill = here("doctor", "--file-root", str(tmp_path))
    assert ill.code == 2
    lines = ill.err.splitlines()
    assert [line.split(": ", 1)[0] for line in lines] == ["problem"] * 3
    assert "twice.pub holds the same key as self.pub, which counts" in lines[0]
    assert "far.example_1.pub is open to others (mode 0622): chmod 600" in lines[1]
    assert f"--file-root: the key store {store} could be read through {tmp_path}" in lines[2]


def test_doctor_sees_that_the_path_of_a_socket_is_too_long(
    here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir(mode=0o700)
    monkeypatch.setenv("ZMQAGENTS_RUNTIME", str(long))
    ill = here("doctor")
    assert ill.code == 2
    assert "set ZMQAGENTS_RUNTIME to a shorter directory" in ill.err


def test_doctor_names_what_stands_in_the_way(here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    healthy = here("doctor")
    assert (healthy.code, healthy.err) == (0, "")
    tmp_path.chmod(0o755)
    monkeypatch.setenv("ZMQAGENTS_KEYS", str(tmp_path))
    ill = here("doctor", "--capacity", "0", "--redis-url", "redis://me:sk-secret@h:1")
    assert ill.code == 2
    assert "problem: --capacity must be a whole number" in ill.err
    assert f"chmod 700 {tmp_path}" in ill.err
    assert "sk-secret" not in ill.out + ill.err
    assert re.search(r"^capacity +0 +argument$", ill.out, re.MULTILINE)


def test_doctor_lists_the_hosts_that_run(host: Host, here: Here) -> None:
    [found] = here("doctor", "--json").json["hosts"]
    assert (found["server_id"], found["port"], found["pid"]) == ("cli-test", host.said["port"], host.process.pid)


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_the_completion_script_calls_us_back_and_gets_the_verbs(name: str) -> None:
    script = run("completion", name)
    assert script.returncode == 0
    assert f"_AS_SERVER_COMPLETE={name}_complete" in script.stdout
    words = "as_server st" if name != "fish" else "as_server"
    asked = run(COMP_WORDS=words, COMP_CWORD="1" if name != "fish" else "st", _AS_SERVER_COMPLETE=f"{name}_complete")
    assert [verb for verb in ("start", "stop", "status", "call") if verb in asked.stdout] == ["start", "stop", "status"]


# ---------------------------------------------------------------- starting quickly


def test_the_version_is_told_without_loading_zeromq() -> None:
    script = "import sys\nfrom zmqagents.cli import main\ntry: main(['--version'])\nfinally: print(sorted(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LIMIT_S)
    assert ended.returncode == 0
    version, modules = ended.stdout.splitlines()
    assert re.fullmatch(r"as_server \d+\.\d+\.\d+\S*", version)
    assert "'click'" in modules
    assert not re.search(r"'zmqagents\.cli\.(start|host|calls|bench|keys|machine)'", modules)
    assert not re.search(r"'(zmq|msgpack|cachetools|redis|zmqagents\.(client|broker|codec|security))'", modules)


# ---------------------------------------------------------------- regressions


def test_defect_1_agent_dir_is_used_and_not_dropped(on: Here) -> None:
    assert on("create", "Worker", "--agent-id", "from-the-directory").code == 0
    assert on("delete", "from-the-directory").code == 0


def listening(pid: int) -> set[str]:
    process = psutil.Process(pid)
    connections = getattr(process, "net_connections", None) or process.connections
    return {each.laddr.ip for each in connections("tcp") if each.status == psutil.CONN_LISTEN}


@pytest.mark.parametrize("words", [["--local-mode", "False"], ["--local-mode=False"], ["--local-mode", "true"]])
def test_defect_2_local_mode_false_does_not_mean_true(here: Here, words: list[str]) -> None:
    ended = here("start", *words)
    assert (ended.code, ended.out) == (2, "")
    assert "--local-mode takes no value: write --local-mode or --no-local-mode" in ended.err


def test_defect_2_local_mode_listens_on_loopback_and_no_local_mode_everywhere() -> None:
    with started("--no-local-mode", AS_SERVER_LOCAL_MODE="True") as host:
        assert listening(host.process.pid) == {"0.0.0.0"}
    with started(AS_SERVER_LOCAL_MODE="False") as host:
        assert listening(host.process.pid) == {"0.0.0.0"}
    with started("--local-mode") as host:
        assert listening(host.process.pid) == {"127.0.0.1"}


def test_defect_3_each_option_is_documented_under_the_name_that_works(here: Here) -> None:
    shown = " ".join(here("start", "--help").out.split())
    for option in [
        "--host", "--port", "--capacity", "--pool-type", "--redis-url", "--max-pool-size", "--max-expire-time",
        "--max-expire", "--max-timeout-seconds", "--local-mode", "--no-local-mode", "--model-config-path",
        "--agent-dir", "--server-id", "--studio-url",
    ]:  # fmt: skip
        assert option in shown
    assert "--pool-type [local|redis] Where results are kept." in shown
    both = [here("doctor", option, "9", "--json").json for option in ("--max-expire", "--max-expire-time")]
    assert [each["settings"]["max_expire_time"]["value"] for each in both] == [9.0, 9.0]
    assert here("start", "--max-exp", "9").code == 2  # no guessing by prefix


def test_defect_4_stop_says_the_truth_and_can_be_repeated(here: Here) -> None:
    with started("--server-id", "brief") as host:
        first = here("stop", "--port", host.port)
        assert (first.code, first.out, first.err) == (0, f"stopped brief at localhost:{host.port}\n", "")
        assert host.wait() == (0, "", "")
        for words in (["--port", host.port], ["--port", host.port, "--host", "127.0.0.1"]):
            again = here("stop", *words)
            assert (again.code, again.err) == (0, "")
            assert re.fullmatch(rf"no host is running at \S+:{host.port}\n", again.out)
        assert here("stop", "--server-id", "brief").out == "no host brief of yours is running on this machine\n"


def test_defect_5_status_of_a_dead_host_is_exit_code_4_without_a_traceback() -> None:
    with started() as host:
        assert host.end()[0] == 0
        ended = run("status", "--port", host.port)
    assert (ended.returncode, ended.stdout) == (4, "")
    said = f"localhost:{host.port}: nothing listens there; as_server doctor lists the hosts of this machine"
    assert ended.stderr == f"as_server status: {said}\n"


def test_defect_6_a_busy_port_is_an_error_and_never_another_port(host: Host) -> None:
    ended = run("start", "--port", host.port)
    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr.startswith(f"as_server start: port {host.port} is in use: stop what listens there, or choose")
    assert ended.stderr.count("\n") == 1


def test_a_server_id_that_is_taken_is_exit_code_3_too(host: Host) -> None:
    ended = run("start", "--server-id", "cli-test")
    assert (ended.returncode, ended.stdout) == (3, "")
    assert "a host already listens on" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert run("status", "--port", host.port).returncode == 0


def test_defect_27_a_to_dist_dict_is_read_and_never_changed(host: Host, agent_dir: str) -> None:
    [worker, _] = load_custom_class_from_file(Path(agent_dir, "workers.py"))
    where = {"host": "localhost", "port": host.said["port"]}
    before = dict(where)
    made: list[Any] = [worker(number, to_dist=where) for number in range(2)]
    assert where == before
    with RpcClient("localhost", host.said["port"]) as client:
        here_too = {agent["agent_id"] for agent in client.get_agent_list()}
        assert {agent.agent_id for agent in made} <= here_too
        assert [agent.total for agent in made] == [0, 1]
        for agent in made:
            client.delete_agent(agent.agent_id)
        del made, agent  # so that this client is the last, and closes the connection
    assert issubclass(worker, AgentBase)
    with pytest.raises(errors.ConfigError, match="to_dist does not know max_pool_size"):
        worker(to_dist=where | {"max_pool_size": 3})  # the metaclass takes it


def test_defect_28_two_classes_of_one_name_are_an_error_that_names_both_files(tmp_path: Path) -> None:
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text("from zmqagents import AgentBase\nclass Twin(AgentBase): pass\n")
    ended = run("start", "--agent-dir", str(tmp_path))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"agent class Twin is defined in {tmp_path}/one.py and in {tmp_path}/two.py" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_defect_29_a_class_without_our_base_is_hosted(on: Here) -> None:
    assert on("create", "Plain", "world", "--agent-id", "plain").out == "plain\n"
    assert on("call", "plain", "hello").out == "hello world\n"
    assert on("delete", "plain").code == 0


def test_defect_30_errors_reach_the_caller_with_their_reasons(host: Host) -> None:
    with RpcClient("localhost", host.said["port"]) as client:
        with pytest.raises(errors.UnknownClass, match="no agent class 'Nope'; it knows: Plain, Worker"):
            client.create_agent("Nope")
        with pytest.raises(errors.UnknownAgent, match="there is no agent 'nobody' on cli-test"):
            client.get_agent_memory("nobody")


# ---------------------------------------------------------------- stubs


def test_stubs_of_a_running_host_and_of_its_files_have_the_same_methods(
    on: Here, here: Here, agent_dir: str, tmp_path: Path
) -> None:
    assert on("stubs", "-o", str(tmp_path), "--json").json == [str(tmp_path / "agents_proxies.pyi")]
    assert here("stubs", "--agent-dir", agent_dir, "-o", str(tmp_path)).out == f"{tmp_path / 'workers_proxies.pyi'}\n"
    of_host, of_files = ((tmp_path / f"{name}_proxies.pyi").read_text() for name in ("agents", "workers"))
    assert "class WorkerProxy:" in of_host
    assert "class AsyncWorkerProxy:" in of_host
    names = re.compile(r"class WorkerProxy:\n(.*?)\nclass ", re.DOTALL)
    methods = [sorted(re.findall(r"def (\w+)", names.findall(text)[0])) for text in (of_host, of_files)]
    assert methods[0] == methods[1]


def test_stubs_without_an_agent_class_or_a_place_to_write_say_so(here: Here, agent_dir: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    nothing = here("stubs", "--agent-dir", str(tmp_path / "empty"), "-o", str(tmp_path))
    assert (nothing.code, "no agent class" in nothing.err) == (2, True)
    (tmp_path / "file").touch()
    taken = here("stubs", "--agent-dir", agent_dir, "-o", str(tmp_path / "file"))
    assert (taken.code, "cannot be written" in taken.err) == (2, True)
