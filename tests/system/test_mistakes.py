"""What a newcomer does wrong, and what is printed: each text names the thing and what to do next.

Each case is typed as a user would: a verb of the shell, or a program. Its text is on the page of troubleshooting.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from hosts import ROOT, environment

pytestmark = pytest.mark.program

READER = """
import time
from zmqagents import AgentBase, current_call

class Reader(AgentBase):
    def __init__(self, root="."):
        super().__init__()
    def load(self, text: str, k: int = 3):
        return len(text)
    def boom(self):
        return {}["pear"]
    def wait(self):
        return current_call().wait_cancelled()
    def count(self, n):
        yield from range(n)
    def give_function(self):
        return len if self is None else lambda: 1
"""
FILES = {
    "agents/reader.py": READER, "empty/plain.py": "class Plain:\n    pass\n", "bad/x.py": "import nonexistent\n",
    "bad/y.py": "def f(:\n", "wrong.toml": "[start]\nprot = 1\n", "plain.py": "class Plain:\n    pass\n",
    "changed/reader.py": READER + "# changed\n", "failing.py": "class Failing:\n    def __init__(self): {}['pear']\n",
    "flat.toml": "port = 1\n", "text.toml": "[start]\nagent = 'plain:Plain'\n",
}  # fmt: skip
PROGRAM = "from zmqagents import *\nc = RpcClient('localhost', {port})\nr = c.get_agent('r')\n"


class Case(NamedTuple):
    """What is typed, the exit code, what is printed last on stderr, and what of it names the next step."""

    name: str
    typed: str
    code: int
    text: str
    step: str
    variables: str = ""


SHELL = [
    Case("typo in a method", "call r laod x", 2, "r has no public method 'laod'", "did you mean 'load'?"),
    Case("wrong argument", "call r load x kk=1", 1, "got an unexpected keyword argument 'kk'",
         "it takes load(text: str, k: int = 3)"),
    Case("missing argument", "call r load", 1, "missing 1 required positional argument: 'text'", "it takes load("),
    Case("wrong argument of a class", "create Reader rot=1", 1, "got an unexpected keyword argument 'rot'",
         "it takes Reader(root='.')"),
    Case("the agent raises", "call r boom", 1, "KeyError: 'pear' (in r.boom)", "--traceback shows where"),
    Case("a call takes too long", "call r wait --timeout 0.2", 6, "r.wait timed out after 0.",
         "--timeout gives it longer"),
    Case("typo in an agent", "call rr load x", 2, "there is no agent 'rr' on main",
         "as_server agents lists those there are"),
    Case("typo in a class", "create Raeder", 2, "this host knows no agent class 'Raeder'", "did you mean 'Reader'?"),
    Case("id is taken", "create Reader --agent-id r", 2, "there is already an agent 'r'", "if_exists='get' takes it"),
    Case("wrong port", "status --port 1", 4, "localhost:1: nothing listens there", "as_server doctor lists the hosts"),
    Case("port of another program or host", "start --port {port}", 3, "port {port} is in use", "choose another port"),
    Case("second host of an id", "start --server-id main", 3, "a host already listens on", "another id or --server-id"),
    Case("a host that is not mine", "status --host 127.0.0.1 --port {port}", 5,
         "the host has another key, or it is no host", "as_server keys add 127.0.0.1:{port} KEY", "elsewhere"),
    Case("unknown option", "start --prot 1", 2, "No such option", "(see as_server start --help)"),
    Case("unknown verb", "strat", 2, "No such command 'strat'", "(see as_server --help)"),
    Case("unknown variable", "agents", 0, "AS_SERVER_PROT is set and is no option", "did you mean 'AS_SERVER_PORT'?",
         "AS_SERVER_PROT=1"),
    Case("wrong value of a variable", "start", 2, "'AS_SERVER_CAPACITY': 'many'", "is not a valid integer",
         "AS_SERVER_CAPACITY=many"),
    Case("port out of range", "start --port 70000", 2, "--port must be a whole number from 0", "to 65535, not 70000"),
    Case("file without agents", "start --agent-dir empty --agent p=Plain", 2, "this host knows no agent class 'Plain'",
         "as_server start MODULE:CLASS offers one more"),
    Case("files that cannot be loaded", "start --agent-dir bad --strict", 2, "bad/y.py:1: SyntaxError",
         "correct or remove"),
    Case("module of a file that is not installed", "start --agent-dir bad --strict", 2,
         "No module named 'nonexistent'", "is it installed for"),
    Case("no such directory", "start --agent-dir agnets", 2, "'agnets' is not a directory",
         "give one that holds .py files"),
    Case("no such module", "start shop:Inventory", 2, "there is no module 'shop'", "--app-dir DIR looks elsewhere"),
    Case("typo in a module", "start palin:Plain", 2, "there is no module 'palin'", "did you mean 'plain'?"),
    Case("no such class", "start plain:Plan", 2, "Plan", "did you mean 'Plain'?"),
    Case("arguments of --agent", "start --agent a=plain:Plain(3)", 2, "'a=plain:Plain(3)'", "(name=value, ...)"),
    Case("no such file of settings", "start --config none.toml", 2, "none.toml cannot be read", "No such file"),
    Case("typo in zmqagents.toml", "start --config wrong.toml", 2, "[start] has no setting 'prot'",
         "did you mean 'port'?"),
    Case("no host runs", "status", 4, "no host of yours is running on this machine",
         "as_server start runs one", "nowhere"),
    Case("Redis is not there", "start --pool-type redis --redis-url redis://localhost:1", 3,
         "Redis at redis://localhost:1", "take --pool-type local"),
    Case("JSON and the shell's quotes", "call r load {{'a':1}}", 2, "begins like JSON and is none",
         "mind the shell's quoting"),
    Case("True is no JSON", "call r load True", 2, "True is no JSON", "write true"),
    Case("no such result", "result nope", 2, "main does not know the task 'nope'", "as_server result --list"),
    Case("host and port in one word", "status --host localhost:{port}", 2, "without its port, which stands apart",
         "'localhost', {port}"),
    Case("a name that is none", "status --host nosuch.invalid --port 12010", 4, "'nosuch.invalid' cannot be resolved",
         "is it written right", "elsewhere"),
    Case("a setting in no section", "start --config flat.toml", 2, "'port' stands in no section", "write [start]"),
    Case("one text for several agents", "start --config text.toml", 2, "[start] agent has several values",
         'agent = {{ID = "module:Class"}}'),
    Case("a cluster without its Redis", "start --cluster c --redis-url redis://localhost:1", 3,
         "Redis at redis://localhost:1", "say where it is by --redis-url"),
    Case("a value that is none", "call r give_function", 1, "function has no msgpack form", "make it a method"),
    Case("no files are served", "download /etc/passwd .", 5, "this host serves no files", "--file-root DIR"),
]  # fmt: skip

PROGRAMS = [
    Case("typo in a method", "r.laod('x')", 1, "r (Reader) has no public method 'laod'", "did you mean 'load'?"),
    Case("a value that cannot be sent", "import threading; r.load(threading.Lock())", 1,
         "cannot send args[0]: _thread.lock", "register_type can teach it"),
    Case("an object of one's own", "class Own: pass\nr.load(Own())", 1, "cannot send args[0]: __main__.Own",
         "register_type"),
    Case("a stream as an argument", "r.load(r.count(3))", 1, "a stream belongs to its reader", "send its items"),
    Case("an attribute is set", "r.x = 1", 1, "cannot set 'x'", "give the agent a method that sets it"),
    Case("a class of the program", "class X(AgentBase): pass\nc.create_agent(X)", 1,
         "this host knows no agent class 'X'",
         "as_server start MODULE:CLASS offers one more"),
    Case("a class that was changed", "import sys; sys.path.insert(0, 'changed')\nfrom reader import Reader\n"
         "c.create_agent(Reader)", 1, "of this host is another one", "Load the same file in both"),
    Case("a file", "r.load(open('plain.py'))", 1, "TextIOWrapper has no msgpack form", "send its content, or its path"),
    Case("a generator", "r.load(x for x in 'ab')", 1, "generator has no msgpack form", "send a list of its items"),
    Case("host and port in one word", "RpcClient('localhost:12010')", 1, "without its port, which stands apart",
         "'localhost', 12010"),
    Case("a class for a list of them", "class X(AgentBase): pass\nRpcAgentServerLauncher(custom_agent_classes=X)", 1,
         "custom_agent_classes is a list of classes", "not <class '__main__.X'>"),
    Case("typo in a setting", "RpcAgentServerLauncher(capcity=1)", 1, "unexpected keyword argument 'capcity'",
         "did you mean 'capacity'?"),
    Case("an id for the name in a cluster", "Cluster('localhost:1').get_agent('r')", 1, "must be Class/key",
         "not 'r'"),
    Case("no host at all", "RpcClient()", 1, "no host of yours is running on this machine",
         "`as_server start` runs one", "nowhere"),
]  # fmt: skip


class Place:
    """A folder with a host of the id ``main``, and how things are typed there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0

    def run(self, case: Case, *command: str) -> subprocess.CompletedProcess[str]:
        given = self.variables()
        if case.variables in ("elsewhere", "nowhere"):
            given["ZMQAGENTS_RUNTIME"] = str(self.folder / "other")
            given["ZMQAGENTS_KEYS"] = str(self.folder / "keys of another")
        elif case.variables:
            given |= dict([case.variables.split("=")])
        words = [sys.executable, *command]
        return subprocess.run(words, cwd=self.folder, env=given, capture_output=True, text=True, timeout=60)

    def variables(self) -> dict[str, str]:
        keys = {"ZMQAGENTS_RUNTIME": str(self.folder / "run"), "ZMQAGENTS_KEYS": str(self.folder / "keys")}
        return environment(PYTHONPATH=str(ROOT), **keys)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("p")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    made = Place(folder)
    words = ["start", "--json", "--server-id", "main", "--agent-dir", "agents", "--agent", "r=Reader"]
    command = [sys.executable, "-m", "zmqagents", *words]
    with subprocess.Popen(command, cwd=folder, env=made.variables(), stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        made.port = json.loads(host.stdout.readline())["port"]
        try:
            yield made
        finally:
            host.terminate()


def told_of(done: subprocess.CompletedProcess[str], case: Case, port: int) -> None:
    lines = done.stderr.splitlines()
    assert done.returncode == case.code, done.stderr
    assert lines, "nothing is said"
    last = lines[-1] if case.code else done.stderr
    assert case.text.format(port=port) in last
    assert case.step.format(port=port) in last
    texts = re.findall(r"^   \* - ``(.*)``$", (ROOT / "docs" / "troubleshooting.rst").read_text(encoding="utf-8"), re.M)
    assert any(text in last for text in texts), f"docs/troubleshooting.rst has no line for: {last}"


@pytest.mark.parametrize("case", SHELL, ids=lambda case: case.name)
def test_a_mistake_in_the_shell_is_one_line_that_says_what_to_do(place: Place, case: Case) -> None:
    words = [word.format(port=place.port) for word in case.typed.split()]
    done = place.run(case, "-m", "zmqagents", *words)
    told_of(done, case, place.port)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("case", PROGRAMS, ids=lambda case: case.name)
def test_a_mistake_in_a_program_ends_in_a_text_that_says_what_to_do(place: Place, case: Case) -> None:
    begin = PROGRAM.format(port=place.port) if case.variables == "" else "from zmqagents import *\n"
    done = place.run(case, "-c", begin + case.typed)
    told_of(done, case, place.port)
    assert done.stderr.count("Traceback") == 1  # Python's own, and none of the host


def test_a_port_of_the_page_that_is_taken_is_said_in_words(place: Place) -> None:
    case = Case("page", f"start plain:Plain --web {place.port}", 3, f"port {place.port} is in use", "another port")
    done = place.run(case, "-m", "zmqagents", *case.typed.split())
    said, last = done.stderr.splitlines()
    assert said.startswith("as_server web: ")
    assert case.text in said
    assert case.step in said
    assert last == "as_server start: --web: the web process has ended with exit code 3"
    assert done.returncode == case.code


def test_an_agent_that_cannot_be_made_is_told_with_its_own_frames_alone(place: Place) -> None:
    case = Case("constructor", "start failing:Failing --agent f=failing:Failing", 3,
                "agent f could not be made: KeyError: 'pear'", "(in f.create_agent)")  # fmt: skip
    done = place.run(case, "-m", "zmqagents", *case.typed.split())
    told_of(done, case, place.port)
    frames = [line for line in map(str.strip, done.stderr.splitlines()) if line.startswith("File")]
    assert len(frames) == 1
    assert "failing.py" in frames[0]


def test_an_error_without_frames_has_no_traceback_that_says_it_again(place: Place) -> None:
    case = Case("wrong argument", "", 1, "", "")
    done = place.run(case, "-c", PROGRAM.format(port=place.port) + "r.load()")
    assert done.stderr.count("missing 1 required positional argument") == 1


def test_there_are_more_than_thirty_of_them() -> None:
    assert len(SHELL) + len(PROGRAMS) >= 30
