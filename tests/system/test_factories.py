"""Functions that make agents: what they give, which may be anything, is hosted by the rules for classes."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

import made_agents
from actors import client_of, host
from hosts import eventually
from made_agents import Hooked, Marked, Tally
from zmqagents import AsyncRpcClient, RpcAgentServerLauncher, RpcClient
from zmqagents.agents.factories.factory import Factory, as_maker, maker_name
from zmqagents.agents.factories.made import Made
from zmqagents.agents.factories.named import maker_named
from zmqagents.errors import AgentCallError, ConfigError, LaunchError, LoadError, UnknownClass, UnknownMethod
from zmqagents.execution.lifecycle.opening import Opening
from zmqagents.server import private_host

pytestmark = pytest.mark.program

FACTORIES: list[Any] = [
    made_agents.tally, made_agents.from_ten, made_agents.slow_tally, made_agents.diary, made_agents.opened,
    made_agents.hooked, made_agents.fails, made_agents.gives_nothing, made_agents.takes_agent_id,
    made_agents.patient,
]  # fmt: skip


@pytest.fixture(scope="module", params=["thread", "pool"])
def client(request: pytest.FixtureRequest) -> Iterator[RpcClient]:
    """Of a host that knows the factories, and runs agents in its threads, or in children."""
    with host(*FACTORIES, isolation=request.param) as launcher, client_of(launcher) as client:
        client.is_alive()
        yield client


def test_what_a_function_gives_is_an_agent_with_its_public_methods(client: RpcClient) -> None:
    tally = client.create_agent(made_agents.tally, 5)
    assert tally.add(2, times=2) == 9
    assert list(tally.count_to(3)) == [1, 2, 3]
    result: Any = tally.later()
    assert result.result() == 9
    assert tally.unit == "apples"
    with pytest.raises(UnknownMethod, match="has no public method 'subtract'; it has: add, count_to, later"):
        tally.subtract(1)  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_coroutine_whose_call_is_cancelled_before_it_begins_is_closed() -> None:
    nowhere: Any = None
    opening = Opening(as_maker(made_agents.slow_tally), (1,), {}, lambda made: made, "a", nowhere)  # type: ignore[arg-type]
    assert opening.context
    opening.discard()
    opening.discard()
    del opening
    gc.collect()  # one that was never awaited would say so


def test_an_agent_of_a_function_is_found_by_its_id_as_what_it_is(client: RpcClient) -> None:
    client.options(agent_id="found").create_agent(made_agents.tally, 5)
    found = client.get_agent("found")
    assert found.add(1) == 6
    assert "Add" in found.add.__doc__
    (row,) = [row for row in client.get_agent_list() if row["agent_id"] == "found"]
    assert row["class"] == "made_agents:Tally"
    assert client.delete_agent("found")


def test_a_function_is_known_by_its_name(client: RpcClient) -> None:
    assert client.create_agent("tally", 3).add(1) == 4
    assert client.create_agent("made_agents:tally", 3).add(1) == 4
    with pytest.raises(UnknownClass, match="tally"):
        client.create_agent("nothing_of_the_kind")


def test_arguments_may_be_given_in_advance(client: RpcClient) -> None:
    assert client.create_agent(made_agents.from_ten).add(1) == 11


def test_an_async_function_makes_an_agent(client: RpcClient) -> None:
    assert client.create_agent(made_agents.slow_tally, start=4).add(1) == 5  # type: ignore[attr-defined]


@pytest.mark.parametrize("made", [made_agents.diary, made_agents.opened])
def test_what_is_entered_is_left_in_the_same_task(
    client: RpcClient, tmp_path: Path, made: Callable[[str], Any]
) -> None:
    path = tmp_path / "diary"
    tally = client.create_agent(made, str(path))
    assert tally.add(1) == (8 if made is made_agents.opened else 1)
    assert path.read_text() == "enter\n"
    client.delete_agent(tally.agent_id)
    left = "enter\nexit in the same task\n"
    assert path.read_text() == (f"{left}closed\n" if made is made_agents.opened else left)


def test_hooks_of_the_object_are_called_and_are_no_methods(client: RpcClient, tmp_path: Path) -> None:
    path = tmp_path / "stops"
    agent = client.create_agent(made_agents.hooked, str(path))
    assert agent.steps() == ["init", "start"]
    assert agent.who() == agent.agent_id
    with pytest.raises(UnknownMethod):
        agent.on_stop()
    client.delete_agent(agent.agent_id)
    assert path.read_text() == "stop\n"


def test_what_a_function_raises_comes_to_the_caller_and_leaves_no_agent(client: RpcClient) -> None:
    before = len(client.get_agent_list())
    with pytest.raises(LookupError, match="no tally today"):
        client.create_agent(made_agents.fails)
    with pytest.raises(TypeError, match="has given None, which is no agent"):
        client.create_agent(made_agents.gives_nothing)
    assert len(client.get_agent_list()) == before


def test_a_function_with_a_parameter_agent_id_gets_it(client: RpcClient) -> None:
    listed: Any = client.create_agent(made_agents.takes_agent_id, agent_id="mine")
    assert listed.agent_id != "mine"
    assert listed.copy() == ["mine"]


def test_the_class_of_the_object_sets_the_options_that_were_not_said(client: RpcClient, tmp_path: Path) -> None:
    """Three calls meet in an agent whose class allows three at a time."""
    agent: Any = client.create_agent(made_agents.hooked, str(tmp_path / "x"))
    assert [result.result(20) for result in [agent.meet() for _ in range(3)]] == [3, 3, 3]


def test_agents_of_one_class_share_what_is_known_of_them() -> None:
    """A host keeps for a spec which types its arguments may have: calls of two such agents do not find it out anew."""
    assert Made.of(Tally(1), context=False).spec is Made.of(Tally(2), context=False).spec
    assert Made.of(Tally(1), context=True).spec.hooks.context


def test_the_state_of_what_a_function_makes_is_not_kept(client: RpcClient) -> None:
    with pytest.raises(ConfigError, match="persist"):
        client.options(persist="call").create_agent(made_agents.tally)


def test_a_call_that_comes_before_the_agent_is_made_waits_for_it(client: RpcClient, tmp_path: Path) -> None:
    name = f"early-{tmp_path.name}"
    before = client.options(agent_id=name).create_agent(made_agents.tally)
    client.delete_agent(name)
    gate = tmp_path / "gate"
    with ThreadPoolExecutor() as pool:
        making = pool.submit(client.options(agent_id=name).create_agent, made_agents.patient, str(gate))
        assert eventually(lambda: name in {row["agent_id"] for row in client.get_agent_list()}, 20)
        calls = [pool.submit(before.add, 1), pool.submit(lambda: client.get_agent(name).add(1))]
        assert not wait(calls, 0.2).done
        gate.touch()
        assert sorted(call.result(20) for call in calls) == [2, 3]
        making.result(20)


def test_a_launcher_makes_agents_of_functions_at_its_start() -> None:
    agents: dict[str, Any] = {
        "a": made_agents.tally,
        "b": (made_agents.slow_tally, {"start": 2}),
        "c": lambda: Tally(3),
        "d": Marked,
    }
    launcher = RpcAgentServerLauncher(agents=agents, local_mode=True, grace_s=0.2)
    with launcher, client_of(launcher) as client:
        assert [client.get_agent(each).add(1) for each in "abc"] == [1, 3, 4]
        assert client.get_agent("d").has_started()


def test_a_function_that_fails_fails_the_launch() -> None:
    with pytest.raises(LaunchError, match="no tally today"):
        RpcAgentServerLauncher(agents={"a": made_agents.fails}, local_mode=True).launch()


def test_neither_launcher_nor_client_takes_just_anything(client: RpcClient) -> None:
    with pytest.raises(ConfigError, match="holds classes and functions, not 3"):
        RpcAgentServerLauncher(custom_agent_classes=[3])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="made by a class or a function, or the name of one, not by 3"):
        client.create_agent(3)  # type: ignore[call-overload]


def test_a_private_host_gets_the_functions_that_it_does_not_know(private: None) -> None:
    first = 1

    def local() -> Tally:
        return Tally(first)

    link = private_host.private_host().link
    with RpcClient(link=link) as client:
        assert client.create_agent(local).add(1) == 2
        first = 5  # the function is sent once, as it was
        assert client.create_agent(local).add(1) == 2
        assert client.create_agent(lambda: Tally(30)).add(1) == 31
        assert client.create_agent(lambda: Tally(40)).add(1) == 41

    async def ask() -> Any:
        agent = await AsyncRpcClient(link=link).create_agent(local)
        return await agent.add(1)

    assert asyncio.run(ask()) == 2


def test_a_name_gives_a_class_a_function_or_an_object() -> None:
    assert maker_named("made_agents:Hooked") is Hooked
    for name, first in (("tally", 0), ("from_ten", 10), ("shared", 100)):
        maker = maker_named(f"made_agents:{name}")
        assert isinstance(maker, Factory)
        assert maker.make().value == first
    assert maker_name(maker_named("made_agents:shared")) == "made_agents:shared"
    agents: dict[str, Any] = {"g": as_maker(maker_named("made_agents:shared"))}
    with RpcAgentServerLauncher(agents=agents, local_mode=True, grace_s=0.2) as launcher, client_of(launcher) as client:
        assert client.get_agent("g").add(1) == 101


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("made_agents", "is not of the form module:Class"),
        ("made_agents:nothing", "has no class 'nothing': it has Tally, Diary, Hooked"),
        ("no_such_module:x", "there is no module 'no_such_module' in"),
        ("made_agents:Tally.x.y", "has no class 'Tally.x.y'"),
    ],
)
def test_a_name_that_gives_nothing_says_why(name: str, error: str) -> None:
    with pytest.raises(LoadError, match=error):
        maker_named(name)


@pytest.mark.parametrize("name", ["a", "a:", ":a", "a b:c", "a:b(c)", "a/b.py:c", ""])
def test_only_module_and_name_read_like_a_name(name: str) -> None:
    with pytest.raises(LoadError, match="is not of the form module:Class"):
        maker_named(name)


def test_what_cannot_be_sent_is_an_error_of_the_call(client: RpcClient) -> None:
    with pytest.raises((AgentCallError, TypeError)):
        client.create_agent(made_agents.tally, 1, 2, 3)  # type: ignore[call-overload]
