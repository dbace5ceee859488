"""What an agent class offers: its public methods and options, read off the class without calling anything of it.

The public methods are those without a leading underscore, and ``__call__``. `spec_of` computes the answer once per
class; hosts check calls against it and proxies show it.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import type_name_of
from .base import AgentBase
from .marks import AgentOptions, Returns
from .timing import Pace


def is_agent_class(value: object) -> bool:
    """True for a subclass of `AgentBase`, and for a class under ``@agent`` itself, but not for its subclasses."""
    if not isinstance(value, type) or value is AgentBase:
        return False
    return issubclass(value, AgentBase) or vars(value).get("__zmqagents_marked__") is value


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """One public method, as its host and its callers need to know it."""

    name: str
    returns: Returns
    on_loop: bool  # async def or async generator: runs on the host's event loop and takes no worker thread
    concurrent: bool
    signature: str  # "(self, question: str, *, k: int = 3) -> str", "" when Python cannot tell
    doc: str
    idempotent: bool = False
    interruptible: bool = False  # an exception may be raised in its thread when the call is cancelled
    pace: Pace = field(default_factory=Pace, repr=False, compare=False)  # how long its runs in this process take

    @property
    def mark(self) -> str:
        """How callers call it: ``returns``, followed by ``!`` if the method is idempotent."""
        return f"{self.returns}!" if self.idempotent else self.returns


@dataclass(frozen=True, slots=True)
class ClassSpec:
    """One agent class: ``name`` is ``module:Qualified.Name``, ``methods`` maps method names to their specs."""

    name: str
    short: str
    doc: str
    options: AgentOptions
    methods: Mapping[str, MethodSpec] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace, repr=False, compare=False)  # how long making an agent takes


class_name_of = type_name_of  # a host knows a class by the name that the codec gives it


_specs: weakref.WeakKeyDictionary[type, ClassSpec] = weakref.WeakKeyDictionary()


def spec_of(cls: type) -> ClassSpec:
    """The methods and options of ``cls``, computed once per class. Any thread."""
    spec = _specs.get(cls)
    if spec is None:
        options = getattr(cls, "__zmqagents_options__", None) or AgentOptions()
        found = ((name, _method_spec(cls, name)) for name in dir(cls))
        methods = {name: method for name, method in found if method is not None}
        spec = ClassSpec(class_name_of(cls), cls.__name__, inspect.getdoc(cls) or "", options, methods)
        _specs[cls] = spec
    return spec


def _method_spec(cls: type, name: str) -> MethodSpec | None:
    if name.startswith("_") and name != "__call__":
        return None
    member = inspect.getattr_static(cls, name)
    function = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
    if not callable(function) or isinstance(function, type) or (name == "__call__" and not inspect.isroutine(function)):
        return None
    if getattr(function, "__zmqagents_host_only__", False):
        return None
    if name == "__call__" and function is AgentBase.__call__:
        function = inspect.getattr_static(cls, "reply")  # __call__ passes on to reply, so it is alike
        function = function.__func__ if isinstance(function, (staticmethod, classmethod)) else function
    return _spec_from(cls, name, function)


def _spec_from(cls: type, name: str, function: Any) -> MethodSpec:
    on_loop = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    returns: Returns | None = getattr(function, "__zmqagents_returns__", None)
    if returns is None:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            returns = "stream"
        elif on_loop or (name in ("reply", "__call__") and issubclass(cls, AgentBase)):
            returns = "future"
        else:
            returns = "value"
    try:
        signature = str(inspect.signature(function))
    except (TypeError, ValueError):  # builtins without a text signature
        signature = ""
    marked = getattr(function, "__zmqagents_interruptible__", False) or getattr(
        cls, "__zmqagents_interruptible__", False
    )
    interruptible = bool(marked) and not on_loop and returns != "stream"
    return MethodSpec(
        name, returns, on_loop, bool(getattr(function, "__zmqagents_concurrent__", False)), signature,
        inspect.getdoc(function) or "", bool(getattr(function, "__zmqagents_idempotent__", False)),
        interruptible,
    )  # fmt: skip
