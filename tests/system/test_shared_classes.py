"""A class that the client imports and the host loads from its agent directory: one file, under two module names."""

from __future__ import annotations

import asyncio
import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import CALL_TIMEOUT_S
from zmqagents import AgentBase, AsyncRpcClient, ConfigError, RpcAgentServerLauncher, RpcClient, UnknownClass
from zmqagents.agents.origin import origin_of
from zmqagents.execution.classes import ClassTable

SOURCE = """
from zmqagents import AgentBase, agent

class Surveyor(AgentBase):
    def __init__(self, name=None, scale=1):
        super().__init__(name)
        self.scale = scale

    def measure(self, length):
        return length * self.scale

@agent
class Plain:
    def measure(self, length):
        return length
"""


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Any]]:
    """Imports a file of that name and text as the program's own module."""
    monkeypatch.syspath_prepend(tmp_path / "mine")
    (tmp_path / "mine").mkdir()
    made: list[str] = []

    def load(name: str, source: str) -> Any:
        (tmp_path / "mine" / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        made.append(name)
        return importlib.import_module(name)

    yield load
    for name in made:
        sys.modules.pop(name, None)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RpcAgentServerLauncher]:
    agents = tmp_path / "agents"
    agents.mkdir()
    (agents / "survey.py").write_text(SOURCE)
    with RpcAgentServerLauncher(agent_dir=str(agents), capacity=2, local_mode=True) as launcher:
        yield launcher


@pytest.fixture
def client(server: RpcAgentServerLauncher) -> Iterator[RpcClient]:
    with RpcClient(server.host, server.port, timeout=CALL_TIMEOUT_S) as client:
        yield client


def test_an_imported_class_is_the_one_that_the_host_has_loaded_from_the_same_file(
    client: RpcClient, imported: Callable[[str, str], Any]
) -> None:
    survey = imported("survey", SOURCE)
    assert client.create_agent(survey.Surveyor, scale=3).measure(2) == 6
    assert client.create_agent(survey.Plain).measure(2) == 2


def test_to_dist_of_an_imported_class_goes_to_the_host_that_has_its_file(
    server: RpcAgentServerLauncher, imported: Callable[[str, str], Any]
) -> None:
    survey = imported("survey", SOURCE)
    surveyor = survey.Surveyor("s", scale=4).to_dist(server.host, server.port)
    assert surveyor.measure(2) == 8


def test_an_asyncio_client_may_import_the_class_too(
    server: RpcAgentServerLauncher, imported: Callable[[str, str], Any]
) -> None:
    survey = imported("survey", SOURCE)

    async def main() -> Any:
        async with AsyncRpcClient(server.host, server.port, timeout=CALL_TIMEOUT_S) as client:
            surveyor = await client.create_agent(survey.Surveyor, scale=5)
            return await surveyor.measure(2)

    assert asyncio.run(main()) == 10


def test_a_class_of_another_file_is_refused_with_both_places(
    client: RpcClient, imported: Callable[[str, str], Any], tmp_path: Path
) -> None:
    survey = imported("survey", SOURCE + "\n# changed\n")
    with pytest.raises(UnknownClass, match=r"another one.*survey\.py.*Load the same file") as caught:
        client.create_agent(survey.Surveyor)
    assert str(tmp_path / "agents" / "survey.py") in str(caught.value)
    assert client.create_agent("Surveyor", scale=2).measure(2) == 4


def test_a_class_of_no_name_that_the_host_has_is_unknown(
    client: RpcClient, imported: Callable[[str, str], Any]
) -> None:
    other = imported("other", SOURCE.replace("Surveyor", "Walker"))
    with pytest.raises(UnknownClass, match=r"it knows: .*Surveyor"):
        client.create_agent(other.Walker)


# ---------------------------------------------------------------- by themselves


def test_the_origin_of_a_class_is_its_files_name_size_and_checksum(
    imported: Callable[[str, str], Any], tmp_path: Path
) -> None:
    survey = imported("survey", SOURCE)
    name, size, digest = origin_of(survey.Surveyor).split(" ")
    assert (name, int(size), len(digest)) == ("survey.py", len(SOURCE), 8)
    assert origin_of(survey.Surveyor) == origin_of(survey.Plain)
    shutil.rmtree(tmp_path / "mine")
    assert origin_of(survey.Surveyor) == f"{name} {size} {digest}"
    assert origin_of(_class("Made", "nowhere")) == ""


def _class(name: str, module: str) -> Any:
    return type(name, (AgentBase,), {"__module__": module})


def test_a_class_without_a_file_is_found_by_a_short_name_that_is_unambiguous() -> None:
    table = ClassTable([_class("Same", "first")])
    assert table.find("elsewhere:Same", "").__module__ == "first"
    assert table.find("elsewhere:Same", "same.py 1 00000000").__module__ == "first"
    table.add(_class("Same", "second"), replace=True)
    with pytest.raises(UnknownClass, match="first:Same, second:Same"):
        table.find("elsewhere:Same", "")


def test_of_two_classes_of_one_name_the_one_of_the_same_file_is_found(imported: Callable[[str, str], Any]) -> None:
    one, two = imported("one", SOURCE), imported("two", SOURCE)
    table = ClassTable([one.Surveyor])
    with pytest.raises(ConfigError):
        table.add(two.Surveyor)
    table.add(two.Surveyor, replace=True)
    assert table.find("zmqagents_agents.x.two:Surveyor", origin_of(two.Surveyor)) is two.Surveyor
    assert table.find("zmqagents_agents.x.one:Surveyor", origin_of(one.Surveyor)) is one.Surveyor
