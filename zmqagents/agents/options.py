"""The options of an agent class: how the host treats its agents.

They come from three places, each of which overrides the one before: the class (``@agent(...)`` or its class keywords),
``agent_options`` or ``client.options`` where an agent is made, and for ``isolation`` the host's own setting where
neither says anything.

`AgentOptions` checks each value by itself. Whether they go together is seen only when they are all there, by `checked`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import ConfigError

__all__ = ["AgentOptions", "Isolation", "Lifetime", "OnBusy", "OnTimeout", "Persist", "Placing"]

OnBusy = Literal["enqueue", "reject"]
Isolation = Literal["thread", "process", "pool"]
OnTimeout = Literal["cancel", "kill"]
Persist = Literal["auto", "idle", "call"]
Lifetime = Literal["host", "client"]
Placing = Literal["load", "local"]

MIN_MEMORY_MB = 32  # a child without an agent takes some 28 MiB
MAX_ENV_BYTES = 32_768  # names and values; they travel in the head of a message
MAX_LABELS_BYTES = 4096  # the same
_OF_PROCESS = ("memory_mb", "env", "on_timeout")  # what only a child of the agent's own can give
_OF_CHILDREN = ("max_restarts",)  # and what a child shared with others can give, too


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """How the host treats the agents of a class. ConfigError for a value that is not allowed."""

    max_concurrency: int = 1  # how many calls of one agent may run at the same time
    reentrant: bool = False  # True: a call chain that comes back to this agent runs; False: it is a DeadlockError
    on_busy: OnBusy = "enqueue"  # "reject": a call that would have to queue fails with HostBusy
    isolation: Isolation | None = None  # "process": a child of its own; "pool": a shared one; None: as the host says
    memory_mb: int | None = None  # MiB of memory that its child may have; None: no limit
    env: Mapping[str, str] | None = dataclasses.field(default=None, repr=False)  # of its child, on top of the host's
    max_restarts: int = 5  # times in 60 s that its child is started again after a crash
    on_timeout: OnTimeout = "cancel"  # "kill": the child of a call that does not end at its deadline is killed
    persist: Persist | None = "auto"  # when its state is saved; "auto": see `agent`; None: never
    lifetime: Lifetime = "host"  # "client": it is deleted when the client that has made it goes
    idle_s: float | None = None  # it is deleted when nobody has called it for so long; None: never
    placement: Placing = "load"  # in a cluster: on a member with little to do, or "local", on the one that is asked
    labels: Mapping[str, str] | None = None  # in a cluster: that its member must have; None and {}: it may have any

    def __post_init__(self) -> None:
        _check_number("max_concurrency", self.max_concurrency, 1)
        if not isinstance(self.reentrant, bool):
            raise ConfigError(f"reentrant must be True or False, not {self.reentrant!r}")
        _check_word("on_busy", self.on_busy, ("enqueue", "reject"))
        _check_word("isolation", self.isolation, ("thread", "process", "pool", None))
        if self.memory_mb is not None:
            _check_number("memory_mb", self.memory_mb, MIN_MEMORY_MB)
        if self.env is not None:
            object.__setattr__(self, "env", _checked_env(self.env))
        _check_number("max_restarts", self.max_restarts, 0)
        _check_word("on_timeout", self.on_timeout, ("cancel", "kill"))
        _check_word("persist", self.persist, ("auto", "idle", "call", None))
        _check_word("lifetime", self.lifetime, ("host", "client"))
        if self.idle_s is not None and not (type(self.idle_s) in (int, float) and 0 < self.idle_s < math.inf):
            raise ConfigError(f"idle_s must be a number of seconds above 0, not {self.idle_s!r}")
        _check_word("placement", self.placement, ("load", "local"))
        if self.labels is not None:
            object.__setattr__(self, "labels", _checked_labels(self.labels))

    def but(self, given: Mapping[str, Any]) -> AgentOptions:
        """These options with those of ``given``; ConfigError for a value that is not allowed. What it gives is not
        `checked` yet.

        Where ``given`` takes the agent out of its own child (``isolation="thread"``), what only that child can give
        goes with it.
        """
        try:
            return _change_once(self, **given)
        except TypeError:  # ``env`` and ``labels`` have no hash
            return _change(self, given)

    def checked(self) -> AgentOptions:
        """These options; ConfigError if one of them needs another ``isolation`` than they have."""
        for name in _out_of_place(self.isolation):
            if getattr(self, name) != _DEFAULTS[name]:
                needed = "'process'" if name in _OF_PROCESS else "'process' or 'pool'"
                found = "is not given beside it" if self.isolation is None else f"is {self.isolation!r}"
                raise ConfigError(f"{name} needs isolation={needed}, and isolation {found}")
        return self

    def settled(self, isolation: Isolation) -> AgentOptions:
        """These options with this ``isolation``; ConfigError if one of them needs another one."""
        has_hash = self.env is None and self.labels is None
        return (_settle_once if has_hash else _settle)(self, isolation)


def _settle(options: AgentOptions, isolation: Isolation) -> AgentOptions:
    return (options if options.isolation == isolation else dataclasses.replace(options, isolation=isolation)).checked()


_settle_once = functools.lru_cache(maxsize=256)(_settle)  # each agent that is made asks


def _change(options: AgentOptions, given: Mapping[str, Any]) -> AgentOptions:
    changed = dict(given)
    isolation = given.get("isolation", options.isolation)
    if isolation != options.isolation:
        changed = {name: _DEFAULTS[name] for name in _out_of_place(isolation)} | changed
    return dataclasses.replace(options, **changed)


@functools.lru_cache(maxsize=256, typed=True)  # each agent that is made asks; typed: True is no number of calls
def _change_once(options: AgentOptions, /, **given: Any) -> AgentOptions:
    return _change(options, given)


OPTION_NAMES = AgentOptions.__slots__
OF_CLUSTER = ("placement", "labels")  # which mean nothing for an agent of one host
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(AgentOptions)}


def chosen(**given: Any) -> dict[str, Any]:
    """Those of the options that were given: that are not None, and for ``persist`` not "auto"."""
    return {name: value for name, value in given.items() if value != ("auto" if name == "persist" else None)}


def check_platform(isolation: Isolation | None, platform: str = sys.platform) -> None:
    """Raise ConfigError where a host cannot have agents in processes of their own."""
    if isolation in ("process", "pool") and platform != "linux":
        raise ConfigError(
            f"isolation={isolation!r} needs a host on Linux, and this one is on {platform}: say isolation='thread'"
        )


def _out_of_place(isolation: Isolation | None) -> tuple[str, ...]:
    """The options that mean nothing with this isolation. None may become "pool" by the host's own setting."""
    if isolation == "process":
        return ()
    return _OF_PROCESS + _OF_CHILDREN if isolation == "thread" else _OF_PROCESS


def _check_number(name: str, value: Any, least: int) -> None:
    if type(value) is not int or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, not {value!r}")


def _check_word(name: str, value: Any, words: tuple[str | None, ...]) -> None:
    if not (value is None or isinstance(value, str)) or value not in words:
        *first, last = map(repr, words)
        raise ConfigError(f"{name} must be {', '.join(first)} or {last}, not {value!r}")


def _checked_env(env: Any) -> dict[str, str]:
    """A copy of ``env``. The errors name no value: it may be a secret."""
    if not isinstance(env, Mapping):
        raise ConfigError(f"env must be a dict of texts, not {type(env).__name__}")
    for name, value in env.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise ConfigError(f"env: {name!r} cannot be the name of an environment variable")
        if not isinstance(value, str) or "\0" in value:
            raise ConfigError(f"env: the value of {name!r} must be a text without NUL")
    size = sum(len(name) + len(value) for name, value in env.items())
    if size > MAX_ENV_BYTES:
        raise ConfigError(f"env has {size:,} characters, limit {MAX_ENV_BYTES:,}")
    return dict(env)


def _checked_labels(labels: Any) -> dict[str, str]:
    """A copy of ``labels``."""
    if not isinstance(labels, Mapping):
        raise ConfigError(f"labels must be a dict of texts, such as {{'zone': 'a'}}, not {labels!r}")
    for name, value in labels.items():
        if not isinstance(name, str) or not name or not isinstance(value, str):
            raise ConfigError(f"labels must be a dict of texts, such as {{'zone': 'a'}}; it has {name!r}: {value!r}")
    size = sum(len(name.encode()) + len(value.encode()) for name, value in labels.items())
    if size > MAX_LABELS_BYTES:
        raise ConfigError(f"labels have {size:,} bytes, limit {MAX_LABELS_BYTES:,}")
    return dict(labels)
