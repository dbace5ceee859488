"""`maker_named`: what ``module:name`` stands for, as a host takes it to make agents.

A class or a function makes an agent each time. Any other object is the agent itself: a compiled graph, say. Then all
agents that are made of the name share that object.
"""

from __future__ import annotations

from typing import Any

from ..loader import load_named
from .factory import Factory, Maker, as_maker, is_factory

__all__ = ["maker_named"]


class Given:
    """Gives an object that exists already, which a module has under a name."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __call__(self) -> Any:
        return load_named(self._text)


def maker_named(text: str) -> Maker:
    """What ``module:name`` gives, imported now: a class, or a `Factory` of a function or an object.

    The module is imported by the ordinary import system; where it lies must be on ``sys.path``. LoadError with one
    line: it cannot be imported, or has nothing of that name.
    """
    found = load_named(text)
    if isinstance(found, type) or is_factory(found):
        return as_maker(found)
    return Factory(Given(text), text)
