"""``to_dist``: agents on a named host, and on the one private host of the process."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hosts import Host, Worker, environment, eventually, is_gone, output_of, running
from zmqagents import (
    AgentBase,
    AgentExists,
    AgentProxy,
    CallTimeout,
    ConfigError,
    MissingExtra,
    RpcAgentServerLauncher,
    RpcClient,
    SerializationError,
    discovery,
    load_custom_class_from_file,
)
from zmqagents.server import private_host


@pytest.fixture(scope="module", autouse=True)
def _private_host() -> Iterator[None]:
    """Started here, so that no single test is charged with it, and ended with this file."""
    Worker().to_dist()
    yield
    private_host.stop_private_host()


@pytest.fixture(scope="module")
def named() -> Iterator[Host]:
    with running("fork") as host:
        yield host


class Applier(AgentBase):
    def __init__(self, function: Any, name: str = "applier", factor: int = 1) -> None:
        super().__init__(name)
        self.function = function
        self.factor = factor

    def apply(self, value: Any) -> Any:
        return self.function(value)

    def reply(self, value: Any) -> Any:
        return self.apply(value)

    def pid(self) -> int:
        return os.getpid()


# ---------------------------------------------------------------- the private host


def test_all_agents_without_an_address_share_one_private_host() -> None:
    pids = {Worker().to_dist().pid() for _ in range(3)} | {Applier(abs).to_dist().pid()}
    assert len(pids) == 1
    assert pids != {os.getpid()}


def test_the_private_host_listens_on_no_tcp_port() -> None:
    pid = Worker().to_dist().pid()
    (record,) = [record for record in discovery.list_hosts() if record.pid == pid]
    assert record.port is None
    inodes = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    assert not {f"socket:[{row[9]}]" for row in rows} & inodes


def test_lambdas_and_local_functions_go_to_it_and_come_back() -> None:
    step = 5
    agent = Applier(lambda value: value + step).to_dist()
    assert agent.apply(1) == 6
    assert agent.reply(2).result(5) == 7
    made = Applier(lambda value: lambda more: value + more).to_dist().apply
    assert made(3)(4) == 7


def test_instances_of_a_local_class_are_of_that_class_when_they_come_back() -> None:
    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

    back = Applier(lambda point: Point(point.x + 1)).to_dist().apply(Point(1))
    assert type(back) is Point
    assert back.x == 2


def test_to_dist_true_is_the_same_as_the_method() -> None:
    by_keyword = Applier(abs, to_dist=True)  # type: ignore[call-arg]
    assert type(by_keyword) is AgentProxy
    assert by_keyword.pid() == Applier(abs).to_dist().pid()


def test_an_agent_keeps_the_id_and_the_arguments_that_it_was_made_with() -> None:
    local = Applier(abs, name="kept", factor=4)
    distant = local.to_dist()
    assert distant.agent_id == local.agent_id
    assert (distant.name, distant.factor) == ("kept", 4)
    with pytest.raises(AgentExists):
        local.to_dist()


def test_a_class_that_is_defined_anew_replaces_the_old_one() -> None:
    def cell(version: int) -> type:
        class Cell(AgentBase):
            def version(self) -> int:
                return version

        return Cell

    first = cell(1)().to_dist()
    second = cell(2)().to_dist()
    assert (first.version(), second.version()) == (1, 2)


def test_a_time_limit_holds_for_the_calls_of_the_proxy() -> None:
    worker = Worker().to_dist(timeout=0.2)
    with pytest.raises(CallTimeout):
        worker.nap(2).result(5)


def test_agents_of_the_private_host_take_each_other_as_arguments() -> None:
    inner = Applier(lambda value: value + 1).to_dist()
    outer = Applier(lambda agent: agent.apply(1) + 1).to_dist()
    assert outer.apply(inner) == 3


def test_methods_of_proxies_go_to_it_and_are_those_of_the_same_agent() -> None:
    first = Applier(abs).to_dist()
    assert Applier(first.apply).to_dist().apply(-4) == 4


def test_modules_that_came_to_the_path_later_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "came_later.py").write_text(
        "import threading\nfrom zmqagents import AgentBase\nlock = threading.Lock()\n"
        "class Later(AgentBase):\n    def value(self):\n        with lock: return 9\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import came_later  # type: ignore[import-not-found]

    assert came_later.Later().to_dist().value() == 9
    monkeypatch.delitem(sys.modules, "came_later")


def test_classes_loaded_from_a_file_go_to_it(tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(
        "import threading\nfrom zmqagents import AgentBase\nlock = threading.Lock()\n"
        "class FromFile(AgentBase):\n    def value(self):\n        with lock: return 3\n"
    )
    (loaded,) = load_custom_class_from_file(tmp_path / "agents.py")
    assert loaded().to_dist().value() == 3


def test_modules_made_in_memory_go_to_it_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("to_dist_in_memory")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec("from zmqagents import AgentBase\nfactor = 3\nclass InMemory(AgentBase):\n"
         "    def value(self): return factor\n", vars(module))  # fmt: skip
    assert module.InMemory().to_dist().value() == 3


def test_without_cloudpickle_importable_classes_work_and_others_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    assert Worker().to_dist().echo(1) == 1

    class Local(AgentBase):
        pass

    with pytest.raises((MissingExtra, SerializationError), match=r"pip install cloudpickle"):
        Local().to_dist()


def test_a_fork_of_the_process_gets_a_private_host_of_its_own() -> None:
    source = """
import json, os
from hosts import Worker
here = Worker().to_dist().pid()
read, write = os.pipe()
child = os.fork()
if child == 0:
    pids = {Worker().to_dist().pid() for _ in range(2)}
    os.write(write, json.dumps(sorted(pids)).encode())
    os._exit(0)
os.waitpid(child, 0)
print(json.dumps([here, json.loads(os.read(read, 1000)), Worker().to_dist().pid()]))
"""
    here, there, here_still = output_of(source)
    assert len(there) == 1
    assert here == here_still != there[0]
    assert eventually(lambda: is_gone(there[0]), 2)
    assert is_gone(here)


NOTEBOOK = """
import json, os, sys, threading, time
from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, async_func

class Plain:
    pass

class Reader(AgentBase):
    def __init__(self, corpus):
        super().__init__("reader")
        self.corpus = corpus
    def reply(self, question):
        return [line for line in self.corpus if question in line]
    def pid(self):
        return os.getpid()
    def make(self):
        return Plain()

stop = threading.Event()
threading.Thread(target=stop.wait).start()
server = RpcAgentServerLauncher(custom_agent_classes=[Reader])
server.launch()
with RpcClient(server.host, server.port) as client:
    on_named = client.create_agent(Reader, ["a b", "c"])
    named = on_named("b").result(10)

reader = Reader(["one", "two", "twofold"]).to_dist()
other = Reader([]).to_dist()
print(json.dumps({
    "named": named, "private": reader("two").result(10), "one host": reader.pid() == other.pid(),
    "elsewhere": reader.pid() != os.getpid(), "type": type(reader.make()) is Plain,
    "pids": [server.pid, reader.pid()],
}))
stop.set()
"""


def test_a_notebook_like_process_can_use_it() -> None:
    done = subprocess.run(
        [sys.executable, "-"], input=NOTEBOOK, stdout=subprocess.PIPE, text=True, env=environment(), timeout=60
    )
    assert done.returncode == 0
    found = json.loads(done.stdout)
    pids = found.pop("pids")
    assert found == {
        "named": ["a b"], "private": ["two", "twofold"], "one host": True, "elsewhere": True, "type": True,
    }  # fmt: skip
    assert all(is_gone(pid) for pid in pids)  # the hosts have ended with their process


def test_a_private_host_ends_with_its_process_even_if_that_is_killed() -> None:
    source = """
import os, signal
from hosts import Worker
print(Worker().to_dist().pid(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, env=environment(), timeout=60)
    assert eventually(lambda: is_gone(int(done.stdout)), 2)


# ---------------------------------------------------------------- a named host


def test_an_address_names_the_host(named: Host) -> None:
    assert Worker().to_dist(named.host, named.port).pid() == named.pid
    assert Worker(to_dist={"host": "localhost", "port": named.port}).pid() == named.pid
    assert Worker().to_dist(port=named.port, transport="tcp").pid() == named.pid


def test_a_to_dist_dict_is_read_and_never_changed(named: Host) -> None:
    where = {"host": named.host, "port": named.port, "timeout": 30}
    before = dict(where)
    agents = [Worker(to_dist=where) for _ in range(3)]
    assert where == before
    assert {agent.pid() for agent in agents} == {named.pid}


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({"host": "localhost"}, "to_dist with a host needs a port"),
        ({"transport": "tcp"}, "to_dist with a transport needs a port"),
        ({"port": 1234, "max_pool_size": 10}, "to_dist does not know max_pool_size"),
        ({"port": "1234"}, "port must be a whole number"),
        ("localhost:1234", "to_dist takes True or a dict"),
    ],
)
def test_a_to_dist_that_makes_no_sense_is_refused_with_the_reason(where: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Worker(to_dist=where)


def test_a_launch_in_between_disturbs_no_call(named: Host) -> None:
    """Neither on a named host nor on the private one."""
    results = [Worker().to_dist(named.host, named.port).nap(0.5), Worker().to_dist().nap(0.5)]
    with RpcAgentServerLauncher() as other, RpcClient(other.host, other.port) as client:
        assert client.is_alive()
    assert [result.result(5) for result in results] == [0.5, 0.5]


# ---------------------------------------------------------------- last, because these end the private host of this file


def test_threads_that_need_the_first_private_host_at_once_get_one() -> None:
    private_host.stop_private_host()
    pids = []
    threads = [threading.Thread(target=lambda: pids.append(Worker().to_dist().pid())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(pids) == 8
    assert len(set(pids)) == 1
    private_host.stop_private_host()


def test_after_the_private_host_has_died_the_next_agent_gets_a_new_one() -> None:
    old = Worker().to_dist()
    pid = old.pid()
    server = private_host.private_host().launcher
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not server.is_running, 5)
    new = Worker().to_dist()
    assert new.pid() != pid
    with pytest.raises(ConnectionError):
        old.pid()
    private_host.stop_private_host()
    del old
    gc.collect()  # the error's traceback refers to it, and it to its connection
