"""Every public name has a docstring, and every public member of a public class."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest

import zmqagents


def undocumented(name: str, value: Any) -> Iterator[str]:
    """The name itself, or the members of its class, that say nothing. What another package defines is not ours."""
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return
    if not (value.__doc__ or "").strip():
        yield name
    members = vars(value) if inspect.isclass(value) else {}
    for member, found in members.items():
        function = getattr(found, "__func__", getattr(found, "fget", found))
        is_named = (not member.startswith("_") or member == "__call__") and inspect.isroutine(function)
        if is_named and not (inspect.getdoc(function) or "").strip():
            yield f"{name}.{member}"


@pytest.mark.parametrize("name", sorted(zmqagents.__all__))
def test_a_public_name_and_its_public_members_have_docstrings(name: str) -> None:
    assert list(undocumented(name, getattr(zmqagents, name))) == []


def test_a_public_member_without_a_docstring_is_found() -> None:
    class Undocumented:
        def told(self) -> None:
            """Something."""

        def silent(self) -> None: ...

        @property
        def also_silent(self) -> int:
            return 1

        @classmethod
        def silent_too(cls) -> None: ...

    names = list(undocumented("U", Undocumented))
    assert names == ["U", "U.silent", "U.also_silent", "U.silent_too"]
