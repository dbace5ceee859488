"""`maker_named`: what ``module:name`` stands for, as a host takes it to make agents.

A class or a function makes an agent each time. Any other object is the agent itself: a compiled graph, say. Then all
agents that are made of the name share that object.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from ...errors import LoadError, safe_text
from .factory import Factory, Maker, as_maker, is_factory, member

__all__ = ["is_module_name", "maker_named"]


class Given:
    """Gives an object that exists already, which a module has under a name."""

    def __init__(self, module: str, qualified: str) -> None:
        self._module = module
        self._qualified = qualified

    def __call__(self) -> Any:
        return member(importlib.import_module(self._module), self._qualified)


def is_module_name(text: str) -> bool:
    """Whether ``text`` reads like ``module:name``, for `maker_named`."""
    module, colon, name = text.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *name.split(".")))


def maker_named(text: str) -> Maker:
    """What ``module:name`` gives, imported now: a class, or a `Factory` of a function or an object.

    The module is imported by the ordinary import system; where it lies must be on ``sys.path``. LoadError with one
    line: it cannot be imported, or has nothing of that name.
    """
    if not is_module_name(text):
        raise LoadError(f"{text!r} is no name of what makes an agent: write module:name")
    module_name, _, qualified = text.partition(":")
    try:
        module = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # a module may call sys.exit()
        line = " ".join(f"{type(exc).__name__}: {safe_text(exc)}".split())
        where = f" (it is looked for in {', '.join(sys.path)})" if _is_missing(exc, module_name) else ""
        raise LoadError(f"{text}: {line}{where}", path=text) from exc
    found = member(module, qualified)
    if found is None:
        raise LoadError(f"{text}: the module has no {qualified}", path=text)
    if isinstance(found, type) or is_factory(found):
        return as_maker(found)
    return Factory(Given(module_name, qualified), text)


def _is_missing(exc: BaseException, module: str) -> bool:
    return isinstance(exc, ModuleNotFoundError) and exc.name is not None and f"{module}.".startswith(f"{exc.name}.")
