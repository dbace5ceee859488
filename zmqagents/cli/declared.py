"""What ``start`` is told about classes and agents: ``module:Class``, and ``ID=module:Class(argument=value)``.

A function that makes agents may stand for the class, or an object that is one.
"""

from __future__ import annotations

import ast
import os
import stat
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import click

from ..agents.factories.factory import Maker, maker_name
from ..agents.factories.named import maker_named
from ..agents.loader import PACKAGE
from ..errors import ConfigError

__all__ = ["Declared", "makers_and_agents", "parse_agents", "put_on_path"]


class Declared(NamedTuple):
    """One ``--agent``: its id, what makes it as it was written, the arguments for that."""

    agent_id: str
    class_name: str
    kwargs: dict[str, Any]

    @property
    def has_module(self) -> bool:
        """Whether what makes it is to be imported, and is no class of the agent directory."""
        return ":" in self.class_name and not self.class_name.startswith(f"{PACKAGE}.")


def parse_agents(ctx: click.Context, param: click.Parameter, texts: Sequence[str]) -> list[Declared]:
    """The callback of ``--agent``. BadParameter says what is wrong with which text."""
    found: dict[str, Declared] = {}
    for text in texts:
        agent_id, _, rest = text.partition("=")
        class_name, bracket, inside = rest.partition("(")
        if not agent_id or not class_name:
            raise click.BadParameter(f"{text!r} is not ID=CLASS, ID=module:Class or ID=CLASS(name=value)", ctx, param)
        if agent_id in found:
            raise click.BadParameter(f"{agent_id!r} is given twice", ctx, param)
        try:
            kwargs = _literals(f"f({inside}") if bracket else {}
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise click.BadParameter(
                f"the arguments in {text!r} are not of the form (name=value, ...) with literals as values", ctx, param
            ) from None
        found[agent_id] = Declared(agent_id, class_name, kwargs)
    return list(found.values())


def _literals(call: str) -> dict[str, Any]:
    tree = ast.parse(call, mode="eval").body
    if not isinstance(tree, ast.Call) or tree.args or not isinstance(tree.func, ast.Name):
        raise ValueError
    return {_name(keyword): ast.literal_eval(keyword.value) for keyword in tree.keywords}


def _name(keyword: ast.keyword) -> str:
    if keyword.arg is None:  # **more
        raise ValueError
    return keyword.arg


def put_on_path(app_dir: str | None) -> None:
    """Let modules of ``app_dir`` be imported, before all others; by default those of the working directory, after them.

    The working directory is left out where other users can write: ``/tmp`` is no place to take code from.
    """
    if app_dir is not None:
        if not os.path.isdir(app_dir):
            raise ConfigError(f"app_dir: {app_dir!r} is not a directory")
        sys.path.insert(0, os.path.abspath(app_dir))
        return
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path and not os.stat(here).st_mode & stat.S_IWOTH:
        sys.path.append(here)


def makers_and_agents(
    names: Iterable[str], declared: Iterable[Declared]
) -> tuple[list[Maker], dict[str, tuple[str, dict[str, Any]]]]:
    """What the host is to make agents of, each once, and the agents as `BrokerConfig` takes them. Raises LoadError."""
    makers: dict[str, Maker] = {}

    def known_as(text: str) -> str:
        maker = maker_named(text)
        name = maker_name(maker)
        makers.setdefault(name, maker)
        return name

    for text in names:
        known_as(text)
    agents = {
        one.agent_id: (known_as(one.class_name) if one.has_module else one.class_name, one.kwargs) for one in declared
    }
    return list(makers.values()), agents
