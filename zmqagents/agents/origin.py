"""Which file a class comes from, so that the same file is known again in another process; and the reverse.

An agent file has one module name in a program that imports it and another on a host that loads it by ``--agent-dir``,
and may lie elsewhere. What both have is its name and its text.
"""

from __future__ import annotations

import binascii
import functools
import os
import sys
import weakref
from types import ModuleType

from ..codec.classes.names import as_wire_name, is_same_file, member_of
from .spec import is_agent_class

__all__ = ["loaded_class", "origin_of"]

_origins: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()


def origin_of(cls: type) -> str:
    """``reader.py 1234 89abcdef``: the file of ``cls``, its size and checksum when first asked for.

    "" for a class without a file. Any thread.
    """
    origin = _origins.get(cls)
    if origin is None:
        origin = _origins[cls] = _read(getattr(sys.modules.get(cls.__module__), "__file__", None))
    return origin


def loaded_class(name: str) -> type | None:
    """The agent class that another process calls ``name``, if this one has loaded it. Nothing is imported."""
    module, _, qualified = name.partition(":")
    if module in sys.modules:
        places: tuple[str, ...] = (module,)
    else:
        places = _modules_like(as_wire_name(name).partition(":")[0], len(sys.modules))
    found = {cls for place in places if (cls := _agent_class_of(sys.modules.get(place), qualified)) is not None}
    return found.pop() if len(found) == 1 else None


@functools.lru_cache(maxsize=256)
def _modules_like(module: str, _: int) -> tuple[str, ...]:
    """The loaded modules that may be the same agent file; looked for again when there are more or fewer modules."""
    return tuple(other for other in list(sys.modules) if is_same_file(as_wire_name(f"{other}:")[:-1], module))


def _agent_class_of(module: ModuleType | None, qualified: str) -> type | None:
    found = None if module is None else member_of(module, qualified)
    return found if is_agent_class(found) else None


def _read(path: str | None) -> str:
    if path is None:
        return ""
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError:  # in an archive, or gone
        return ""
    name = "".join(sign for sign in os.path.basename(path) if sign.isprintable())
    return f"{name} {len(source)} {binascii.crc32(source):08x}"
