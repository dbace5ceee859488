"""`AgentBase` beside other bases, and what it keeps of how an agent was made."""

from __future__ import annotations

import abc
import collections.abc
import copy
import dataclasses
import inspect
import typing
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

import pydantic
import pytest

from actors import client_on_host
from zmqagents import AgentBase, ConfigError
from zmqagents.agents.spec import spec_of

T = TypeVar("T")


class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self) -> float: ...


class Square(AgentBase, Shape):
    def __init__(self, side: float) -> None:
        super().__init__("square")
        self.side = side

    def area(self) -> float:
        return self.side**2


class Abstract(AgentBase, abc.ABC):
    @abc.abstractmethod
    def area(self) -> float: ...


class Sized(Protocol):
    def size(self) -> int: ...


class Box(AgentBase, Sized):
    def size(self) -> int:
        return 3


class Table(AgentBase, collections.abc.Mapping[str, int]):
    def __getitem__(self, key: str) -> int:
        return len(key)

    def __iter__(self) -> Iterator[str]:
        return iter(("a", "bb"))

    def __len__(self) -> int:
        return 2


class Holder(AgentBase, Generic[T]):
    def hold(self, value: T) -> T:
        return value


class Rows(AgentBase, list[int]):
    """A builtin beside the base."""


class Model(AgentBase, pydantic.BaseModel):
    size: int
    unit: str = "m"

    def text(self) -> str:
        return f"{self.size} {self.unit}"


class ModelFirst(pydantic.BaseModel, AgentBase):
    size: int

    def text(self) -> str:
        return f"{self.size}"

    def known_as(self) -> str:
        return self.agent_id


@dataclasses.dataclass
class Record(AgentBase):
    size: int = 1

    def doubled(self) -> int:
        return 2 * self.size


class Own(AgentBase):
    def __init__(self) -> None:
        super().__init__()
        self.agent_id = "customer-7"

    def mine(self) -> str:
        return self.agent_id


@pytest.fixture(scope="module")
def make() -> Iterator[Any]:
    with client_on_host(Square, Abstract, Box, Table, Holder, Rows, Model, ModelFirst, Record, Own) as client:
        client.is_alive()  # connected: no single test is charged with that
        yield client.create_agent


def test_an_agent_may_implement_an_interface(make: Any) -> None:
    assert Square(2).area() == 4
    assert make(Square, 3).area() == 9
    assert make(Box).size() == 3
    assert make(Holder).hold("kept") == "kept"
    assert make(Table).get("bb") == 2


def test_an_abstract_agent_cannot_be_made(make: Any) -> None:
    with pytest.raises(TypeError, match="abstract"):
        Abstract()  # type: ignore[abstract]
    with pytest.raises(TypeError, match="abstract"):
        make(Abstract)


def test_an_agent_may_be_a_pydantic_model(make: Any) -> None:
    assert Model(size=1).text() == "1 m"
    assert make(Model, size=2, unit="km").text() == "2 km"
    with pytest.raises(pydantic.ValidationError):
        Model(size="much")  # type: ignore[arg-type]


def test_a_pydantic_model_may_stand_before_the_base_of_agents(make: Any) -> None:
    assert ModelFirst(size=1).text() == "1"
    agent = make(ModelFirst, agent_id="model-1", size=4)
    assert (agent.text(), agent.known_as()) == ("4", "model-1")


def test_an_agent_may_be_a_dataclass_or_hold_a_builtin(make: Any) -> None:
    assert make(Record, size=4).doubled() == 8
    rows = make(Rows)
    rows.append(3)
    assert rows.copy() == [3]


def test_the_bases_own_methods_are_not_offered(make: Any) -> None:
    assert not {"to_dist", "model_config", "model"} & set(spec_of(Box).methods)


def test_an_agent_may_have_an_agent_id_of_its_own(make: Any) -> None:
    assert Own().agent_id == "customer-7"
    assert make(Own).mine() == "customer-7"


def test_the_base_takes_no_argument_that_it_does_not_know() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'size'"):
        Box(size=1)


def test_where_an_agent_goes_is_true_or_a_dictionary() -> None:
    with pytest.raises(ConfigError, match="leave it out"):
        Box(to_dist=False)


def test_a_copy_of_an_agent_is_an_agent_with_its_state() -> None:
    square = Square(5)
    assert copy.copy(square).area() == 25
    assert typing.cast("Any", inspect.signature(Square.__init__)).parameters.keys() == {"self", "side"}


def test_an_agent_of_any_kind_is_made_again_elsewhere_from_its_arguments(make: Any) -> None:
    with client_on_host(Square, Model, ModelFirst, Record) as client:
        port = int(client.address.rpartition(":")[2])
        made: list[Any] = [
            agent.to_dist("localhost", port) for agent in (Square(2), Model(size=1), ModelFirst(size=3), Record(size=4))
        ]
        assert [made[0].area(), made[1].text(), made[2].text(), made[3].doubled()] == [4, "1 m", "3", 8]
