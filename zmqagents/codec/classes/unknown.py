"""What becomes of objects whose class the receiver does not know: an error that names the remedy, or the plain form."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any, NoReturn

from ...errors import SerializationError
from ..forms import Unknown

__all__ = ["refuse", "refuse_in", "settled"]


def refuse(name: str, path: str) -> NoReturn:
    """Raise the SerializationError for an object of the class ``name``."""
    short = name.rpartition(":")[2]
    article = "an" if short[:1] in "AEIOU" else "a"
    package = name.partition(":")[0].lstrip(".").partition(".")[0]
    raise SerializationError(
        f"{path or 'the value'} is {article} {short}, which the receiving side does not know: there, "
        f"annotate the parameter or result with {short}, or register {name} with register_type, or name its package "
        f"with trust_types({package!r}) (--types {package}); or ask there for plain_types",
        path,
        name,
    )


def refuse_in(items: Iterable[Any]) -> None:
    """Refuse the first unknown object in ``items``, at any depth."""
    for item in items:
        settled(item, "an inner value", False)


def settled(value: Any, path: str, plain: bool) -> Any:
    """``value`` with the plain form in the place of each unknown object, or SerializationError if not ``plain``."""
    kind = type(value)
    if kind is Unknown:
        if not plain:
            refuse(value.name, path)
        return settled(value.plain, path, plain)
    if kind is dict:
        return {settled(key, path, plain): settled(item, f"{path}[{_text(key)}]", plain) for key, item in value.items()}
    if kind is list or kind is tuple or kind is set or kind is frozenset:
        return kind(settled(item, f"{path}[{index}]", plain) for index, item in enumerate(value))
    if kind is collections.deque:
        return collections.deque((settled(item, path, plain) for item in value), value.maxlen)
    return value


def _text(key: Any) -> str:
    return repr(key)[:60] if type(key) in (str, int) else "..."
