"""Programs in which gevent has replaced threads are refused at once; a module of gevent's name stands for it."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from actors import Desk, host
from zmqagents import ConfigError, RpcAgentServerLauncher, RpcClient


def test_a_program_with_replaced_threads_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with host(Desk) as launcher:
        monkeypatch.setitem(sys.modules, "gevent.monkey", SimpleNamespace(is_module_patched=lambda name: True))
        with RpcClient("localhost", launcher.port) as client, pytest.raises(ConfigError, match="thread=False"):
            client.is_alive()
        with pytest.raises(ConfigError, match="gevent"):
            RpcAgentServerLauncher().launch()
