"""Models of pydantic and classes of attrs arrive whole, or not at all."""

from __future__ import annotations

import datetime as dt
import enum
from typing import Annotated, Any, Generic, Literal, TypeVar

import attrs
import msgpack
import pydantic
import pytest

from zmqagents import errors
from zmqagents.codec import decode, encode, register_type
from zmqagents.codec.classes import types
from zmqagents.codec.forms import Scope

pytestmark = pytest.mark.usefixtures("registry")

T = TypeVar("T")


def round_trip(value: Any, *known: type) -> Any:
    for cls in known or (type(value),):
        register_type(cls)
    encoded = encode(value)
    return decode(encoded.payload, encoded.buffers)


class Shape(pydantic.BaseModel):
    name: str = "shape"


class Circle(Shape):
    r: int = 1


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"
    barks: int = 1


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"


class Level(enum.Enum):
    LOW = 1


class Holder(pydantic.BaseModel):
    shape: Shape = Shape()
    shapes: list[Shape] = []
    anything: Any = None
    hidden: int = pydantic.Field(5, exclude=True)
    when: dt.datetime = dt.datetime(2020, 1, 1)
    pet: Annotated[Dog | Cat, pydantic.Field(discriminator="kind")] = Dog()
    aliased: int = pydantic.Field(1, alias="other-name")
    level: Level = Level.LOW
    url: pydantic.HttpUrl | None = None
    _within: int = 0

    @pydantic.field_serializer("when")
    def as_number(self, when: dt.datetime) -> float:
        return when.timestamp()


class Box(pydantic.BaseModel, Generic[T]):
    item: T


class Upper(pydantic.BaseModel):
    text: str

    @pydantic.field_validator("text")
    @classmethod
    def louder(cls, text: str) -> str:
        return text + "!"


class Secret(pydantic.BaseModel):
    token: pydantic.SecretStr


def test_a_model_keeps_subclasses_excluded_fields_private_attributes_and_what_was_set() -> None:
    given: dict[str, Any] = {"shapes": [Circle(r=6), Shape()], "anything": (Circle(r=7), {1}), "other-name": 3}
    sent = Holder(shape=Circle(r=5), hidden=7, pet=Cat(), url=pydantic.HttpUrl("https://h/p?q=1"), **given)
    sent._within = 8
    got = round_trip(sent, Holder)  # its fields' classes are known with it
    assert got == sent
    assert repr(got) == repr(sent)
    assert [type(each) for each in (got.shape, *got.shapes, got.anything[0])] == [Circle, Circle, Shape, Circle]
    assert (got.hidden, got._within, got.model_fields_set) == (7, 8, sent.model_fields_set)
    assert got.when == dt.datetime(2020, 1, 1)
    assert round_trip(Holder.model_validate({})).model_dump(exclude_unset=True) == {}


def test_pydantic_models_of_every_kind_arrive_as_they_were() -> None:
    class Extra(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="allow", frozen=True)
        a: int

    class Numbers(pydantic.RootModel[list[int]]):
        pass

    class Own(pydantic.BaseModel):
        a: int

        def __init__(self, text: str) -> None:
            super().__init__(a=len(text))

    for sent in (
        Extra.model_validate({"a": 1, "b": (2, 3)}),
        Numbers([1, 2]),
        Own("four"),
        Box[int](item=1),
        Box[Shape](item=Circle(r=2)),
    ):
        got = round_trip([sent], type(sent))[0]
        assert type(got) is type(sent)
        assert got == sent
        assert repr(got) == repr(sent)


def test_a_generic_model_of_a_trusted_module_is_known_once_the_receiver_has_made_it() -> None:
    sent = Box[float](item=1.5)
    encoded = encode([sent])
    got = decode(encoded.payload, encoded.buffers, scope=Scope(trusted=(__name__,)))[0]
    assert (type(got), got) == (Box[float], sent)
    unmade = encoded.payload.replace(b"Box[float]", b"Box[quick]")
    with pytest.raises(errors.SerializationError, match=r"is a Box\[quick\], which the receiving side does not know"):
        decode(unmade, scope=Scope(trusted=(__name__,)))


def test_a_model_that_its_validator_would_change_is_refused_and_names_the_remedy() -> None:
    sent = Upper(text="a")
    with pytest.raises(
        errors.SerializationError, match=r"changed text .*'a!'.*register_type a to_data and a from_data"
    ):
        round_trip(sent)
    register_type(Upper, to_data=lambda upper: upper.text, from_data=lambda text: Upper.model_construct(text=text))
    assert decode(encode(sent).payload) == sent


def test_a_model_that_does_not_hold_what_it_says_is_refused() -> None:
    with pytest.raises(errors.SerializationError, match=r"this .*Upper has no text"):
        encode(Upper.model_construct())
    data: Any
    for data in ({"name": 3}, {"name": "x", "r": "7"}, {"r": 1, "more": 2}, [], {"r": 1.0}):
        register_type(Circle)
        packed = [msgpack.ExtType(1, b"o"), "test_pydantic_models:Circle", data]
        kinds = (errors.RemoteProtocolError, errors.SerializationError)  # the second for what would arrive changed
        with pytest.raises(kinds, match=r"a test_pydantic_models:Circle (of its data|would not arrive as it was sent)"):
            decode(b"\xc1" + msgpack.packb(packed))


def test_a_secret_is_refused_with_the_remedy_and_sent_when_that_is_followed() -> None:
    sent = Secret(token=pydantic.SecretStr("s3cret"))
    with pytest.raises(errors.SerializationError, match=r"value.token: a SecretStr is not sent unasked") as caught:
        round_trip(sent)
    assert "s3cret" not in str(caught.value)
    register_type(pydantic.SecretStr, to_data=pydantic.SecretStr.get_secret_value, from_data=pydantic.SecretStr)
    assert round_trip(sent).token.get_secret_value() == "s3cret"


def test_urls_arrive_by_class() -> None:
    for sent in (pydantic.HttpUrl("https://h/p"), pydantic.AnyUrl("x://y"), pydantic.PostgresDsn("postgres://u@h/d")):
        assert round_trip([sent], Shape) == [sent]
        assert type(round_trip([sent], Shape)[0]) is type(sent)


def test_a_trusted_package_gives_the_models_in_a_model() -> None:
    sent = Holder.model_validate({"shape": Circle(r=5), "anything": Circle(r=6)})
    assert decode(encode(sent).payload, scope=Scope(trusted=("test_pydantic_models",))) == sent


def test_an_annotated_base_class_gives_its_subclasses() -> None:
    def draw(shapes: list[Shape]) -> Holder:
        raise NotImplementedError

    sent: Any = [Circle(r=5), Shape()]
    assert decode(encode(sent).payload, scope=Scope(expected=types.expected_by(draw))) == sent
    result = Holder.model_validate({"shape": Circle(r=6)})
    assert decode(encode(result).payload, scope=Scope(expected=types.expected_by(draw, of_result=True))) == result
    with pytest.raises(errors.SerializationError, match="is a Holder, which the receiving side does not know"):
        decode(encode(result).payload, scope=Scope(expected=types.expected_by(draw)))


def _one_more(text: str | int) -> int:
    return int(text) + 1


def test_classes_of_attrs_arrive_by_their_fields() -> None:
    @attrs.define
    class Point:
        x: int
        _hidden: int = 2
        made: int = attrs.field(init=False, default=3)

    @attrs.frozen(kw_only=True)
    class Frozen:
        point: Point
        tags: tuple[str, ...] = ()

    @attrs.define
    class Converting:
        x: int = attrs.field(converter=_one_more)

    sent: Any = Point(1, 5)
    sent.made = 7
    for value in (sent, Frozen(point=sent, tags=("a",))):
        got = round_trip([value], type(value))[0]
        assert type(got) is type(value)
        assert got == value
    with pytest.raises(errors.SerializationError, match="the constructor changed x from int 2 to int 3"):
        round_trip(Converting("1"))
