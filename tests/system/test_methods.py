"""What a class offers: methods made by descriptors and decorators, and signatures that another process can read."""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from actors import client_on_host
from zmqagents import AgentBase, AgentProxy, RemoteMethod, RpcClient
from zmqagents.agents.spec import spec_of

MISSING = object()


class Mode(enum.Enum):
    FAST = 1


def logged(function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


class Shapes(AgentBase):
    def scale(self, value: int, factor: int = 1) -> int:
        return value * factor

    double = functools.partialmethod(scale, factor=2)

    @functools.singledispatchmethod
    def kind(self, value: Any) -> str:
        return "any"

    @kind.register
    def _(self, value: int) -> str:
        return "int"

    @logged
    def count(self, most: int) -> Iterator[int]:
        yield from range(most)

    def enumerated(self, url: str, mode: Mode = Mode.FAST, timeout: float = 5) -> Any:
        return timeout

    def awaited(self, timeout: Any = MISSING, key: Any = len, kind: type = dict) -> Any:
        return timeout

    async def soon(self, mode: Mode = Mode.FAST, timeout: float = 5) -> float:
        return timeout

    def required(self, timeout: float, key: Any = lambda: 1) -> float:
        return timeout

    def anything(self, /, **options: Any) -> Any:
        return options


@pytest.fixture(scope="module")
def shapes() -> Iterator[AgentProxy]:
    with client_on_host(Shapes) as client:
        yield client.create_agent("Shapes")


def test_partial_and_dispatched_methods_are_methods(shapes: AgentProxy) -> None:
    assert shapes.double(4) == 8
    assert (shapes.kind(1), shapes.kind("x")) == ("int", "any")
    assert {"double", "kind"} <= set(dir(shapes))


def test_a_generator_behind_a_decorator_gives_a_stream(shapes: AgentProxy) -> None:
    assert spec_of(Shapes).methods["count"].returns == "stream"
    assert list(shapes.count(3)) == [0, 1, 2]


def test_a_methods_own_timeout_is_reached_whatever_its_other_defaults_are(shapes: AgentProxy) -> None:
    assert shapes.enumerated("u", timeout=60) == 60
    assert shapes.enumerated.with_timeout(9)("u", timeout=60) == 60
    assert shapes.awaited(timeout=60) == 60
    assert shapes.soon(timeout=60).result() == 60
    assert shapes.required(timeout=60) == 60


def test_a_signature_has_the_real_defaults_and_shows_others_as_source_or_dots(shapes: AgentProxy) -> None:
    enumerated = inspect.signature(shapes.enumerated).parameters
    assert repr(enumerated["mode"].default) == "Mode.FAST"
    assert enumerated["timeout"].default == 5
    awaited = inspect.signature(shapes.awaited).parameters
    assert [awaited[name].default for name in ("timeout", "key")] == [..., ...]
    assert repr(awaited["kind"].default) == "dict"
    assert inspect.signature(shapes.awaited) == inspect.signature(shapes.awaited)


def default_in(text: str) -> Any:
    """What a caller sees of a default whose source is ``text``; nothing is sent."""
    with RpcClient("localhost", 9) as client:
        method = RemoteMethod(client.link, "a", "go", ["value", f"(self, x={text})", ""], None)
        return inspect.signature(method).parameters["x"].default


@pytest.mark.parametrize("value", [None, True, -1.5, 2**70, "it's", b"x", (1, ("a",)), [], {"a": {1}}, 1 - 2j])
def test_a_default_that_is_a_literal_is_the_same_for_callers(value: Any) -> None:
    default = default_in(repr(value))
    assert (type(default), default) == (type(value), value)


@pytest.mark.parametrize("text", ["{[]}", "{[]: 1}", "a.b", "-'x'", "1 + 1", "[*a]", "print('x')"])
def test_a_default_that_is_no_literal_is_shown_and_never_run(text: str) -> None:
    assert repr(default_in(text)) == text


def test_a_keyword_named_self_reaches_the_method(shapes: AgentProxy) -> None:
    assert shapes.anything(self=1, name=2) == {"self": 1, "name": 2}
