"""`Factory`: a function that makes an agent, which may be any object.

A host knows a factory by a name, as it knows classes. A function of a module is called ``module:qualified.name``. What
no other process finds under that name (a lambda, a function inside a function or of ``__main__``) gets a number on top
of it, so that two of them are never taken for each other.

What the object offers to callers is known only when it has been made; until then the agent has the spec of its factory,
`Factory.spec`, which offers nothing.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import re
import sys
import weakref
from collections.abc import Callable
from typing import Any

from ...errors import ConfigError
from ..hooks import Hooks
from ..options import AgentOptions
from ..spec import CREATE_NAMES, ClassSpec, class_name_of, end_spec

__all__ = ["FACTORY_END", "FACTORY_HOOKS", "Factory", "Maker", "as_maker", "is_factory", "maker_name", "member"]

FACTORY_HOOKS = Hooks(context=True, on_start=True, on_stop=True, stops_on_loop=False)  # whichever the object has
FACTORY_END = end_spec("on_stop", on_loop=False)
_names: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_numbers = itertools.count(1)


class Factory:
    """A function that makes agents, under the ``name`` by which hosts know it. It can be pickled if its function can.

    ``make`` gives the object of an agent, or something to be awaited for it, or an async context manager: that is
    entered when the agent is made, and left when it goes.
    """

    def __init__(self, make: Callable[..., Any], name: str) -> None:
        self.make = make
        self.name = name

    def __repr__(self) -> str:
        return f"<Factory {self.name}>"

    @property
    def short(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(":")[2].rpartition(".")[2]

    @functools.cached_property
    def spec(self) -> ClassSpec:
        """What a host knows of an agent that the factory is about to make."""
        try:
            parameters = frozenset(inspect.signature(self.make).parameters)
        except (TypeError, ValueError):  # Python cannot tell
            parameters = frozenset()
        word = re.sub(r"\W+", "", self.short.partition("#")[0]) or "agent"
        return ClassSpec(
            self.name, word, inspect.getdoc(self.make) or "", AgentOptions(persist=None), {}, None, FACTORY_HOOKS,
            FACTORY_END, own_names=parameters.intersection(CREATE_NAMES),
        )  # fmt: skip


Maker = type | Factory


def is_factory(value: object) -> bool:
    """True for what is taken for a factory: a function or method, also with some arguments given by `partial`."""
    return isinstance(value, (Factory, functools.partial)) or inspect.isroutine(value)


def as_maker(value: Any) -> Maker:
    """``value`` as a host takes it: a class, or the `Factory` of a function. ConfigError for anything else."""
    if isinstance(value, (type, Factory)):
        return value
    if not is_factory(value):
        raise ConfigError(f"an agent is made by a class or a function, or the name of one, not by {value!r}")
    return Factory(value, _name_of(value))


def maker_name(maker: Maker) -> str:
    """The name by which hosts know it."""
    return maker.name if isinstance(maker, Factory) else class_name_of(maker)


def _name_of(function: Any) -> str:
    known = _names.get(function)
    if known is not None:
        return known
    below = function
    while isinstance(below, functools.partial):
        below = below.func
    module, qualified = getattr(below, "__module__", None) or "", getattr(below, "__qualname__", type(below).__name__)
    name = f"{module}:{qualified}"
    if module == "__main__" or member(sys.modules.get(module), qualified) != function:
        name = _names[function] = f"{name}#{next(_numbers)}"
    return name


def member(module: Any, qualified: str) -> Any:
    """What stands under a qualified name in a module, None if nothing does."""
    found = module
    for part in qualified.split("."):
        found = getattr(found, part, None)
    return found
