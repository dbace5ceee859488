"""The JSON schemas of methods: from the annotations of a class, and from the text of a signature alone."""

from __future__ import annotations

import dataclasses
import datetime
import enum
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal, NamedTuple, Optional, TypedDict

import attrs
import jsonschema
import pydantic
import pytest
from typing_extensions import NotRequired, Required

from zmqagents import AgentBase, ConfigError, agent, codec
from zmqagents.agents.schemas.hints import MARK, schema_of
from zmqagents.agents.schemas.methods import offered
from zmqagents.agents.schemas.texts import hint_of
from zmqagents.agents.spec import spec_of
from zmqagents.codec.forms import Unknown


class Mode(enum.Enum):
    FAST = "fast"
    SLOW = "slow"


@dataclasses.dataclass
class Order:
    item: str
    count: int = 1
    parts: list[Order] = dataclasses.field(default_factory=list)


class Model(pydantic.BaseModel):
    name: str
    weight: float = 1.0


@attrs.define
class Box:
    size: int
    label: str = ""


class Point(NamedTuple):
    x: int
    y: int


class Note(TypedDict, total=False):
    text: str
    by: Required[str]


class Parcel(TypedDict):
    size: int
    label: NotRequired[str]


class Shop:
    """Sells."""

    def add(self, a: int, b: int = 1) -> int:
        """The sum."""
        return a + b

    def order(self, order: Order, mode: Mode = Mode.FAST, *more: str, urgent: bool = False, **tags: float) -> list[str]:
        return []

    async def ticks(self, count: int, /) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    def pairs(self) -> Iterator[tuple[str, int]]:
        yield "a", 1

    async def later(self, what: Optional[str] = None) -> dict[str, Any]:  # noqa: UP045  # the older way counts, too
        return {}

    def unknown(self, thing: OnlyForCheckers) -> OnlyForCheckers:  # type: ignore[name-defined]  # noqa: F821
        return thing


METHODS = offered(spec_of(Shop), Shop)


def test_a_method_has_its_text_its_arguments_and_its_result() -> None:
    assert METHODS["add"] == {
        "returns": "value", "idempotent": False, "doc": "The sum.", "result": {"type": "integer"}, "positional": [],
        "rest": "",
        "arguments": {
            "type": "object", "additionalProperties": False, "required": ["a"],
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer", "default": 1}},
        },
    }  # fmt: skip
    assert METHODS["ticks"]["result"] == {"type": "integer"}
    assert METHODS["ticks"]["positional"] == ["count"]
    assert METHODS["pairs"]["result"]["prefixItems"] == [{"type": "string"}, {"type": "integer"}]
    assert METHODS["later"]["result"] == {"type": "object"}
    assert METHODS["unknown"]["arguments"]["properties"] == {"thing": {}}


GOOD = [
    {"order": {"item": "pen"}},
    {"order": {"item": "pen", "count": 2, "parts": [{"item": "cap"}]}, "mode": "slow"},
    {"order": {"item": "pen"}, "mode": "slow", "more": ["a", "b"], "urgent": True, "weight": 1.5},
]
BAD: list[dict[str, Any]] = [
    {}, {"order": "pen"}, {"order": {}}, {"order": {"item": "pen", "colour": "red"}},
    {"order": {"item": "pen"}, "mode": "quick"}, {"order": {"item": "pen"}, "more": [1]},
    {"order": {"item": "pen"}, "weight": "heavy"},
]  # fmt: skip


def test_a_schema_takes_what_the_method_takes_and_nothing_else() -> None:
    validator = jsonschema.Draft202012Validator(METHODS["order"]["arguments"])
    assert [given for given in GOOD if not validator.is_valid(given)] == []
    assert [given for given in BAD if validator.is_valid(given)] == []


@pytest.mark.parametrize(
    ("hint", "schema"),
    [
        (Literal["a", 1], {"enum": ["a", 1]}),
        (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
        (datetime.date, {"type": "string", "format": "date", MARK: "date"}),
        (set[int], {"type": "array", MARK: "set", "items": {"type": "integer"}}),
        (int | Any, {}), (object, {}), (Iterator, {}),
    ],
)  # fmt: skip
def test_annotations_have_schemas(hint: Any, schema: dict[str, Any]) -> None:
    assert schema_of(hint) == schema


@pytest.mark.parametrize(
    ("cls", "good", "bad"),
    [
        (Model, {"name": "n"}, {"weight": 1.0}), (Box, {"size": 1, "label": "x"}, {"label": "x"}),
        (Point, [1, 2], [1]), (Note, {"by": "me"}, {"text": "t"}), (Note, {"text": "t", "by": "me"}, {"by": 1}),
        (Parcel, {"size": 1}, {"label": "x"}), (Parcel, {"size": 1, "label": "x"}, {"size": 1, "label": 2}),
        (Mode, "fast", "FAST"),
    ],
)  # fmt: skip
def test_classes_with_fields_have_schemas(cls: type, good: Any, bad: Any) -> None:
    validator = jsonschema.Draft202012Validator(schema_of(cls))
    assert validator.is_valid(good)
    assert not validator.is_valid(bad)


def test_the_text_of_a_signature_alone_says_as_much_of_pythons_own_types() -> None:
    alone = offered(spec_of(Shop), None)
    for name in ("add", "ticks", "pairs", "later"):
        assert alone[name] == METHODS[name]
    assert alone["order"]["arguments"]["required"] == ["order"]
    assert alone["order"]["arguments"]["properties"]["order"] == {}  # a class that is not here


@pytest.mark.parametrize("text", ["__import__('os').getcwd()", "Order", "list[", "f(1)", "x.y", "\0", "(" * 500])
def test_a_text_that_is_no_known_annotation_runs_nothing(text: str) -> None:
    assert hint_of(text) is Any


def test_only_a_class_that_says_so_itself_is_exposed() -> None:
    @agent(expose=True)
    class Open:
        pass

    @agent
    class Below(Open):
        pass

    class Base(AgentBase, expose=True):
        pass

    class Other(Base):
        pass

    assert [spec_of(cls).exposed for cls in (Open, Below, Base, Other, Shop)] == [True, False, True, False, False]
    with pytest.raises(ConfigError, match="expose must be True or False, not 'yes'"):
        agent(expose="yes")  # type: ignore[call-overload]


def test_an_object_that_is_named_by_its_schema_arrives_as_one_of_its_class() -> None:
    """As of a web process, which has JSON and the name of the class alone."""
    named = Unknown(schema_of(Order)[MARK], {"item": "pen", "count": 2})
    payload, buffers, _ = codec.encode_call((named, Unknown(schema_of(Mode)[MARK], "slow")), {})
    scope = codec.Scope(expected=codec.expected_by(Shop.order))
    args, _ = codec.decode_call(payload, buffers, scope=scope)
    assert args == (Order("pen", 2), Mode.SLOW)
