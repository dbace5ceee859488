"""Names in a cluster: ``Class/key`` for an agent, ``cluster:shop/Class/key`` for a proxy of it.

The class is a part of the name, so one who calls an agent says which class it is meant to have, and nobody can take a
name that another class is known by.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from ..checks import CLUSTER, check_cluster_name
from ..errors import ConfigError

__all__ = ["MAX_NAME_CHARS", "AgentName", "Reference", "agent_name", "parse_name", "parse_reference"]

MAX_NAME_CHARS = 200
MAX_KNOWN = 4096  # references that need not be read again


class AgentName:
    """The name of an agent: its class, and everything after the first slash. ``text``: both, as records have them."""

    __slots__ = ("cls", "key", "text")

    def __init__(self, cls: str, key: str) -> None:
        self.cls, self.key = cls, key
        self.text = f"{cls}/{key}"

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"AgentName({self.cls!r}, {self.key!r})"

    def __eq__(self, other: object) -> bool:
        return self.text == other.text if isinstance(other, AgentName) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.text)


class Reference(NamedTuple):
    """What a proxy names: an agent of a cluster, whose name is its identity."""

    cluster: str
    agent: AgentName

    def __str__(self) -> str:
        return f"{CLUSTER}{self.cluster}/{self.agent}"


def agent_name(cls: str, key: str) -> AgentName:
    """The agent ``key`` of the class ``cls``. Raises `ConfigError` for what is no name."""
    if not isinstance(key, str) or not isinstance(cls, str):
        raise ConfigError(f"an agent's class and key must be texts, not {cls!r} and {key!r}")
    if not cls or "/" in cls or not key or not f"{cls}{key}".isprintable():
        raise ConfigError(f"an agent's name must be Class/key in printable characters, not {f'{cls}/{key}'!r}")
    if len(cls) + len(key) + 1 > MAX_NAME_CHARS:
        raise ConfigError(f"an agent's name has at most {MAX_NAME_CHARS} characters, not {len(cls) + len(key) + 1}")
    return AgentName(cls, key)


def parse_name(text: str) -> AgentName:
    """The agent that ``Class/key`` names. Raises `ConfigError`."""
    cls, _, key = text.partition("/")
    if not cls or not key:
        raise ConfigError(f"an agent's name must be Class/key, as in Counter/c1, not {text!r}")
    return agent_name(cls, key)


@functools.lru_cache(MAX_KNOWN)
def parse_reference(text: str) -> Reference:
    """What ``cluster:shop/Class/key`` names. Raises `ConfigError`."""
    if not text.startswith(CLUSTER):
        raise ConfigError(f"a proxy of a cluster is {CLUSTER}NAME/Class/key, not {text!r}")
    cluster, _, agent = text.removeprefix(CLUSTER).partition("/")
    return Reference(check_cluster_name(cluster), parse_name(agent))
