"""Programs in which gevent has replaced threads or sockets are refused at once; what the refusal advises works.

A module of gevent's name stands for it where gevent is not installed; the programs use the real one.
"""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import pytest

from actors import Desk, host
from hosts import output_of
from zmqagents import ConfigError, LaunchError, RpcAgentServerLauncher, RpcClient

with_gevent = pytest.mark.skipif(importlib.util.find_spec("gevent") is None, reason="gevent is not installed")

PROGRAM = """
import json, sys
from gevent import get_hub, monkey
monkey.patch_all(**json.loads(sys.argv[1]))
from zmqagents import AgentBase, ConfigError, RpcAgentServerLauncher, RpcClient

class Desk(AgentBase):
    def reply(self, x):
        return x
    def items(self, n):
        yield from range(n)

def use(desk):
    return [desk.reply(1).result(9), list(desk.items(3)), get_hub().threadpool.apply(desk.reply, (2,)).result(9)]

if __name__ == "__main__":
    try:
        if sys.argv[2] == "client":
            with RpcClient("localhost", int(sys.argv[3])) as client:
                print(json.dumps([client.is_alive()]))
        elif sys.argv[2] == "private host":
            print(json.dumps(use(Desk().to_dist())))
        else:
            with RpcAgentServerLauncher(custom_agent_classes=[Desk]) as server:
                print(json.dumps(use(Desk().to_dist(server.host, server.port))))
    except ConfigError as error:
        print(json.dumps(str(error)))
"""


def patched(*modules: str) -> SimpleNamespace:
    return SimpleNamespace(is_module_patched=lambda name: name in modules)


@pytest.mark.parametrize("modules", [["threading", "socket"], ["socket"], ["threading"]])
def test_a_program_with_replaced_threads_or_sockets_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, modules: list[str]
) -> None:
    with host(Desk) as launcher:
        monkeypatch.setitem(sys.modules, "gevent.monkey", patched(*modules))
        with (
            RpcClient("localhost", launcher.port) as client,
            pytest.raises(ConfigError, match="thread=False, socket=False"),
        ):
            client.is_alive()
        with pytest.raises(ConfigError, match=f"gevent has patched {' and '.join(modules)}"):
            RpcAgentServerLauncher().launch()


def test_where_gevent_has_patched_anything_a_host_is_no_fork_and_not_in_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "gevent.monkey", patched("queue"))
    with pytest.raises(LaunchError, match="gevent has patched queue"):
        RpcAgentServerLauncher().launch(in_subprocess=False)
    with pytest.raises(LaunchError, match="gevent has patched queue"):
        RpcAgentServerLauncher(start_method="fork").launch()


@with_gevent
@pytest.mark.parametrize("use", ["client", "private host", "launcher"])
def test_a_program_that_gevent_has_patched_is_refused_at_once(use: str) -> None:
    with host(Desk) as launcher:
        assert "thread=False, socket=False" in output_of(PROGRAM, "{}", use, str(launcher.port), timeout_s=20)


@with_gevent
@pytest.mark.parametrize("use", ["client", "private host", "launcher"])
def test_a_program_that_gevent_has_patched_as_advised_is_served(use: str) -> None:
    with host(Desk) as launcher:
        options = '{"thread": false, "socket": false}'
        found = output_of(PROGRAM, options, use, str(launcher.port), timeout_s=30)
        assert found == ([True] if use == "client" else [1, [0, 1, 2], 2])
