"""Every command on the how-to pages is typed here, as far as this machine has what it needs.

A page is read, and each of its shell commands must be run by the test of that page: one that is added, or changed,
fails until it is. Names that stand for something (a key, a task id, another machine) are replaced by what the test has.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosts import ROOT, environment, eventually, free_port
from image import stages
from redis_server import NO_SERVER, RedisServer
from typed import path_with_commands

pytestmark = pytest.mark.program

HOWTO = ROOT / "docs" / "howto"
SHOP = (ROOT / "examples" / "tutorial" / "shop.py").read_text(encoding="utf-8")


class Shell:
    """Types the commands of one page in a folder of its own; ``users`` have keys and hosts of their own."""

    def __init__(self, page: str, folder: Path, place: Path) -> None:
        self.page = page
        text = (HOWTO / page).read_text(encoding="utf-8")
        blocks = re.findall(r"^( *)\.\. code-block:: sh\n\n((?:\1 +.*\n|\n)+)", text, re.MULTILINE)
        joined = "\n".join(block for _, block in blocks).replace("\\\n", " ")
        lines = [line.partition("  #")[0].strip() for line in joined.splitlines()]
        self.left = [line for line in lines if line]
        self.folder, self.place = folder, place
        self.path = path_with_commands(folder)
        (folder / "shop.py").write_text(SHOP)

    def command(self, typed: str, **instead: str) -> str:
        """A command of the page, with some of its words replaced; it is not left any more."""
        assert typed in self.left, f"{self.page} does not say {typed!r}; it has {self.left}"
        self.left.remove(typed)
        for word, other in instead.items():
            assert word in typed
            typed = typed.replace(word, other)
        return typed

    def variables(self, user: str = "me", **more: str) -> dict[str, str]:
        place = self.place / user  # short: the path of a socket has 107 bytes
        keys = {"ZMQAGENTS_RUNTIME": str(place / "run"), "ZMQAGENTS_KEYS": str(place / "keys")}
        return environment(**{"PYTHONPATH": str(ROOT), "PATH": self.path} | keys | more)

    def run(self, command: str, user: str = "me", code: int = 0) -> str:
        done = subprocess.run(
            ["/bin/sh", "-c", command], cwd=self.folder, env=self.variables(user), capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
        assert done.returncode == code, f"{command}: {done.stderr}"
        return done.stdout

    @contextlib.contextmanager
    def started(self, command: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
        """What a command runs while the block lasts."""
        host = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {command}"], cwd=self.folder, env=self.variables(**variables),
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with host:
            assert host.stdout is not None
            try:
                assert "listening on" in host.stdout.readline()
                yield host
            finally:
                host.terminate()


@pytest.fixture
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shell]:
    """The shell of the page that the test names; at its end no command of the page is left."""
    with tempfile.TemporaryDirectory(prefix="zah") as place:
        made = Shell(request.param, tmp_path, Path(place))
        yield made
    assert made.left == [], "commands of the page that no test has run"


@pytest.fixture(scope="module")  # before the shell, which wants all commands to be run
def redis_url(shared_redis: RedisServer | None) -> str:
    if shared_redis is None:
        pytest.skip(NO_SERVER)
    return shared_redis.url


of_page = pytest.mark.parametrize


@of_page("shell", ["restart.rst"], indirect=True)
def test_a_host_is_started_again_with_its_agents(shell: Shell) -> None:
    port = str(free_port())
    start = "as_server start --restart --port 12010 --agent 'inv=shop:Inventory(limit=3)'"
    with shell.started(shell.command(start, **{"12010": port})):
        assert shell.run(shell.command("as_server call inv add pear")) == "1\n"
        kill = "kill -9 $(as_server status --json | python -c 'import json, sys; print(json.load(sys.stdin)[\"pid\"])')"
        shell.run(shell.command(kill))
        items = shell.command("as_server call inv items")

        def is_back() -> bool:
            with contextlib.suppress(AssertionError):
                return shell.run(items) == "[]\n"
            return False

        assert eventually(is_back, 20)


@of_page("shell", ["redis.rst"], indirect=True)
def test_results_outlive_the_host(redis_url: str, shell: Shell) -> None:
    typed = "as_server start --pool-type redis --redis-url redis://localhost:6379 --redis-namespace shop shop:Inventory"
    instead = {"redis://localhost:6379": redis_url, "namespace shop": f"namespace howto-{os.getpid()}"}
    start = shell.command(typed, **instead)
    with shell.started(start) as host:
        shell.run(shell.command("as_server create Inventory --agent-id inv"))
        task_id = shell.run(shell.command("as_server call inv count --no-wait")).strip()
        assert eventually(lambda: shell.run(f"as_server result {task_id}") == "0\n", 20)
        shell.run(shell.command("as_server stop"))
        host.wait(20)
    with shell.started(start):
        assert shell.run(shell.command("as_server result TASK_ID", TASK_ID=task_id)) == "0\n"
        assert task_id in shell.run(shell.command("as_server result --list"))


@of_page("shell", ["processes.rst"], indirect=True)
def test_agents_run_in_processes_that_can_be_restarted(shell: Shell) -> None:
    with shell.started(shell.command("as_server start --isolation pool --processes 4 shop:Inventory")):
        shell.run("as_server create Inventory --agent-id inv")
        assert "inv" in shell.run(shell.command("as_server children"))
        assert "restarted the process of inv" in shell.run(shell.command("as_server children --restart inv"))


@of_page("shell", ["keys.rst"], indirect=True)
def test_a_colleague_is_let_in_and_shown_out(shell: Shell) -> None:
    port = str(free_port())

    def key(user: str, kind: str) -> str:
        return str(json.loads(shell.run("as_server keys show --json", user))[kind])

    def typed(line: str, **instead: str) -> str:
        user, _, command = shell.command(line, **instead).partition("$")
        return shell.run(command.strip(), user)

    with shell.started(f"as_server start --port {port} shop:Inventory"):
        assert key("ann", "client") in typed("ann$  as_server keys show")
        typed("me$   as_server keys add ann 'ANN_CLIENT_KEY' --role call",
              **{"'ANN_CLIENT_KEY'": f"--role call -- '{key('ann', 'client')}'", " --role call": ""})  # fmt: skip
        assert key("me", "server") in typed("me$   as_server keys show")
        typed("ann$  as_server keys add my.machine:12010 'MY_SERVER_KEY'",
              **{"my.machine:12010": f"127.0.0.1:{port} --", "MY_SERVER_KEY": key("me", "server")})  # fmt: skip
        status = typed("ann$  as_server status --host my.machine --port 12010",
                       **{"my.machine": "127.0.0.1", "12010": port})  # fmt: skip
        assert "running" in status
        assert "ann" in typed("me$   as_server keys list")
        assert shell.run("as_server keys token ann").startswith("zat.")
        typed("me$   as_server keys rotate --after 86400", **{"86400": "0"})
        typed("me$    as_server keys export shop.keys")
        typed("me$   as_server keys remove ann")
        assert eventually(lambda: _is_refused(shell, port), 20)
    typed("me$   as_server keys retire")
    typed("other$ as_server keys import shop.keys")
    shell.command("other$ as_server keys import --follow shop.keys")  # has a test of its own, for it does not end


def _is_refused(shell: Shell, port: str) -> bool:
    with contextlib.suppress(AssertionError):
        shell.run(f"as_server status --host 127.0.0.1 --port {port}", "ann", code=5)
        return True
    return False


@of_page("shell", ["systemd.rst"], indirect=True)
def test_what_the_page_of_systemd_installs_is_there_and_starts(shell: Shell) -> None:
    """The commands with systemd itself need it as process 1; `test_systemd.py` runs the unit's command line."""
    unit = (ROOT / "packaging" / "zmqagents.service").read_text(encoding="utf-8")
    for line in list(shell.left):
        command = shell.command(line)
        for part in re.split(r" && ", command):
            words = shlex.split(part.removeprefix("sudo "))
            if words[0] == "cp":  # into a folder that stands for the machine
                target = shell.folder / "machine" / words[2].lstrip("/")
                (target if words[2].endswith("/") else target.parent).mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / words[1], target)
            elif words[0] == "useradd":
                assert f"User={words[-1]}" in unit
            elif words[0] == "systemctl":
                assert words[-1] in ("zmqagents", "daemon-reload")
            elif words[0] == "-u":
                assert all(f"{word}" in unit for word in words if word.startswith("ZMQAGENTS_"))
    assert f"--agent-dir /{'etc/zmqagents/agents'}" in unit
    with shell.started(f"as_server start --agent-dir {shell.folder}/machine/etc/zmqagents/agents words:Words",
                       PYTHONPATH=f"{ROOT}:{ROOT}/examples/tutorial"):  # fmt: skip
        assert "running" in shell.run("as_server status")
    assert (shell.folder / "machine/etc/systemd/system/zmqagents.service").read_text() == unit


@of_page("shell", ["docker.rst"], indirect=True)
def test_the_image_is_made_of_what_is_there_and_its_commands_work(shell: Shell) -> None:
    """No engine is needed: the steps of the file are read, and its commands run with its variables."""
    steps = dict(stages()[-1])
    build = shell.command("docker build -f packaging/Dockerfile -t zmqagents .")
    assert (ROOT / shlex.split(build)[3]).is_file()
    shell.command('docker run --name shop -d -p 12010:12010 -v keys:/keys -v "$PWD/agents:/agents:ro" zmqagents')
    assert (
        ROOT / shlex.split(shell.command("docker compose -f packaging/compose.yaml up --build --wait"))[3]
    ).is_file()
    shell.command("docker compose -f packaging/compose.yaml exec agents-1 as_server hosts")
    more = shell.command(
        "docker run -d -p 12010:12010 -v keys:/keys -e AS_SERVER_CAPACITY=8 "
        "zmqagents start --agent-dir /agents --isolation pool"
    )
    start = [*json.loads(steps["ENTRYPOINT"]), *json.loads(steps["CMD"])]
    (shell.folder / "agents").mkdir()
    shutil.copy(ROOT / "examples" / "tutorial" / "words.py", shell.folder / "agents")
    words = [str(shell.folder / "agents") if word == "/agents" else word for word in start]
    assert shlex.split(more)[-5:-2] == ["start", "--agent-dir", "/agents"]
    words += shlex.split(more)[-2:]
    given = dict(re.findall(r"(AS_SERVER_\w+)=(\S+)", steps["ENV"]))
    given |= {"AS_SERVER_PORT": str(free_port()), "AS_SERVER_CAPACITY": "8", "PYTHONUNBUFFERED": "1"}
    with shell.started(shlex.join(words), **given) as host:
        health = subprocess.run(
            json.loads(steps["HEALTHCHECK"].partition("CMD ")[2]), cwd=shell.folder, capture_output=True,
            env=shell.variables(**given), text=True, timeout=60,
        )  # fmt: skip
        assert (health.returncode, health.stderr) == (0, "")
        key = json.loads(shell.run("as_server keys show --json", "elsewhere"))["client"]
        add = shell.command("docker exec shop as_server keys add me 'MY_CLIENT_KEY'", MY_CLIENT_KEY=key)
        shell.run(add.removeprefix("docker exec shop ").replace(" me '", " me -- '"))
        shell.run(shell.command("docker exec shop as_server keys show").removeprefix("docker exec shop "))
        began = time.monotonic()
        host.send_signal(getattr(signal, steps["STOPSIGNAL"]))
        assert host.wait(20) == 0
        assert time.monotonic() - began < 10  # what `docker stop` waits


def test_each_page_is_run_by_a_test() -> None:
    """Pages without a shell command have doctests; the others are named above."""
    own = {"monitoring", "cluster", "kubernetes"}  # pages with tests beside these
    tests = Path(__file__).read_text(encoding="utf-8")
    others = "".join(file.read_text(encoding="utf-8") for file in ROOT.glob("tests/*/test_*.py"))
    for page in HOWTO.glob("*.rst"):
        text = page.read_text(encoding="utf-8")
        if "code-block:: sh" in text:
            assert f'["{page.name}"]' in tests or (page.stem in own and page.name in others), page.name
        elif page.stem != "index":
            assert ">>> " in text, page.name
