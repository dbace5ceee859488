"""Classes by their names on the wire.

A class is called ``module:Qualified.Name``. Agent files are imported under names that hold a digest of their
directory, so a class of such a file is called by its place below that directory, with a dot before it: ``.geo:Point``.
It is the same class as ``geo:Point`` or ``agents.geo:Point`` of a program that imports the file itself, as long as one
class only answers to that.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any

from ..forms import Known

__all__ = ["AGENT_FILES", "Names", "as_wire_name", "is_same_file", "member_of", "wire_name"]

AGENT_FILES = "zmqagents_agents"  # parent of every module that `agents.loader` imports


def wire_name(cls: type) -> str:
    """The name of a class on the wire."""
    return as_wire_name(f"{cls.__module__}:{cls.__qualname__}")


def as_wire_name(name: str) -> str:
    """``module:Qualified.Name`` without the digest of an agent file's directory."""
    if not name.startswith(AGENT_FILES + "."):
        return name
    module, _, qualified = name.partition(":")
    return f".{module.split('.', 2)[-1]}:{qualified}"


class Names:
    """A table of classes by name. Not thread-safe: it is filled, then read, or filled under a lock."""

    def __init__(self, known: Iterable[Known] = ()) -> None:
        self.exact: dict[str, Known] = {}
        self._alike: dict[str, list[str]] = {}  # names by what follows the colon
        for each in known:
            self.add(each)

    def add(self, known: Known) -> None:
        if known.name not in self.exact:
            self._alike.setdefault(known.name.rpartition(":")[2], []).append(known.name)
        self.exact[known.name] = known

    def find(self, name: str) -> Known | None:
        """The class that is called ``name``, or the only one that may be meant."""
        found = self.exact.get(name)
        if found is not None:
            return found
        alike = self.alike(name)
        return alike[0] if len(alike) == 1 else None

    def alike(self, name: str) -> list[Known]:
        """The classes of other names that may be the same class of the same file."""
        module, _, qualified = name.rpartition(":")
        found = [other for other in self._alike.get(qualified, ()) if is_same_file(other.rpartition(":")[0], module)]
        return [self.exact[other] for other in found if other != name]


def is_same_file(one: str, other: str) -> bool:
    """Whether one of two modules is an agent file, by its name on the wire, and the other may be the same file."""
    if one[:1] != "." and other[:1] != ".":
        return False
    short, long = sorted((f".{one.lstrip('.')}", f".{other.lstrip('.')}"), key=len)
    return long.endswith(short)


def member_of(module: ModuleType, qualified: str) -> type | None:
    """The class of this qualified name that the module itself defines."""
    found: Any = module
    for part in qualified.split("."):
        found = vars(found).get(part) if isinstance(found, (ModuleType, type)) else None
    is_own = isinstance(found, type) and (found.__module__, found.__qualname__) == (module.__name__, qualified)
    return found if is_own else None
