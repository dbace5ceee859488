"""Programs for AgentScope 0.1.6 over `zmqagents.compat.agentscope`."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import tempfile
import time
import warnings
from abc import ABCMeta
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hosts import ROOT
from redis_server import NO_SERVER, RedisServer
from scope_agents import Adder, Base, Broken, Gatherer
from zmqagents.compat import agentscope as rpc
from zmqagents.errors import ConfigError

pytestmark = pytest.mark.program


@pytest.fixture(scope="module")
def launcher() -> Iterator[rpc.RpcAgentServerLauncher]:
    launcher = rpc.RpcAgentServerLauncher(
        port=-1,
        local_mode=True,
        custom_agent_classes=[Adder, Gatherer],
        grace_s=0.2,
        file_roots=[str(Path(__file__).parent)],
    )  # fmt: skip
    with launcher:
        yield launcher


@pytest.fixture(scope="module")
def where(launcher: rpc.RpcAgentServerLauncher) -> Iterator[dict[str, Any]]:
    where = {"host": launcher.host, "port": launcher.port}
    with rpc.RpcClient(launcher.host, launcher.port) as client:
        assert client.is_alive()
        yield where
        gc.collect()  # errors and their frames hold agents in cycles: the last client closes the connection


@pytest.fixture
def adder(where: dict[str, Any]) -> Any:
    return Adder("a", to_dist=where)  # type: ignore[call-arg]


def test_an_agent_is_made_by_the_keyword_and_by_the_method(where: dict[str, Any]) -> None:
    cls: Any = Adder
    for agent in (cls("a", to_dist=where), cls("a", to_dist=rpc.DistConf(**where)), cls("a").to_dist(**where)):
        assert isinstance(agent, rpc.RpcObject)
        assert (agent.host, agent.port) == (where["host"], where["port"])
        assert agent.name == "a"
    assert where.keys() == {"host", "port"}


def test_a_method_that_overrides_an_async_one_is_async(adder: Any) -> None:
    for result in (adder({"value": 1}), adder.reply({"value": 1})):
        assert isinstance(result, rpc.AsyncResult)
        assert result["value"] == 2


def test_an_agent_knows_the_id_under_which_it_is_known(where: dict[str, Any]) -> None:
    local = Adder("a")
    oid = local._oid  # type: ignore[attr-defined]
    agent = local.to_dist(**where)  # type: ignore[attr-defined]
    assert agent._oid == oid == agent.own_id()
    other: Any = Adder("b", to_dist=where)  # type: ignore[call-arg]
    other._oid = oid
    assert other.name == "a"


def test_a_result_is_passed_on_before_and_after_it_was_read(adder: Any) -> None:
    first = adder({"value": 0})
    unread = adder(first)
    assert not first._ready
    assert unread["value"] == 2
    assert first["value"] == 1
    assert first._ready
    first.result()["value"] += 10  # from now on it is the value, with what was changed in it
    assert adder(first)["value"] == 12
    assert adder(first).result() == {"value": 12}


def test_reading_an_attribute_waits(adder: Any) -> None:
    result = adder.slow(0.2)
    assert not result._ready
    assert result.real == 0.2
    result = adder.slow(0.1)
    result.update_value()
    assert result._ready
    assert copy.deepcopy(result) == 0.1


def test_a_result_can_be_pickled_before_and_after_it_was_read(adder: Any) -> None:
    result = adder({"value": 0})
    again = pickle.loads(pickle.dumps(result))
    assert isinstance(again, rpc.AsyncResult)
    assert not again._ready
    assert again["value"] == 1
    assert pickle.loads(pickle.dumps(again)) == {"value": 1}


def test_agents_hold_others_and_come_back_to_themselves(where: dict[str, Any]) -> None:
    adders = [Adder(f"a{number}", to_dist=where) for number in range(3)]  # type: ignore[call-arg]
    gatherer: Any = Gatherer("g", adders, to_dist=where)  # type: ignore[call-arg]
    assert gatherer().result() == 33
    assert gatherer.names() == ["a0", "a1", "a2"]
    assert gatherer.ask(gatherer) == ["a0", "a1", "a2"]
    assert copy.deepcopy(gatherer).names() == ["a0", "a1", "a2"]


def test_a_bare_to_dist_is_on_the_private_host(private: None) -> None:
    agent: Any = Adder("a").to_dist()  # type: ignore[attr-defined]
    result = agent({"value": 0})
    assert agent(result)["value"] == 2
    assert agent.client.delete_agent(agent._oid)
    with pytest.raises(rpc.AgentCreationError, match="not today"):
        Broken(to_dist=True)  # type: ignore[call-arg]


def test_errors_are_those_of_the_earlier_system(adder: Any, where: dict[str, Any]) -> None:
    with pytest.raises(rpc.AgentCallError, match="not today") as caught:
        adder.fail()
    assert isinstance(caught.value.__cause__, LookupError)
    assert caught.value.port == where["port"]
    unknown: Any = Broken(to_dist=where)  # type: ignore[call-arg]
    with pytest.raises(rpc.AgentCreationError, match="no agent class"):
        unknown._check_created()
    nobody: Any = Adder("a", to_dist={"host": "localhost", "port": 1})  # type: ignore[call-arg]
    with pytest.raises(rpc.AgentServerNotAliveError):
        nobody({})
    with pytest.raises(ConfigError, match="does not know speed"):
        Adder("a", to_dist={"speed": 1})  # type: ignore[call-arg]


TOLD = """
import sys, warnings
from scope_agents import Adder
from zmqagents.compat.agentscope import DistConf, RetryFixedTimes
warnings.simplefilter("always")
for _ in range(2):
    DistConf(port=1, max_timeout_seconds=1, lazy_launch=False)
    Adder("a").to_dist(port=1, retry_strategy=RetryFixedTimes())
"""


def test_keywords_without_meaning_are_told_once() -> None:
    support = Path(__file__).parents[1] / "support"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{support}"}
    done = subprocess.run([sys.executable, "-c", TOLD], check=True, stderr=subprocess.PIPE, text=True, env=environment)
    assert done.stderr.count("DeprecationWarning") == 1
    assert "max_timeout_seconds, lazy_launch: accepted" in done.stderr


def test_a_client_tells_what_it_told_before(launcher: rpc.RpcAgentServerLauncher, adder: Any, tmp_path: Path) -> None:
    client = adder.client
    info = client.get_server_info()
    assert info["id"] == launcher.server_id
    assert info["mem"] > 1
    assert info["cpu"] >= 0
    assert info["size"] >= 0
    copied = client.download_file(Path(__file__).name)
    assert Path(copied).read_bytes() == Path(__file__).read_bytes()
    Path(copied).unlink()
    Path(copied).parent.rmdir()
    client.set_model_configs({"config_name": "m", "model_type": "openai_chat", "model_name": "x"})
    assert adder.model("m") == "x"
    with pytest.raises(ConfigError, match="no agent of one runs here"):
        rpc.get_model_config("m")


def test_a_parameter_may_have_any_name(adder: Any) -> None:
    assert adder.apply(function="add") == "add applied"


def test_a_file_that_is_not_served_leaves_nothing_here(
    adder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        adder.client.download_file("no such file")
    assert not list(tmp_path.iterdir())


def test_a_class_may_have_other_bases(where: dict[str, Any]) -> None:
    class Meta(rpc.RpcMeta):
        pass

    class Other(Base, metaclass=Meta):
        pass

    assert isinstance(Other, ABCMeta)
    assert Other("x").name == "x"


# ---------------------------------------------------------------- what needs no host


def test_a_function_that_fails_is_called_again() -> None:
    for retry in (rpc.RetryFixedTimes(3, 0.02), rpc.RetryExponential(3, 0.01, 0.03)):
        calls: list[int] = []

        def once_good(value: int, calls: list[int] = calls) -> int:
            calls.append(value)
            if len(calls) < 3:
                raise ValueError(value)
            return value

        start = time.monotonic()
        assert retry(once_good, 7) == 7
        assert time.monotonic() - start >= 0.01
        with pytest.raises(TimeoutError, match="3 times"):
            retry.retry(lambda: 1 / 0)
    made = rpc.RetryBase.load_dict({"type": "exponential", "max_retries": 2, "base_delay": 1, "max_delay": 3})
    assert vars(made) == {"max_retries": 2, "base_delay": 1, "max_delay": 3}
    with pytest.raises(NotImplementedError, match="'fixed' or 'exponential'"):
        rpc.RetryBase.load_dict({"type": "odd"})


def fill_and_empty(pool: rpc.AsyncResultPool) -> None:
    keys = [pool.prepare() for _ in range(4)]
    assert len(set(keys)) == 4
    with ThreadPoolExecutor() as threads:
        waiting = [threads.submit(pool.get, key, 20) for key in keys]
        for key in keys:
            pool.set(key, str(key).encode())
        assert [result.result(20) for result in waiting] == [str(key).encode() for key in keys]
    assert pool.get(keys[0]) == str(keys[0]).encode()
    with pytest.raises(TimeoutError):
        pool.get(pool.prepare(), 0.05)


def test_a_pool_gives_a_value_to_who_waits_for_it() -> None:
    fill_and_empty(rpc.get_pool())


def test_a_pool_drops_the_oldest_value_and_an_old_one() -> None:
    pool = rpc.get_pool(max_len=2)
    for key in (1, 2, 3):
        pool.set(key, b"x")
    with pytest.raises(TimeoutError):
        pool.get(1, 0.01)
    assert pool.get(3) == b"x"
    for none in (rpc.get_pool(max_len=0), rpc.get_pool(max_expire=-1.0)):  # they keep nothing
        none.set(1, b"x")
        with pytest.raises(TimeoutError):
            none.get(1, 0.01)
    brief = rpc.get_pool(max_expire=0.01)
    brief.set(1, b"x")
    time.sleep(0.02)
    with pytest.raises(TimeoutError):
        brief.get(1, 0.01)


def test_a_pool_in_redis(shared_redis: RedisServer | None) -> None:
    if shared_redis is None:
        pytest.skip(NO_SERVER)
    fill_and_empty(rpc.get_pool("redis", redis_url=shared_redis.url))
    with pytest.raises(ConnectionError, match="no Redis answers"):
        rpc.get_pool("redis", redis_url="redis://localhost:1")


def test_nothing_of_the_earlier_system_is_needed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(rpc.__all__) >= {"RpcMeta", "RpcObject", "DistConf", "get_pool", "get_model_config"}
