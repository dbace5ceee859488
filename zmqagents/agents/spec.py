"""What an agent class offers: its public methods and options, read off the class without calling anything of it.

The public methods are those without a leading underscore, and ``__call__``, but for the hooks (`hooks`). `spec_of`
computes the answer once per class; hosts check calls against it and proxies show it.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import inspect
import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError, type_name_of
from .base import AgentBase
from .hooks import NO_HOOKS, Hooks, hooks_of, persistence
from .marks import Returns
from .options import AgentOptions
from .timing import NEVER_QUICK, HeldPace, Pace

ATTRIBUTE = "attribute"  # the mark of a plain class's own ``agent_id`` that is no method, among marks of methods


def without_self(signature: str) -> str:
    """The signature of a method as callers see it, of which `MethodSpec.signature` has the text."""
    return signature.replace("(self, ", "(", 1).replace("(self)", "()", 1)


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
    on_loop: bool  # async def or async generator: runs on the host's event loop and takes no worker thread here
    concurrent: bool
    signature: str  # "(self, question: str, *, k: int = 3) -> str", "" when Python cannot tell
    doc: str
    idempotent: bool = False  # also of one with `once`: its callers send it again
    interruptible: bool = False  # an exception may be raised in its thread when the call is cancelled
    in_thread: bool = False  # on_loop, for another process runs it: there it has a thread, and does one thing at a time
    once: bool = False  # its outcome is kept with the agent's state
    pace: Pace = field(default_factory=Pace, repr=False, compare=False)  # how long its runs in this process take

    @property
    def mark(self) -> str:
        """How callers call it: ``returns``, followed by ``!`` if the method is idempotent, and ``!!`` if it is once."""
        return f"{self.returns}{'!' * (self.idempotent + self.once)}"


@dataclass(frozen=True, slots=True)
class ClassSpec:
    """One agent class: ``name`` is ``module:Qualified.Name``, ``methods`` maps method names to their specs."""

    name: str
    short: str
    doc: str
    options: AgentOptions
    methods: Mapping[str, MethodSpec] = field(default_factory=dict)
    # How long making an agent takes; None where hooks belong to that, which the fast lane does not run.
    pace: Pace | None = field(default_factory=Pace, repr=False, compare=False)
    hooks: Hooks = NO_HOOKS
    end: MethodSpec | None = None  # what is to be done when an agent goes, as a call; None: nothing
    exposed: bool = False  # a web process shows its agents to programs that speak HTTP, without being told
    own_names: frozenset[str] = frozenset()  # those of `CREATE_NAMES` that the constructor has as parameters


_away: dict[str, tuple[ClassSpec, ClassSpec]] = {}  # by class name: a spec, and the same for agents elsewhere


def away(spec: ClassSpec) -> ClassSpec:
    """``spec`` for agents whose methods another process runs: none of them takes a worker thread of this one."""
    known = _away.get(spec.name)
    if known is None or (spec is not known[0] and spec is not known[1]):
        methods = {
            name: dataclasses.replace(method, on_loop=True, in_thread=not method.on_loop, pace=Pace())
            for name, method in spec.methods.items()
        }
        end = spec.end and dataclasses.replace(spec.end, on_loop=True, in_thread=not spec.end.on_loop)
        known = _away[spec.name] = spec, dataclasses.replace(spec, methods=methods, end=end)
    return known[1]


_unhurried: dict[str, tuple[ClassSpec, ClassSpec]] = {}  # the same for agents whose calls need a look before each


def unhurried(spec: ClassSpec) -> ClassSpec:
    """``spec`` for agents whose calls need a look before each: the router thread runs none without, however short.

    Nor does it make an agent before the `Home` of that says so.
    """
    known = _unhurried.get(spec.name)
    if known is None or (spec is not known[0] and spec is not known[1]):
        methods = {name: dataclasses.replace(method, pace=HeldPace()) for name, method in spec.methods.items()}
        pace = None if spec.pace is None else HeldPace()
        known = _unhurried[spec.name] = spec, dataclasses.replace(spec, methods=methods, pace=pace)
    return known[1]


CREATE_NAMES = ("agent_id", "agent_options", "if_exists")  # keywords of ``create_agent`` that are the host's
class_name_of = type_name_of  # a host knows a class by the name that the codec gives it


_specs: weakref.WeakKeyDictionary[type, ClassSpec] = weakref.WeakKeyDictionary()
_own_names: weakref.WeakKeyDictionary[type, frozenset[str]] = weakref.WeakKeyDictionary()  # each costs 25 us


def spec_of(cls: type) -> ClassSpec:
    """The methods and options of ``cls``, computed once per class. Any thread. ConfigError: see `hooks_of`."""
    spec = _specs.get(cls)
    if spec is None:
        options = getattr(cls, "__zmqagents_options__", None) or AgentOptions()
        hooks = hooks_of(cls, options)
        options = dataclasses.replace(options, persist=persistence(cls, hooks, options))
        found = ((name, _method_spec(cls, name)) for name in dir(cls) if name not in hooks.names)
        methods = {name: method for name, method in found if method is not None}
        _check_once(cls, methods, options)
        last = hooks.at_end or ("save_state" if options.persist is not None else "")
        on_loop = bool(hooks.at_end) and hooks.stops_on_loop
        end = end_spec(last, on_loop=on_loop) if last else None
        exposed = vars(cls).get("__zmqagents_exposed__") is True
        spec = ClassSpec(
            class_name_of(cls), cls.__name__, inspect.getdoc(cls) or "", options, methods,
            None if hooks.starts else Pace(), hooks, end, exposed, own_names(cls),
        )  # fmt: skip
        _specs[cls] = spec
    return spec


def end_spec(name: str, *, on_loop: bool) -> MethodSpec:
    """The hooks at the end of an agent, as a method. The router thread never runs them: their call has no arguments."""
    return MethodSpec(name, "value", on_loop, False, "(self)", "", pace=NEVER_QUICK)


def own_names(cls: type) -> frozenset[str]:
    """Those of `CREATE_NAMES` that the constructor of ``cls`` has as parameters, so that it gets them. Found once."""
    names = _own_names.get(cls)
    if names is None:
        names = _own_names[cls] = _find_own_names(cls)
    return names


def _find_own_names(cls: type) -> frozenset[str]:
    try:
        parameters = inspect.signature(cls if hasattr(cls, "__pydantic_fields__") else cls.__init__).parameters  # type: ignore[misc]
    except (TypeError, ValueError):
        return frozenset()
    return frozenset(parameters).intersection(CREATE_NAMES)


def _method_spec(cls: type, name: str) -> MethodSpec | None:
    if name.startswith("_") and name != "__call__":
        return None
    member = inspect.getattr_static(cls, name)
    function = _function_of(cls, member)
    if not callable(function) or isinstance(function, type) or (name == "__call__" and not inspect.isroutine(function)):
        return None
    if getattr(function, "__zmqagents_host_only__", False):
        return None
    if name == "__call__" and function is AgentBase.__call__:
        function = _function_of(cls, inspect.getattr_static(cls, "reply"))  # __call__ passes on to it, so it is alike
    return _spec_from(cls, name, function, member.func if isinstance(member, functools.partialmethod) else function)


def _function_of(cls: type, member: Any) -> Any:
    """What runs when a member of a class is called: the function behind a descriptor that makes methods of it."""
    if isinstance(member, (staticmethod, classmethod)):
        return member.__func__
    if isinstance(member, functools.partialmethod):
        return member.__get__(None, cls)
    return member.func if isinstance(member, functools.singledispatchmethod) else member


def annotated(cls: type, name: str) -> tuple[list[Any], int]:
    """What runs when a method of ``cls`` or its ``__init__`` is called, for the sake of its annotations.

    And how many of the first parameters no caller gives, ``self`` say. Of a `singledispatchmethod` all that it may run.
    """
    member = inspect.getattr_static(cls, name)
    if name == "__call__" and member is vars(AgentBase)["__call__"]:
        member = inspect.getattr_static(cls, "reply")
    fields = getattr(cls, "__pydantic_fields__", None) if name == "__init__" else None
    if fields:  # a pydantic model, whose constructor takes its fields; its signature has them, too
        told = Told({key: field.annotation for key, field in fields.items()}, {}, inspect.signature(cls))
        return [told, member], 0
    if isinstance(member, functools.singledispatchmethod):
        return [member.func, *member.dispatcher.registry.values()], 1
    if isinstance(member, functools.partialmethod):
        return [member.func], 1 + len(member.args)
    if isinstance(member, functools.partial):
        return [member.func], len(member.args)
    return [_function_of(cls, member)], 0 if isinstance(member, staticmethod) else 1


def annotated_attribute(cls: type, name: str) -> list[Any]:
    """What says of which classes an attribute of ``cls`` is, in its result: a property's function, or a stand-in.

    Empty if nothing does: what ``__init__`` annotates is not there to be read.
    """
    member = inspect.getattr_static(cls, name, None)
    function = member.fget if isinstance(member, property) else getattr(member, "func", None)
    if function is not None:
        return [function]
    for base in cls.__mro__:
        hint = inspect.get_annotations(base).get(name)
        if hint is not None:
            module = sys.modules.get(base.__module__)
            return [Told({"return": hint}, {**(vars(module) if module is not None else {}), base.__name__: base})]
    return []


class Told:
    """Has the annotations of a function, where there is none; they may use the names of ``scope``."""

    def __init__(
        self, annotations: dict[str, Any], scope: dict[str, Any], signature: inspect.Signature | None = None
    ) -> None:
        self.__annotations__ = annotations
        self.__globals__ = scope
        self.__signature__ = signature

    def __call__(self) -> None:
        """Do nothing: only what can be called has a signature."""


def _below_decorators(function: Any) -> Any:
    """The function below ``functools.wraps`` and partial objects: a wrapped generator function gives a stream, too."""
    while True:
        inner = function.func if isinstance(function, functools.partial) else getattr(function, "__wrapped__", None)
        if not callable(inner):
            return function
        function = inner


def _spec_from(cls: type, name: str, function: Any, code: Any) -> MethodSpec:
    below = _below_decorators(code)
    on_loop = inspect.iscoroutinefunction(code) or inspect.isasyncgenfunction(below)
    returns: Returns | None = getattr(code, "__zmqagents_returns__", None)
    if returns is None:
        if inspect.isgeneratorfunction(below) or inspect.isasyncgenfunction(below):
            returns = "stream"
        elif on_loop or (name in ("reply", "__call__") and issubclass(cls, AgentBase)):
            returns = "future"
        else:
            returns = "value"
    marked = getattr(code, "__zmqagents_interruptible__", False) or getattr(cls, "__zmqagents_interruptible__", False)
    once = bool(getattr(code, "__zmqagents_once__", False))
    return MethodSpec(
        name, returns, on_loop, bool(getattr(code, "__zmqagents_concurrent__", False)), signature_of(function),
        inspect.getdoc(code) or "", once or bool(getattr(code, "__zmqagents_idempotent__", False)),
        bool(marked) and not on_loop and returns != "stream", once=once,
    )  # fmt: skip


def _check_once(cls: type, methods: Mapping[str, MethodSpec], options: AgentOptions) -> None:
    """Raise ConfigError if a method of ``cls`` cannot be executed once."""
    for method in methods.values():
        if not method.once:
            continue
        if method.concurrent or method.returns == "stream":
            why = "a generator has no one outcome" if method.returns == "stream" else "@concurrent has no turn"
        elif options.persist != "call":
            why = f"it needs persist='call', and persist is {options.persist!r}"
        elif options.max_concurrency > 1 or options.reentrant:
            why = "it goes with neither max_concurrency above 1 nor reentrant"
        else:
            continue
        raise ConfigError(f"{cls.__name__}.{method.name} cannot be @once: {why}")


# ---------------------------------------------------------------- signatures as text


class _Text:
    """Stands in a signature for a default or an annotation, and is shown as the text that it holds."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def signature_of(function: Any) -> str:
    """The signature of a method as Python source; "" when Python cannot tell, as for builtins without one."""
    try:
        given = inspect.signature(function)
    except (TypeError, ValueError):
        return ""
    parameters = [
        parameter.replace(default=_shown_default(parameter.default), annotation=_shown(parameter.annotation))
        for parameter in given.parameters.values()
    ]
    return str(given.replace(parameters=parameters, return_annotation=_shown(given.return_annotation)))


def _shown_default(value: Any) -> Any:
    """A default as source: an enum and a class by name, ``...`` for what has no source, as a sentinel or a function."""
    if value is inspect.Parameter.empty or type(value) in _PLAIN:
        return value
    if isinstance(value, enum.Enum):
        text = f"{type(value).__qualname__}.{value.name}"
    else:
        text = value.__qualname__ if isinstance(value, type) else _text_of(value)
    return _Text(text if _is_source(text) else "...")


def _shown(annotation: Any) -> Any:
    """An annotation as source; a class inside a function, say, by its last name."""
    if annotation is inspect.Parameter.empty:
        return annotation
    if isinstance(annotation, str):  # in a module with `from __future__ import annotations` all are
        return _Text(annotation) if _is_source(annotation) else annotation
    text = _text_of(annotation) if not isinstance(annotation, type) else inspect.formatannotation(annotation)
    if _is_source(text):
        return annotation
    name = getattr(annotation, "__name__", "")
    return _Text(name if _is_source(name) else "...")


_PLAIN = (str, int, float, bool, type(None))


def _text_of(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # code of the class
        return ""


def _is_source(text: str) -> bool:
    """Whether ``text`` can stand for a default: one expression, and nothing beside it."""
    try:
        (function,) = ast.parse(f"def f(x={text}): ...").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # ValueError: has a NUL
        return False
    given = function.args if isinstance(function, ast.FunctionDef) else None
    return given is not None and len(given.args) == 1 and not (given.kwonlyargs or given.vararg or given.kwarg)
