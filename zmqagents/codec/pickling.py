"""Pickles between a program and the hosts that it has started itself, and nowhere else.

A pickle is a program, so it is read only where the writer is known to be the reader's own parent or child: the
launch payload, and the values of a private host, whose socket only its parent's user can reach. Both run the same
interpreter with the same packages, so a class or a function travels in one of two ways:

* *By reference*, if its module can be imported there: the import system finds this very file under this name.
  What only the writer knows of the way there goes along: entries that were added to ``sys.path`` since the start, and
  packages that are nothing but a list of directories (those of `agents.loader`).
* *By value*, if no other process could import it: ``__main__``, notebooks, local classes, lambdas, and modules
  that were made by hand or loaded past ``sys.path``. This needs ``cloudpickle``.
"""

from __future__ import annotations

import importlib.util
import io
import os
import pickle
import sys
import threading
import weakref
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from ..errors import MissingExtra

__all__ = ["dumps", "loads", "make_package"]


def dumps(value: Any) -> bytes:
    """``value`` as bytes for `loads`. Any thread may call it; a lock lets one in at a time.

    MissingExtra when something in it has to go by value and cloudpickle is not installed; whatever pickling
    raises (TypeError, PicklingError ...) when it cannot travel at all.
    """
    out = io.BytesIO()
    with _lock:
        scout = _Scout()
        try:
            _make_pickler(out, scout).dump([_named(item) for item in value] if type(value) is list else _named(value))
        finally:
            scout.done()
    data = out.getvalue()
    if not scout.entries and not scout.packages:
        return data
    return pickle.dumps(_Directed(list(scout.entries), scout.packages, data))


def loads(data: bytes) -> Any:
    """The value that `dumps` pickled. Only for bytes that this program's own parent or child has written."""
    return pickle.loads(data)


class _Directed:
    """A pickle with the way to its modules. Unpickling it sets up the way and gives the value itself."""

    def __init__(self, entries: list[str], packages: dict[str, list[str]], data: bytes) -> None:
        self._arguments = (entries, packages, data)

    def __reduce__(self) -> tuple[Any, ...]:
        return _follow, self._arguments


def _follow(entries: list[str], packages: dict[str, list[str]], data: bytes) -> Any:
    sys.path += [
        entry for entry in entries if entry not in sys.path
    ]  # at the end, so that they hide no module of this process
    for name, places in packages.items():
        make_package(name, places)
    return loads(data)


def make_package(name: str, places: list[str]) -> None:
    """Put a package without a file of its own into ``sys.modules``, whose modules lie in ``places``."""
    if name not in sys.modules:
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = places
        sys.modules.setdefault(name, importlib.util.module_from_spec(spec))  # setdefault: two threads may load


class _Named:
    """A class with its qualified name, which cloudpickle drops. Unpickling gives the class itself."""

    def __init__(self, cls: type) -> None:
        self._cls = cls

    def __reduce__(self) -> tuple[Any, ...]:
        return _name, (self._cls, self._cls.__qualname__)


def _named(value: Any) -> Any:
    return _Named(value) if isinstance(value, type) else value


def _name(cls: type, qualified: str) -> type:
    if cls.__qualname__ != qualified:
        cls.__qualname__ = qualified
    return cls


# ---------------------------------------------------------------- how a module is found

_path_at_start = frozenset(sys.path)  # what parent and child have in common
_lock = threading.RLock()  # a __reduce__ that is being pickled may itself pickle


def _renew_lock() -> None:
    """In a forked child: a thread that is not here may hold it."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)

_ways: weakref.WeakKeyDictionary[ModuleType, _Way | None] = weakref.WeakKeyDictionary()


class _Way(NamedTuple):
    """How another process imports a module: with these entries on its path, and these packages made first."""

    entries: tuple[str, ...] = ()
    packages: tuple[tuple[str, tuple[str, ...]], ...] = ()


def _way_to(module: Any) -> _Way | None:
    """None: another process cannot import it."""
    if not isinstance(
        module, ModuleType
    ):  # sys.modules may hold anything; importing its name makes it in the other process, too
        return _Way()
    if module not in _ways:
        _ways[module] = _search(module)
    return _ways[module]


def _search(module: ModuleType) -> _Way | None:
    name = module.__name__
    if name == "__main__" or sys.modules.get(name) is not module:
        return None
    parent_name = name.rpartition(".")[0]
    parent = sys.modules.get(parent_name)
    above = _way_to(parent) if parent is not None else _Way()
    if above is None:
        return None
    found = _find(name, getattr(parent, "__path__", None))
    file = getattr(module, "__file__", None)
    if found is not None:
        if _same(found.origin, getattr(module.__spec__, "origin", None)):
            return above if parent_name else _Way(_entries_for(found))
        return None  # another file has this name
    places = getattr(module, "__path__", None)
    if file is None and places is not None:
        return above._replace(packages=(*above.packages, (name, tuple(places))))
    # Some packages make modules of theirs by hand: they are there once the package is imported.
    return above if parent_name and file is None else None


def _find(name: str, path: Any) -> ModuleSpec | None:
    for finder in sys.meta_path:
        try:
            found = finder.find_spec(name, path)
        except (AttributeError, ImportError, ValueError):  # an old finder, or one that does not want this name
            continue
        if found is not None:
            return found
    return None


def _same(one: str | None, other: str | None) -> bool:
    return one == other or (one is not None and other is not None and os.path.realpath(one) == os.path.realpath(other))


def _entries_for(found: ModuleSpec) -> tuple[str, ...]:
    """The new entries of ``sys.path`` below which a top-level module lies."""
    new = [entry for entry in sys.path if entry not in _path_at_start]
    if not new:
        return ()
    files = [found.origin] if found.has_location and found.origin else list(found.submodule_search_locations or ())
    near = {os.path.dirname(os.path.abspath(file)) for file in files}
    near |= {os.path.dirname(place) for place in near}  # a package's __init__.py lies one further down
    return tuple(absolute for entry in new if (absolute := os.path.abspath(entry)) in near)


# ---------------------------------------------------------------- the picklers


class _Scout:
    """Looks at every module that a pickle refers to: notes the way to it, or has its parts go by value."""

    def __init__(self) -> None:
        self.entries: dict[str, None] = {}
        self.packages: dict[str, list[str]] = {}
        self._seen: set[str] = set()
        self._by_value: list[ModuleType] = []

    def can_refer_to(self, value: Any) -> bool:
        """False if ``value`` is a class, function or module that another process cannot import."""
        if isinstance(value, ModuleType):
            module: ModuleType | None = value
        elif isinstance(value, (type, FunctionType)):
            module = sys.modules.get(value.__module__ or "")
        else:
            return True
        if module is None:
            return False
        way = _way_to(module)
        if way is None:
            return False
        if module.__name__ not in self._seen:
            self._seen.add(module.__name__)
            self.entries.update(dict.fromkeys(way.entries))
            self.packages.update((name, list(places)) for name, places in way.packages)
        return True

    def send_by_value(self, module_name: str | None, cloudpickle: Any) -> None:
        """Have cloudpickle take the module's classes and functions by value, until `done`."""
        module = sys.modules.get(module_name or "")
        if module is None or module_name == "__main__" or module_name != module.__name__:
            return  # cloudpickle finds out by itself that no other process can import it
        if module_name not in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.register_pickle_by_value(module)
            self._by_value.append(module)

    def done(self) -> None:
        """Leave cloudpickle's own table as it was."""
        if self._by_value:
            import cloudpickle

            for module in self._by_value:
                cloudpickle.unregister_pickle_by_value(module)


def _make_pickler(out: io.BytesIO, scout: _Scout) -> pickle.Pickler:
    try:
        import cloudpickle
    except ImportError:
        return _ByReference(out, scout)

    class ByValueToo(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, value: Any) -> Any:
            if not scout.can_refer_to(value):
                name = value.__name__ if isinstance(value, ModuleType) else value.__module__
                scout.send_by_value(name, cloudpickle)
            return _with_slots(value, super().reducer_override(value))

    pickler: pickle.Pickler = ByValueToo(out)
    return pickler


def _with_slots(value: Any, reduced: Any) -> Any:
    """What cloudpickle says of a class, with the slots that it forgets: objects of a class without them have another
    state, which a process that has the class itself cannot read.
    """
    if isinstance(value, type) and isinstance(reduced, tuple) and "__slots__" in vars(value):
        if NamedTuple in vars(value).get("__orig_bases__", ()):
            return reduced  # it makes its slots by itself, and takes none
        members = reduced[1][3] if len(reduced[1]) > 3 else None  # of the class as it is first made
        if isinstance(members, dict):
            members.setdefault("__slots__", value.__slots__)  # type: ignore[attr-defined]
    return reduced


class _ByReference(pickle.Pickler):
    """The pickler without cloudpickle: everything goes by reference."""

    def __init__(self, out: io.BytesIO, scout: _Scout) -> None:
        super().__init__(out)
        self._scout = scout

    def reducer_override(self, value: Any) -> Any:
        is_named = isinstance(value, (type, FunctionType))
        if is_named and ("<" in value.__qualname__ or not self._scout.can_refer_to(value)):
            raise MissingExtra(
                f"{value.__module__}.{value.__qualname__} cannot be imported by another process; what is defined in "
                f"__main__, a notebook or a function needs cloudpickle to travel: pip install cloudpickle"
            )
        return NotImplemented
