"""Children that compute: classes from wherever they may come run there, and numpy and torch get every core."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import client_on_host
from hosts import environment, output_of, started, told
from zmqagents import AgentBase, RpcClient, async_func

pytestmark = pytest.mark.timeout(120)
PARTS = 2  # processes at the same time
WORK_S = 0.6
ROUNDS = 8
SHARE = 0.7  # of what bare processes get in the same round; 0.95 on a machine that is not busy


# ---------------------------------------------------------------- where classes come from


AGENT_FILE = """
import os
from zmqagents import AgentBase
factor = 3
class Plain(AgentBase):
    def pids(self): return [os.getpid(), os.getppid()]
    def times(self, n): return n * factor
"""


@pytest.mark.parametrize("isolation", ["process", "pool"])
def test_classes_of_an_agent_directory_run_in_children(tmp_path: Path, isolation: str) -> None:
    (tmp_path / "agents_of_a_directory.py").write_text(AGENT_FILE)
    words = ["start", "--json", "--agent-dir", str(tmp_path), "--isolation", isolation, "--port", "0", "--grace", "0.2"]
    with started("import sys; from zmqagents.cli import main; sys.exit(main())", *words) as program:
        said = told(program)
        with RpcClient(said["host"], said["port"], timeout=10) as client:
            proxy: Any = client.create_agent("Plain")
            pid, parent = proxy.pids()
            assert (pid != said["pid"], parent, proxy.times(5)) == (True, said["pid"], 15)
        program.terminate()
        program.wait(10)


MAIN = """
import dataclasses, json, os, sys
from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient
factor = 3
@dataclasses.dataclass
class Helper:
    n: int
class Here(AgentBase):
    def pids(self): return [os.getpid(), os.getppid()]
    def times(self, helper: Helper) -> Helper: return Helper(helper.n * factor)
if __name__ == "__main__":
    with RpcAgentServerLauncher(
        custom_agent_classes=[Here], local_mode=True, isolation=sys.argv[1], processes=1, start_method=sys.argv[2],
    ) as server:
        with RpcClient(server.host, server.port) as client:
            here = client.create_agent(Here)
            pid, parent = here.pids()
            found = here.times(Helper(5))
            print(json.dumps([pid != server.pid, parent == server.pid, type(found) is Helper, found.n]))
"""


@pytest.mark.parametrize("isolation", ["process", "pool"])
@pytest.mark.parametrize("start_method", ["auto", "fresh"])
def test_classes_of_a_script_run_in_children(tmp_path: Path, isolation: str, start_method: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(MAIN)
    done = subprocess.run(
        [sys.executable, str(script), isolation, start_method],
        capture_output=True, text=True, env=environment(), timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "[true, true, true, 15]\n"), done.stderr


NOTEBOOK = """
import json, sys
import __main__
isolation, crash = sys.argv[1], []
def cell(text):
    exec(text, vars(__main__))
cell('''
import os, time
from zmqagents import AgentBase, AgentCrashed, agent, async_func
factor = 3
class Slow:
    def __reduce__(self): return time.sleep, (0.3,)
class Helper:
    def __init__(self, n): self.n = n
''')
cell('''
@agent(isolation=isolation)
class Cell(AgentBase):
    slow = Slow()
    def __init__(self, start=0):
        super().__init__()
        self.start = start
    def pid(self): return os.getpid()
    def times(self, helper: Helper) -> Helper: return Helper(helper.n * factor)
    @async_func
    def leave(self): os._exit(3)
''')
cell('''
first = Cell(2).to_dist()
before = [first.pid() != os.getpid(), first.times(Helper(5)).n, first.start]
try:
    first.leave().result()
except AgentCrashed:
    before.append("crashed")
after = [first.times(Helper(5)).n, first.start]
''')
cell('''
@agent(isolation=isolation)
class Cell(AgentBase):
    def times(self, n): return n * 100
second = Cell().to_dist()
print(json.dumps([before, after, second.times(5), first.times(Helper(5)).n]))
''')
"""


@pytest.mark.parametrize("isolation", ["process", "pool"])
def test_classes_of_a_notebook_run_in_children_of_its_private_host(isolation: str) -> None:
    """Cells are executed in ``__main__``, have no file, and run again with another class of the same name.

    The process of the second agent is told of both classes, and of the first one it takes longer to make an object.
    """
    assert output_of(NOTEBOOK, isolation) == [[True, 15, 2, "crashed"], [15, 2], 500, 15]


# ---------------------------------------------------------------- all cores


def work(package: str, seconds: float) -> int:
    """How much was computed in ``seconds``: small steps, of which the interpreter has its part."""
    module = importlib.import_module(package)
    end, done = time.monotonic() + seconds, 0
    if package == "torch":
        module.set_num_threads(1)
        matrix = module.ones(64, 64)
        while time.monotonic() < end:
            for _ in range(20):
                matrix = (matrix @ matrix).softmax(0)
            done += sum(range(2000)) & 1 | 1
    else:
        matrix = module.ones((64, 64))
        while time.monotonic() < end:
            for _ in range(20):
                matrix = module.tanh(matrix @ matrix)
            done += sum(range(2000)) & 1 | 1
    return done


class Computer(AgentBase):
    def pid(self) -> int:
        return os.getpid()

    def load(self, package: str) -> None:
        importlib.import_module(package)

    @async_func
    def work(self, package: str, seconds: float) -> int:
        return work(package, seconds)


BARE = """
import json, sys
import {0}
from test_computing_children import work
print("true", flush=True)
sys.stdin.readline()
print(json.dumps(work("{0}", {1})), flush=True)
"""


@pytest.fixture(scope="module", params=["process", "pool"])
def computers(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in one_thread.items():
            patch.setenv(name, value)
        with client_on_host(Computer, isolation=request.param, processes=PARTS) as client:
            found: list[Any] = [client.create_agent(Computer) for _ in range(PARTS)]
            assert len({each.pid() for each in found}) == PARTS
            yield found


@pytest.mark.parametrize("package", ["numpy", "torch"])
def test_children_compute_as_much_as_bare_processes(computers: list[Any], package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")  # make test-values has all of them
    for each in computers:
        each.load(package, timeout=60)
    shares = []
    for _ in range(ROUNDS):
        here = sum(result.result() for result in [each.work(package, WORK_S) for each in computers])
        shares.append(here / bare(package))
        if shares[-1] >= SHARE:
            return
    pytest.fail(f"children computed {shares} of what bare processes did")


def bare(package: str) -> int:
    """What `PARTS` processes compute at the same time, each with an interpreter of its own."""
    source = BARE.format(package, WORK_S)
    with started(source) as one, started(source) as other:
        for program in (one, other):
            told(program)
        for program in (one, other):
            assert program.stdin is not None
            program.stdin.write("\n")
            program.stdin.flush()
        return sum(told(program) for program in (one, other))
