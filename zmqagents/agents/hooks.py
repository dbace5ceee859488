"""The hooks of an agent class: methods that the host calls by itself, and that callers elsewhere do not have.

    __aenter__, __aexit__    the agent is an async context manager: entered when it is made, left when it goes
    on_start(), on_stop()    called when it has been made (entered), and before it goes (is left); async or not
    save_state()             gives what is to be kept of the agent, async or not
    load_state(state)        puts it back; ``load_state(state, version)`` gets the version of who saved it

``state_version`` of a class is the newest version of states that it reads, ``state_writes`` the one that it saves (the
same, if it is not given). Roll out first what reads 2 and writes 1, then what writes 2: each step can be taken back.

They count in a subclass of `AgentBase`, and in a class under ``@agent`` and its subclasses; the last two in such a
class only where ``persist`` is given. In any other class that a host is given they are methods like all others.
"""

from __future__ import annotations

import functools
import inspect
from typing import NamedTuple

from ..errors import ConfigError
from .base import AgentBase
from .options import AgentOptions, Persist

__all__ = ["Hooks", "hooks_of"]


class Hooks(NamedTuple):
    """Which hooks a class has."""

    names: frozenset[str] = frozenset()  # of its methods that are hooks, and none of what it offers to callers
    context: bool = False  # it is an async context manager
    on_start: bool = False
    on_stop: bool = False
    starts_on_loop: bool = False  # something is to be called at its beginning, and all of that is async
    stops_on_loop: bool = True  # all that is to be called at its end is async
    state_version: int = 1  # the newest that load_state reads
    state_writes: int = 1  # that save_state gives
    takes_version: bool = False  # load_state has a parameter for it

    @property
    def starts(self) -> bool:
        """Something is to be done when an agent has been made."""
        return self.context or self.on_start or self.on_stop

    @property
    def at_end(self) -> str:
        """The hook that is called when an agent goes, "" if there is none."""
        return "on_stop" if self.on_stop else "__aexit__" if self.context else ""

    @property
    def saves(self) -> bool:
        """The state of its agents can be saved and put back."""
        return self.names >= _STATE


NO_HOOKS = Hooks()
_LIFE = ("on_start", "on_stop")
_STATE = {"save_state", "load_state"}


def hooks_of(cls: type, options: AgentOptions) -> Hooks:
    """The hooks of ``cls``, which has these options. ConfigError for one that cannot be called as the host does."""
    is_agent = issubclass(cls, AgentBase)
    if not is_agent and getattr(cls, "__zmqagents_marked__", None) is None:
        return NO_HOOKS
    has_state = is_agent or options.persist in ("idle", "call")
    names = {name for name in (*_LIFE, *(_STATE if has_state else ())) if callable(getattr(cls, name, None))}
    for name in sorted(names - {"load_state"}):
        _check_call(cls, name)
    context = callable(getattr(cls, "__aenter__", None)) and callable(getattr(cls, "__aexit__", None))
    version = getattr(cls, "state_version", 1) if has_state else 1
    if type(version) is not int or version < 0:
        raise ConfigError(f"{cls.__name__}.state_version must be a whole number of at least 0, not {version!r}")
    writes = getattr(cls, "state_writes", version) if has_state else version
    if type(writes) is not int or not 0 <= writes <= version:
        raise ConfigError(f"{cls.__name__}.state_writes must be a whole number up to {version}, not {writes!r}")
    takes_version = "load_state" in names and _check_call(cls, "load_state", "state", "version") == 2
    starts, stops = "on_start" in names, "on_stop" in names
    return Hooks(
        frozenset(names), context, starts, stops,
        (starts or context) and (not starts or _is_async(cls, "on_start")), not stops or _is_async(cls, "on_stop"),
        version, writes, takes_version,
    )  # fmt: skip


def persistence(cls: type, hooks: Hooks, options: AgentOptions) -> Persist | None:
    """What the option ``persist`` means for ``cls``: never "auto". ConfigError if its hooks do not suffice."""
    if options.persist == "auto":
        return "call" if hooks.saves and issubclass(cls, AgentBase) else None
    if options.persist is not None and not hooks.saves:
        missing = " and ".join(sorted(_STATE - hooks.names))
        raise ConfigError(
            f"persist={options.persist!r} needs save_state and load_state: {cls.__name__} has no {missing}"
        )
    return options.persist


def _check_call(cls: type, name: str, *given: str) -> int:
    """How many of the arguments ``given`` the hook ``name`` takes. ConfigError if it needs others."""
    member = inspect.getattr_static(cls, name)
    unbound = 0 if isinstance(member, (staticmethod, classmethod)) else 1
    try:
        signature = inspect.signature(getattr(cls, name))
    except (TypeError, ValueError):  # Python cannot tell
        return len(given)
    for count in (2, 1) if given else (0,):
        try:
            signature.bind(*[None] * (unbound + count))
        except TypeError:
            continue
        return count
    takes = f"({', '.join(given)})" if given else "without arguments"
    raise ConfigError(f"{cls.__name__}.{name} is a hook, which the host calls {takes}: it cannot be called so")


def _is_async(cls: type, name: str) -> bool:
    function = getattr(cls, name)
    return inspect.iscoroutinefunction(function.func if isinstance(function, functools.partial) else function)
