"""The classes that this process knows, by their names on the wire.

An object of a class travels as the class's name and its parts (`shapes`). The sender needs no permission: it sends
enums, namedtuples, dataclasses, attrs classes, pydantic models and registered classes. The receiver makes an object
only of a class that it *knows*, looked up in this order:

1. registered: `register_type`, `register_types`;
2. expected: named by the annotations of the method that is called, or its result's (`expected`);
3. trusted: in a package that `trust_types`, or the `Scope` of a host, names. Its modules may be imported for it.

Nothing else is imported by a name from the wire. An object of any other class is `SerializationError` with the
remedy, or, where the receiver asked for it, its plain form.

**Names.** A class is called ``module:Qualified.Name``. Agent files are imported under names that hold a digest of
their directory, so a class of such a file is called by its place below the directory, with a dot before it:
``.geo:Point``. It is the same class as ``geo:Point`` or ``agents.geo:Point`` of a program that imports the file itself,
as long as only one class answers to that.

Registering is thread-safe.
"""

from __future__ import annotations

import importlib
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType, NoneType
from typing import Any, NamedTuple, TypeVar, overload

from .. import errors
from ..errors import ConfigError, RemoteProtocolError, SerializationError
from . import packages
from .builtin import BASES, REDUCERS, reduce_exception, reduce_ref
from .forms import MARK_OBJECT, ClassPart, Decoding, Reducer, Unknown, expect
from .shapes import Shape, shape_of, state_shape, subclass_shape

__all__ = ["AGENT_FILES", "Known", "Registry", "Scope", "read_object", "reducer_of", "register_type", "register_types",
           "registry", "trust_types", "wire_name"]  # fmt: skip

T = TypeVar("T", bound=type)
AGENT_FILES = "zmqagents_agents"  # parent of every module that `agents.loader` imports


class Known(NamedTuple):
    """A class that can be made: its name on the wire and its shape."""

    cls: type
    name: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Scope:
    """What one receiver knows beside the registered types, for one value that it decodes."""

    expected: Expected | None = None  # by the annotations
    trusted: tuple[str, ...] = ()  # packages, beside those of `trust_types`
    plain: bool = False  # an object of an unknown class arrives as its plain form


class Expected:
    """What `expected.Annotations` offers the decoder; here so that `Scope` can name it."""

    def known(self) -> Mapping[str, Known]:
        """The classes that the annotations name, by their names on the wire."""
        raise NotImplementedError


NO_SCOPE = Scope()


def wire_name(cls: type) -> str:
    """The name of a class on the wire."""
    module = cls.__module__
    if module.startswith(AGENT_FILES + "."):
        module = "." + module.split(".", 2)[-1]
    return f"{module}:{cls.__qualname__}"


def look_up(table: Mapping[str, Known], name: str) -> Known | None:
    """The class that is called ``name``, or that is the only one of the file it lies in (see Names above)."""
    found = table.get(name)
    if found is not None:
        return found
    module, _, qualified = name.partition(":")
    alike = []
    for other, known in table.items():
        place, _, its_name = other.partition(":")
        if its_name == qualified and (place[:1] == "." or module[:1] == "."):
            short, long = sorted((f".{place.lstrip('.')}", f".{module.lstrip('.')}"), key=len)
            if long.endswith(short):
                alike.append(known)
    return alike[0] if len(alike) == 1 else None


# ---------------------------------------------------------------- what is registered


class Registry:
    """The registered and trusted types of this process, and the reducers found for classes."""

    def __init__(self) -> None:
        self.known: dict[str, Known] = {}
        self.trusted: tuple[str, ...] = ()
        self._reducers: weakref.WeakKeyDictionary[type, Reducer | None] = weakref.WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"<Registry {len(self.known)} types, trusts {', '.join(self.trusted) or 'no package'}>"

    def add(self, known: Known) -> None:
        """Make a class known, in the place of one that has its name."""
        self.known[known.name] = known
        self._reducers[known.cls] = object_reducer(known.name, known.shape)

    def reducer_of(self, cls: type) -> Reducer | None:
        """The reducer of a class that is not in `REDUCERS`; found once. None: it has no form."""
        try:
            return self._reducers[cls]
        except KeyError:
            reducer = self._reducers[cls] = _find_reducer(cls)
            return reducer

    def save(self) -> Callable[[], None]:
        """What brings back the present state: for tests."""
        known, trusted, reducers = dict(self.known), self.trusted, dict(self._reducers.items())

        def restore() -> None:
            self.known, self.trusted = known, trusted
            self._reducers = weakref.WeakKeyDictionary(reducers)

        return restore


registry = Registry()
reducer_of = registry.reducer_of


@overload
def register_type(cls: T, *, name: str | None = None, to_data: Callable[[Any], Any] | None = None,
                  from_data: Callable[[Any], Any] | None = None) -> T: ...  # fmt: skip
@overload
def register_type(cls: None = None, *, name: str | None = None, to_data: Callable[[Any], Any] | None = None,
                  from_data: Callable[[Any], Any] | None = None) -> Callable[[T], T]: ...  # fmt: skip
def register_type(
    cls: Any = None, *, name: str | None = None,
    to_data: Callable[[Any], Any] | None = None, from_data: Callable[[Any], Any] | None = None,
) -> Any:  # fmt: skip
    """Let objects of ``cls`` be sent from here and arrive here; also a decorator, with or without arguments.

    ``to_data`` returns a value that can be sent, ``from_data`` makes the object of that value. Without them an object
    goes in the form that its kind of class has: an enum by its name and value, a namedtuple by its items, a dataclass,
    an attrs class and a pydantic model by their fields, a subclass of a builtin by the builtin value, and any other by
    its attributes. Constructors and validators run when the object is made, so what they check is checked.

    ``name`` is what the type is called on the wire, ``module:Qualified.Name`` unless given; it must be the same on both
    sides. A second class of the same name replaces the first, as in a notebook cell that is run again. Types of the
    supported packages (numpy, pandas ...) have a form of their own and are left as they are. Any thread may call it.

    ConfigError: not a class, or one of Python's own with a form of its own.
    """
    if cls is None:
        return lambda target: register_type(target, name=name, to_data=to_data, from_data=from_data)
    if not isinstance(cls, type) or cls in REDUCERS or cls in (bool, NoneType, object, type):
        raise ConfigError(f"register_type takes a class that has no form of its own, not {cls!r}")
    if issubclass(cls, BaseException) and to_data is None and from_data is None:
        if name is not None:
            raise ConfigError(f"an exception goes by its own name: leave out name={name!r} for {cls.__name__}")
        return errors.register_exception(cls)
    if to_data is None and from_data is None and packages.reducer_of(cls) is not None:
        return cls
    shape = _shape_by_kind(cls) or state_shape(cls)
    take = shape.take if to_data is None else lambda value: (to_data(value),)
    registry.add(Known(cls, name or wire_name(cls), Shape(take, from_data or shape.make)))
    return cls


def register_types(module: ModuleType) -> list[type]:
    """Register every class of a module that has a form: enums, namedtuples, dataclasses, attrs classes, pydantic models
    and exceptions; returns them.

    Of a package all classes count that it defines or re-exports from its own modules. ConfigError: not a module.
    """
    if not isinstance(module, ModuleType):
        raise ConfigError(f"register_types takes a module, such as the one that `import shop` gives, not {module!r}")
    found = []
    for cls in dict.fromkeys(value for value in vars(module).values() if isinstance(value, type)):
        is_own = cls.__module__ == module.__name__ or cls.__module__.startswith(module.__name__ + ".")
        if is_own and (issubclass(cls, Exception) or _shape_by_kind(cls) is not None):
            found.append(register_type(cls))
    return found


def trust_types(*names: str) -> None:
    """Let enums, namedtuples, dataclasses, attrs classes, pydantic models and exceptions of packages arrive as
    themselves in this process.

    ``names`` are packages or modules, such as ``"pydantic_ai"`` or ``"shop.orders"``, whose modules may then be imported
    when a value names one of their classes. Trust a package only if making any object of its classes is harmless.
    ConfigError: not the name of a module.
    """
    for name in names:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"trust_types takes names of packages, such as 'pydantic_ai', not {name!r}")
    registry.trusted = tuple(dict.fromkeys((*registry.trusted, *names)))


def registrations() -> list[Any]:
    """What `restore_registrations` needs to know here in another process of the same program; can be pickled."""
    own = [(known.cls, known.name, known.shape) for known in registry.known.values()]
    return [own, list(registry.trusted)]


# ---------------------------------------------------------------- from an object to its box


def object_reducer(name: str, shape: Shape) -> Reducer:
    """The reducer of a class that goes by its name."""
    take = shape.take
    return lambda _, value: [MARK_OBJECT, name, *take(value)]


def _find_reducer(cls: type) -> Reducer | None:
    if hasattr(cls, "__zmqagents_ref__"):  # asked of the class: a proxy would ask its agent
        return reduce_ref
    if issubclass(cls, BaseException):
        return reduce_exception
    reducer = packages.reducer_of(cls)
    if reducer is not None:
        return reducer
    shape = _shape_by_kind(cls)
    return None if shape is None else object_reducer(wire_name(cls), shape)


def _shape_by_kind(cls: Any) -> Shape | None:
    shape = shape_of(cls, packages.model_shape)
    if shape is None:
        base = next((base for base in cls.__mro__ if base in BASES), None)
        shape = None if base is None else subclass_shape(cls, base)
    return shape


# ---------------------------------------------------------------- from a box to the object


def read_object(decoder: Decoding, name: Any, *parts: Any) -> Any:
    """The builder of `MARK_OBJECT`: an object of a class that is known, an `Unknown` or a plain form."""
    if type(name) is ClassPart:
        make, name = name.make, name.name
    else:
        known = find_known(expect(str, name), decoder.scope)
        if known is None:
            if not parts:
                raise RemoteProtocolError("an object without parts")
            return parts[0] if decoder.scope.plain else decoder.met(Unknown(name, parts[0]))
        make = known.shape.make
    try:
        return make(*parts)
    except Exception as exc:
        decoder.refuse_unknown(parts)
        text = errors.safe_text(exc)
        raise RemoteProtocolError(f"cannot make a {name} of its data: {type(exc).__name__}: {text}") from exc


def find_known(name: str, scope: Scope) -> Known | None:
    """The class called ``name`` as the receiver of ``scope`` knows it; None if it does not."""
    known = look_up(registry.known, name)
    if known is None and scope.expected is not None:
        known = look_up(scope.expected.known(), name)
    return known or _find_trusted(name, (*registry.trusted, *scope.trusted))


def _find_trusted(name: str, trusted: Iterable[str]) -> Known | None:
    module_name, _, qualified = name.partition(":")
    if not any(f"{module_name}.".startswith(f"{package}.") for package in trusted):
        return None
    if "__main__" in module_name.split("."):  # a program, which importing would run
        return None
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as exc:
        text = f"{type(exc).__name__}: {errors.safe_text(exc)}"
        raise SerializationError(f"the module of the trusted type {name} cannot be imported: {text}") from exc
    for part in qualified.split("."):
        found = vars(found).get(part)
        if found is None:
            return None
    if not isinstance(found, type) or wire_name(found) != name:
        return None
    shape = _shape_by_kind(found)
    return None if shape is None else Known(found, name, shape)


def is_loaded(name: str) -> bool:
    """Whether a package has been imported in this process."""
    return sys.modules.get(name) is not None
