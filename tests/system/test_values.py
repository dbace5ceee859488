"""The table of ``docs/values.rst`` on real hosts: each value as an argument and as the result of the same call."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import values_table
from actors import client_of, host
from registrations import forgotten
from values_table import COLUMNS, ROWS
from zmqagents import AgentBase, AgentCallError, codec, errors

pytestmark = pytest.mark.program
PAGE = Path(__file__).parents[2] / "docs" / "values.rst"
DOCUMENTED = values_table.read_table(PAGE.read_text(encoding="utf-8"))
TRUSTED = ("values_table", "attrs_objects")


def values() -> dict[str, Any]:
    """Those whose packages are installed, by the names of their rows."""
    found = {}
    for name, make in ROWS.items():
        with contextlib.suppress(values_table.NotInstalled):
            found[name] = make()
    return found


class Loaded(AgentBase):
    """Torch is imported by no value, so the host of these agents has it."""

    def __init__(self) -> None:
        super().__init__()
        with contextlib.suppress(ImportError):
            importlib.import_module("torch")


class Echo(Loaded):
    def back(self, value: Any) -> Any:
        return value

    def items(self, value: Any) -> Iterator[Any]:
        yield value

    def fail(self, value: Any) -> None:
        raise LookupError("why", value)


class Shop(AgentBase):
    def restock(self, order: values_table.Order) -> list[values_table.Order]:
        return [order]


class Keeper(AgentBase):
    def back(self, value: Any) -> Any:
        return value


def annotated_echo() -> type[AgentBase]:
    """An agent with a method for each row, annotated with the type of its value."""
    methods = {}
    for index, value in enumerate(values().values()):
        is_lock = type(value).__module__ == "_thread"  # no other process can import this class
        method = values_table.method_that_takes(Any if is_lock else type(value))
        method.__name__ = method.__qualname__ = f"take_{index}"
        methods[method.__name__] = method
    return type("Annotated", (Loaded,), {"__module__": __name__, **methods})


@contextmanager
def echo_on_host(column: str) -> Iterator[Any]:
    settings: dict[str, Any] = {}
    if column == "trusted":
        settings["types"] = (*TRUSTED, "torch")
    if column == "plain_types":
        settings["plain_types"] = True
    cls = annotated_echo() if column == "annotated" else Echo
    with host(cls, **settings) as launcher, client_of(launcher, **settings) as client:
        yield client.create_agent(cls)


@contextmanager
def all_registered(is_wanted: bool) -> Iterator[None]:
    with forgotten():
        for value in values().values() if is_wanted else ():
            with contextlib.suppress(errors.ConfigError):  # it has a form of its own
                if type(value).__module__ in TRUSTED:
                    codec.register_type(type(value))
        yield


def told_apart(entry: str, value: Any, column: str, echo: Any, index: int) -> None:
    """Check that ``value`` goes to the host and back as the table says."""
    send = getattr(echo, f"take_{index}") if column == "annotated" else echo.back
    assert values_table.cell(value, lambda sent: send(sent)) == entry


@pytest.mark.parametrize("column", [column for column in COLUMNS if column != "private host"])
def test_each_value_goes_to_a_host_and_back_as_the_table_says(column: str) -> None:
    place = COLUMNS.index(column)
    wrong = []
    with all_registered(column == "registered"), echo_on_host(column) as echo:
        for index, (name, value) in enumerate(values().items()):
            entry = DOCUMENTED[name][place]
            if name in ("pydantic SecretStr", "a lock, an open file, a generator") and column == "registered":
                continue  # what registering says of them is said by the codec's own test
            try:
                told_apart(entry, value, column, echo, index)
            except Exception as exc:
                wrong.append(f"{name}: {type(exc).__name__}: {str(exc)[:300]}")
    assert not wrong, "\n".join(wrong)


def test_each_value_goes_to_a_private_host_and_back_as_the_table_says(private: None) -> None:
    place = COLUMNS.index("private host")
    wrong = []
    echo: Any = Echo().to_dist()
    for name, value in values().items():
        try:
            told_apart(DOCUMENTED[name][place], value, "private host", echo, 0)
        except Exception as exc:
            wrong.append(f"{name}: {type(exc).__name__}: {str(exc)[:300]}")
    assert not wrong, "\n".join(wrong)


def test_each_value_arrives_in_a_stream_and_in_an_exception_as_in_a_result() -> None:
    wrong = []
    with echo_on_host("trusted") as echo:
        for name, value in values().items():
            if DOCUMENTED[name][COLUMNS.index("trusted")] != "equal":
                continue
            try:
                [item] = echo.items(value)
                assert values_table.is_alike(item, value)
                with pytest.raises(LookupError) as caught:
                    echo.fail(value)
                assert isinstance(caught.value, AgentCallError)
                assert caught.value.args[0] == "why"
                assert values_table.is_alike(caught.value.args[1], value)
            except Exception as exc:
                wrong.append(f"{name}: {type(exc).__name__}: {str(exc)[:300]}")
    assert not wrong, "\n".join(wrong)


def test_a_method_that_was_pickled_or_sent_knows_the_classes_of_its_results() -> None:
    order = values_table.Order((values_table.Item("x"),))
    with host(Shop, Keeper) as launcher, client_of(launcher) as client:
        restock: Any = client.create_agent(Shop).restock
        sent = client.create_agent(Keeper).back(restock)
        copied = pickle.loads(pickle.dumps([restock, sent.agent]))
        for method in (restock, sent, copied[0], copied[1].restock):
            assert method(order) == [order]


def test_objects_with_slots_of_a_class_that_only_the_program_has_come_back_from_a_private_host(private: None) -> None:
    class Plain:
        __slots__ = ("a", "b")

    class Further(Plain):
        __slots__ = "c"

    @dataclasses.dataclass(slots=True)
    class Item:
        name: str
        parts: list[int]

    sent = Further()
    sent.a, sent.c = (1,), {2}  # type: ignore[attr-defined]
    echo: Any = Echo().to_dist()
    got = echo.back(sent)
    assert (type(got), got.a, got.c, hasattr(got, "b"), hasattr(got, "__dict__")) == (Further, (1,), {2}, False, False)
    assert echo.back([Item("x", [1])]) == [Item("x", [1])]


def test_named_tuples_of_classes_that_only_the_program_has_come_back_from_a_private_host(private: None) -> None:
    class Made(NamedTuple):
        a: int
        b: int = 2

    class Inner(NamedTuple):
        x: Made
        y: str = "y"

    class More(Inner):
        """Has attributes beside its items."""

    plain = collections.namedtuple("plain", "p q", defaults=[1])
    echo: Any = Echo().to_dist()
    for sent in (Made(1), Inner(Made(3, 4)), plain(0), More(Made(5))):
        got = echo.back(sent)
        assert (type(got), got) == (type(sent), sent)
