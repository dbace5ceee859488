"""What `as_server stubs` writes for callers that do not have the agents' classes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from zmqagents.agents.loader import load_custom_class_from_file
from zmqagents.agents.spec import spec_of
from zmqagents.agents.stubs import Methods, stub_of

SOURCE = """
from __future__ import annotations
import datetime as dt
import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypedDict
from zmqagents import AgentBase, async_func

Mode = Literal["fast", "deep"]
Score: TypeAlias = "float | None"

class Colour(enum.Enum):
    RED = "red"

@dataclass
class Hit:
    path: str
    score: Score = None
    colour: Colour = Colour.RED

    def better(self, other: Hit) -> bool:
        return self.path < other.path

class Unused:
    pass

class Options(TypedDict, total=False):
    limit: int

class Base(AgentBase):
    name: str = "x"

    def load(self, path: str, mode: Mode = "fast") -> int:
        return 1

class Reader(Base):
    def reply(self, question: str) -> list[Hit]:
        return []

    @async_func
    def later(self, n: int, /, *rest: int, flag: bool = False, **more: str) -> dict:
        return {}

    async def go(self) -> dt.datetime:
        return dt.datetime.now()

    def items(self, options: Options) -> Iterator[Hit]:
        yield Hit("x")

    def near(self, other: Base) -> "Missing":
        return None

    def bare(self, x, y=3):
        return x

    @staticmethod
    def add(a: int) -> int:
        return a

    @classmethod
    def made(cls, a: int) -> int:
        return a

    @property
    def size(self) -> int:
        return 3
"""


@pytest.fixture
def stub(tmp_path: Path) -> str:
    path = tmp_path / "reader.py"
    path.write_text(SOURCE)
    classes: dict[str, Methods] = {}
    for cls in load_custom_class_from_file(path):
        methods = spec_of(cls).methods
        classes[cls.__name__] = {name: (method.returns, method.signature) for name, method in methods.items()}
    return stub_of(classes, SOURCE)


def members(stub: str, name: str) -> dict[str, str]:
    [found] = [node for node in ast.parse(stub).body if isinstance(node, ast.ClassDef) and node.name == name]
    functions = [node for node in found.body if isinstance(node, ast.FunctionDef)]
    return {node.name: f"({ast.unparse(node.args)}) -> {ast.unparse(node.returns or node)}" for node in functions}


def test_a_proxy_has_each_method_with_what_its_caller_gets(stub: str) -> None:
    assert members(stub, "ReaderProxy") == {
        "agent_id": "(self) -> str",
        "name": "(self) -> str",
        "size": "(self) -> int",
        "__call__": "(self, question: str) -> _za.AsyncResult[list[Hit]]",
        "reply": "(self, question: str) -> _za.AsyncResult[list[Hit]]",
        "later": "(self, n: int, /, *rest: int, flag: bool=..., **more: str) -> _za.AsyncResult[dict[_Any, _Any]]",
        "go": "(self) -> _za.AsyncResult[dt.datetime]",
        "items": "(self, options: Options) -> _za.Stream[Hit]",
        "near": "(self, other: BaseProxy) -> _Any",
        "bare": "(self, x: _Any, y: _Any=...) -> _Any",
        "add": "(self, a: int) -> int",
        "made": "(self, a: int) -> int",
        "load": "(self, path: str, mode: Mode=...) -> int",
    }


def test_every_method_of_an_asynchronous_proxy_is_awaited(stub: str) -> None:
    found = members(stub, "AsyncReaderProxy")
    assert found["load"] == "(self, path: str, mode: Mode=...) -> _za.AsyncResult[int]"
    assert found["size"] == "(self) -> _za.AsyncResult[int]"
    assert found["items"] == "(self, options: Options) -> _za.Stream[Hit]"


def test_an_asynchronous_proxy_takes_and_gives_asynchronous_proxies(stub: str) -> None:
    assert members(stub, "ReaderProxy")["near"].startswith("(self, other: BaseProxy)")
    assert members(stub, "AsyncReaderProxy")["near"].startswith("(self, other: AsyncBaseProxy)")


def test_the_types_that_signatures_name_are_copied_without_their_code(stub: str) -> None:
    assert "class Colour(enum.Enum):\n    RED = 'red'" in stub
    assert "@dataclass\nclass Hit:\n    path: str\n    score: Score = ...\n    colour: Colour = ..." in stub
    assert "Score: TypeAlias = float | None" in stub
    assert "Unused" not in stub
    assert "self.path" not in stub


def test_what_a_host_tells_is_enough_for_types_of_python_itself() -> None:
    methods: Methods = {
        "load": ("value", "(self, path: str, mode: shop.Mode = <Mode.A: 1>) -> int"),
        "find": ("future", "(self, k: int = 3, *, by: shop.Key = 'x') -> list[str]"),
    }
    stub = stub_of({"Reader": methods})
    assert members(stub, "ReaderProxy")["find"] == "(self, k: int=..., *, by: _Any=...) -> _za.AsyncResult[list[str]]"
    assert members(stub, "ReaderProxy")["load"] == "(self, *args: _Any, **kwargs: _Any) -> _Any"
