"""The classes that a host may make agents of, by name.

A class has two names: the full one (``module:Qualified.Name``), which is unique, and the short one, which its users
write. A short name that two classes have finds neither, and the error names both. A class that is sent to a private
host again, changed, takes the place of the one of its full name; agents that were made before keep their class.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterable

from .. import errors
from ..agents.spec import ClassSpec, class_name_of, spec_of


class ClassTable:
    """The agent classes of a host. Thread-safe: read by the router thread, changed by management calls."""

    def __init__(self, classes: Iterable[type] = ()) -> None:
        self._lock = threading.Lock()
        self._by_full: dict[str, type] = {}
        self._by_short: dict[str, list[str]] = {}
        for cls in classes:
            self.add(cls)

    def add(self, cls: type, *, replace: bool = False) -> None:
        """Make ``cls`` known. Another class of the same name is a ConfigError unless ``replace``."""
        if not isinstance(cls, type):
            raise errors.ConfigError(f"an agent class must be a class, not {cls!r}")
        full, short = class_name_of(cls), cls.__name__
        with self._lock:
            known = self._by_full.get(full)
            if known is cls:
                return
            others = [name for name in self._by_short.get(short, []) if name != full]
            if not replace and (known is not None or others):
                raise errors.ConfigError(
                    f"two agent classes are called {short}: {_place_of(known or self._by_full[others[0]])} and "
                    f"{_place_of(cls)}; rename one"
                )
            self._by_full[full] = cls
            names = self._by_short.setdefault(short, [])
            if full not in names:
                names.append(full)

    def find(self, name: str) -> type:
        """The class called ``name``, full or short; UnknownClass lists what there is."""
        with self._lock:
            cls = self._by_full.get(name)
            if cls is not None:
                return cls
            fulls = self._by_short.get(name, [])
            if len(fulls) == 1:
                return self._by_full[fulls[0]]
            if fulls:
                raise errors.UnknownClass(f"{name!r} could be any of {', '.join(fulls)}: say which")
            known = ", ".join(sorted(self._by_short)) or "none"
        raise errors.UnknownClass(f"this host knows no agent class {name!r}; it knows: {known}")

    def spec(self, name: str) -> ClassSpec:
        return spec_of(self.find(name))

    def names(self) -> list[str]:
        """Full names, sorted."""
        with self._lock:
            return sorted(self._by_full)


def _place_of(cls: type) -> str:
    try:
        return f"{class_name_of(cls)} ({inspect.getfile(cls)})"
    except (TypeError, OSError):
        return class_name_of(cls)
