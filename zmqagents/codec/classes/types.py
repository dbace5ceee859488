"""The classes that this process knows, by their names on the wire (`names`).

An object of a class travels as the class's name and its parts (`shapes`). The sender needs no permission: it sends
enums, namedtuples, dataclasses, attrs classes, pydantic models, subclasses of builtins and registered classes. The
receiver makes an object only of a class that it *knows*, looked up in this order:

1. registered: `register_type`, `register_types`, and the classes that the fields of these are annotated with;
2. expected: named by the annotations of the method that is called (`expected`);
3. of the standard library: enums, namedtuples and struct sequences of modules that this process has imported,
   or of a fixed list;
4. trusted: in a package that `trust_types` names, or the scope of this host or client. Its modules may be imported.

Nothing else is imported by a name from the wire. An object of any other class is `SerializationError` with the
remedy, or, where the receiver asked for it, its plain form.

Registering is thread-safe.
"""

from __future__ import annotations

import contextlib
import enum
import importlib
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from types import ModuleType, NoneType
from typing import Any, NamedTuple, TypeVar, overload

from msgpack import ExtType

from ... import errors
from ...checks import check_packages
from ...errors import ConfigError, SerializationError
from .. import packages
from ..builtin import BASES, REDUCERS, late_reducer, reduce_ref
from ..exceptions import reduce_exception
from ..forms import EXT_PICKLE, MARK_OBJECT, Decoding, Encoding, Known, Reducer, Scope, Withheld, expect
from ..plain import lone_forms
from ..shapes import Changed, Shape, shape_of, state_shape, subclass_shape
from ..standard import is_zone, reduce_zone
from .expected import Annotations, Family
from .names import Names, as_wire_name, member_of, wire_name

__all__ = ["Registration", "expected_by", "find_exception", "find_known", "read_object", "register_type",
           "register_types", "registry", "trust_types"]  # fmt: skip

T = TypeVar("T", bound=type)


class Registration(NamedTuple):
    """What `register_type` was given. It can be pickled if its parts can."""

    cls: type
    name: str
    to_data: Callable[[Any], Any] | None = None
    from_data: Callable[[Any], Any] | None = None


class Registry:
    """The registered and trusted types of this process, and the reducers found for classes."""

    def __init__(self) -> None:
        self.registered: dict[str, Registration] = {}
        self.trusted: tuple[str, ...] = ()
        self._lock = threading.Lock()
        self._names = Names()
        self._family: Family | None = None  # of the registered classes; made anew after each registration
        self._reducers: weakref.WeakKeyDictionary[type, Reducer | None] = weakref.WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"<Registry: {len(self.registered)} types, trusts {', '.join(self.trusted) or 'no package'}>"

    def add(self, registration: Registration) -> None:
        """Make a class known, in the place of one that has its name. Its objects are sent by its name from now on."""
        cls, name, to_data, from_data = registration
        shape = _shape_by_kind(cls) or state_shape(cls)
        take = shape.take if to_data is None else lambda value: (to_data(value),)
        is_default = to_data is None and name == wire_name(cls)
        with self._lock:
            self.registered[name] = registration
            known = Known(cls, name, from_data or shape.make)
            self._names.add(known)
            if name.startswith("."):
                # The program that has started this host may have imported the agent's file, too, and registered the
                # class that it got: to this process it is the one of the agent.
                for other in self._names.alike(name):
                    if _file_of(other.cls) == _file_of(cls):
                        self._names.add(known._replace(name=other.name))
            self._family = None
            self._reducers[cls] = object_reducer(name, take, pickled=is_default)
            lone_forms.pop(cls, None)

    def trust(self, names: Iterable[str]) -> None:
        with self._lock:
            self.trusted = tuple(dict.fromkeys((*self.trusted, *names)))

    def find(self, name: str) -> Known | None:
        """The registered class of this name, or one that a field of a registered class is annotated with."""
        found = self._names.find(name)
        if found is not None:
            return found
        family = self._family
        if family is None:
            with self._lock:
                hints: list[tuple[Any, dict[str, Any]]] = [(each.cls, {}) for each in self.registered.values()]
                family = self._family = Family(hints, known_by_kind)
        return family.find(name)

    def reducer_of(self, cls: type) -> Reducer | None:
        """The reducer of a class that is not in `REDUCERS`; found once. None: it has no form."""
        try:
            return self._reducers[cls]
        except KeyError:
            reducer = self._reducers[cls] = _find_reducer(cls)
            return reducer

    def save(self) -> Callable[[], None]:
        """A function that brings back the present state, for tests."""
        registered, trusted, known = dict(self.registered), self.trusted, list(self._names.exact.values())
        reducers, exceptions = dict(self._reducers.items()), dict(errors.known_types)

        def restore() -> None:
            self.registered, self.trusted, self._family = registered, trusted, None
            self._names = Names(known)
            self._reducers = weakref.WeakKeyDictionary(reducers)
            errors.known_types.clear()
            errors.known_types.update(exceptions)

        return restore


def _file_of(cls: type) -> str:
    return os.path.realpath(getattr(sys.modules.get(cls.__module__), "__file__", None) or "")


registry = Registry()


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
    if not isinstance(cls, type) or _is_pythons(cls) or cls in (bool, NoneType, object, type):
        raise ConfigError(f"register_type takes a class that has no form of its own, not {cls!r}")
    if issubclass(cls, BaseException) and to_data is None and from_data is None:
        if name is not None:
            raise ConfigError(f"an exception goes by its own name: leave out name={name!r} for {cls.__name__}")
        return errors.register_exception(cls)
    if to_data is None and from_data is None and packages.reducer_of(cls) is not None:
        return cls
    registry.add(Registration(cls, name or wire_name(cls), to_data, from_data))
    return cls


def register_types(module: ModuleType) -> list[type]:
    """Register every class of a module that has a form; returns them.

    Enums, namedtuples, dataclasses, attrs classes, pydantic models, subclasses of builtins and exceptions have one.

    Of a package all classes count that it defines or re-exports from its own modules. ConfigError: not a module.
    """
    if not isinstance(module, ModuleType):
        raise ConfigError(f"register_types takes a module, such as the one that `import shop` gives, not {module!r}")
    found = []
    for cls in dict.fromkeys(value for value in vars(module).values() if isinstance(value, type)):
        is_own = f"{cls.__module__}.".startswith(f"{module.__name__}.")
        if is_own and (issubclass(cls, Exception) or _shape_by_kind(cls) is not None):
            found.append(register_type(cls))
    return found


def trust_types(*names: str) -> None:
    """Let enums, namedtuples, dataclasses, attrs classes, pydantic models, subclasses of builtins and exceptions of
    packages arrive as themselves in this process.

    ``names`` are packages or modules, such as ``"pydantic_ai"`` or ``"shop.orders"``, whose modules may then be
    imported when a value names one of their classes. Trust a package only if making any object of its classes is
    harmless.
    ConfigError: not the name of a module.
    """
    registry.trust(check_packages(names))


# ---------------------------------------------------------------- from an object to its box


def object_reducer(name: str, take: Callable[[Any], tuple[Any, ...]], *, pickled: bool) -> Reducer:
    """The reducer of a class that goes by its name; ``pickled``: where the receiver takes pickles, by one of these."""

    def reduce(encoder: Encoding, value: Any) -> Any:
        if pickled and encoder.pickler is not None:
            try:
                return ExtType(EXT_PICKLE, encoder.pickler(value))
            except Exception:  # it may still have a form
                return [MARK_OBJECT, name, *take(value)]
        return [MARK_OBJECT, name, *take(value)]

    return reduce


def _find_reducer(cls: type) -> Reducer | None:
    if hasattr(cls, "__zmqagents_ref__"):  # asked of the class: a proxy would ask its agent
        return reduce_ref
    if hasattr(cls, "__zmqagents_withheld__"):  # the reason, in words
        return _withhold
    if issubclass(cls, BaseException):
        return reduce_exception
    if is_zone(cls):
        return reduce_zone
    reducer = late_reducer(cls) or packages.reducer_of(cls)
    if reducer is not None:
        return reducer
    shape = _shape_by_kind(cls)
    return None if shape is None else object_reducer(wire_name(cls), shape.take, pickled=True)


def _is_pythons(cls: type) -> bool:
    """Whether it is a class of Python's own with a form of its own."""
    return cls in REDUCERS or late_reducer(cls) is not None or is_zone(cls)


def _withhold(_: Any, value: Any) -> Any:
    raise Withheld(value.__zmqagents_withheld__)


def _shape_by_kind(cls: Any) -> Shape | None:
    shape = shape_of(cls, packages.model_shape)
    if shape is None:
        base = next((base for base in cls.__mro__ if base in BASES), None)
        shape = None if base is None or base is cls else subclass_shape(cls, base)
    return shape


def known_by_kind(cls: type) -> Known | None:
    """How objects of ``cls`` are made, if its kind of class has a form."""
    if _is_pythons(cls) or issubclass(cls, BaseException) or packages.reducer_of(cls) is not None:
        return None
    registered = registry.registered.get(wire_name(cls))
    if registered is not None and registered.cls is cls and registered.from_data is not None:
        return Known(cls, registered.name, registered.from_data)
    shape = _shape_by_kind(cls)
    return None if shape is None else Known(cls, wire_name(cls), shape.make)


def expected_by(*methods: Callable[..., Any], of_result: bool = False, skip: int = 1) -> Annotations:
    """The classes that the annotations of a method name, for a `Scope`; ``skip``: its parameters like ``self``.

    The annotations of further ``methods``, which the first may call in its place, name classes, too.
    """
    return Annotations(*methods, making=known_by_kind, of_result=of_result, skip=skip)


# ---------------------------------------------------------------- from a box to the object


def read_object(decoder: Decoding, name: Any, plain: Any, *more: Any) -> Any:
    """The builder of `MARK_OBJECT`: an object of a class that is known, or what stands for one that is not."""
    known = find_known(expect(str, name), decoder.scope)
    if known is None:
        return decoder.unknown(name, plain)
    decoder.require_known((plain, *more))
    try:
        return known.make(plain, *more)
    except Changed as exc:
        raise SerializationError(f"a {name} would not arrive as it was sent: {exc}", "", name) from exc
    except Exception as exc:
        text = f"cannot make a {name} of its data: {type(exc).__name__}: {errors.safe_text(exc)}"
        raise SerializationError(text, "", name) from exc


def find_known(name: str, scope: Scope) -> Known | None:
    """The class called ``name`` as the receiver of ``scope`` knows it; None if it does not."""
    known = registry.find(name)
    if known is None and scope.expected is not None:
        known = scope.expected.find(name)
    if known is None:
        cls = _find_standard(name) or _find_trusted(name, scope)
        known = None if cls is None else known_by_kind(cls)
    return known


def find_exception(name: str, scope: Scope) -> type[BaseException] | None:
    """The exception class called ``name``, if it is registered or trusted, and its module can be imported."""
    found: type[BaseException] | None = errors.known_types.get(name)
    if found is None:
        known = Names(Known(cls, as_wire_name(each), cls) for each, cls in errors.known_types.items())
        alike = known.find(as_wire_name(name))
        with contextlib.suppress(SerializationError):  # then a base of it is found
            found = alike.cls if alike is not None else _find_trusted(name, scope)
    return found if found is not None and issubclass(found, Exception) else None


# Those whose enums and tuples people send, and which do nothing when they are imported.
_STANDARD_MODULES = frozenset({"http", "os", "re", "signal", "socket", "ssl", "time", "urllib.parse", "uuid"})


def _find_standard(name: str) -> type | None:
    """An enum, a namedtuple or a struct sequence of a module of the standard library that is loaded, or on the list.

    `http.HTTPStatus` is one, `time.struct_time` another.
    """
    module_name, _, qualified = name.partition(":")
    if module_name.partition(".")[0] not in sys.stdlib_module_names or module_name == "__main__":
        return None
    is_listed = module_name in _STANDARD_MODULES
    module = importlib.import_module(module_name) if is_listed else sys.modules.get(module_name)
    if module is None:
        return None
    found = member_of(module, qualified)
    is_tuple = hasattr(found, "_make") or hasattr(found, "n_sequence_fields")
    return found if found is not None and (is_tuple or issubclass(found, enum.Enum)) else None


def _find_trusted(name: str, scope: Scope) -> type | None:
    module_name, _, qualified = name.partition(":")
    if not any(f"{module_name}.".startswith(f"{package}.") for package in (*registry.trusted, *scope.trusted)):
        return None
    if "__main__" in module_name.split("."):  # a program, which importing would run
        return None
    if not scope.imports and module_name not in sys.modules:
        return None
    try:
        module = importlib.import_module(module_name)
    except Exception as exc:
        text = f"{type(exc).__name__}: {errors.safe_text(exc)}"
        raise SerializationError(f"the module of the trusted type {name} cannot be imported: {text}") from exc
    return member_of(module, qualified) or _parametrized(module, qualified)


def _parametrized(module: ModuleType, qualified: str) -> type | None:
    """The class ``Box[int]`` that this process has made of the generic model ``Box``; None if not, or of two such."""
    generic = member_of(module, qualified.partition("[")[0]) if qualified.endswith("]") else None
    made: list[type] = [] if generic is None else type.__subclasses__(generic)
    found = [cls for cls in made if (cls.__module__, cls.__qualname__) == (module.__name__, qualified)]
    return found[0] if len(found) == 1 else None
