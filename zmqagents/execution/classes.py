"""The classes that a host may make agents of, by name; and the functions (`Factory`), which are known likewise.

A class has two names: the full one (``module:Qualified.Name``), which is unique, and the short one, which its users
write. A short name that two classes have finds neither, and the error names both. A client that has imported the
agents' file itself knows another full name; it tells the file's *origin* (`agents.origin`), by which its class is
found here, and a class of the same name from another file is refused. A class that is sent to a private
host again, changed, takes the place of the one of its full name; agents that were made before keep their class.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable
from typing import Any

from .. import errors
from ..agents.factories.factory import Factory, Maker, as_maker, maker_name
from ..agents.origin import origin_of
from ..agents.spec import ClassSpec, spec_of


class ClassTable:
    """The agent classes of a host. Thread-safe: read by the router thread, changed by management calls.

    ``adapt``: what is hosted for an object that a factory gives.
    """

    def __init__(self, classes: Iterable[Maker] = (), adapt: Callable[[Any], Any] = lambda made: made) -> None:
        self.adapt = adapt
        self._lock = threading.Lock()
        self._by_full: dict[str, Maker] = {}
        self._by_short: dict[str, list[str]] = {}
        for cls in classes:
            self.add(cls)

    def add(self, cls: Maker, *, replace: bool = False) -> None:
        """Make ``cls`` known, or a factory. Another one of the same name is a ConfigError unless ``replace``."""
        cls = as_maker(cls)
        full, short = maker_name(cls), cls.__name__ if isinstance(cls, type) else cls.short
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
            _origin(cls)  # now: the file may be changed later
            names = self._by_short.setdefault(short, [])
            if full not in names:
                names.append(full)

    def find(self, name: str, origin: str | None = None) -> Maker:
        """The class or factory called ``name``, full or short; UnknownClass lists what there is.

        ``origin``: of the client's own class, "" if it has no file. Then a class of another module will do, if it comes
        from the same file, or nobody knows from which.
        """
        with self._lock:
            cls = self._by_full.get(name)
            if cls is not None:
                return cls
            if origin is not None:
                name = name.rpartition(":")[2]
            fulls = self._by_short.get(name.rpartition(".")[2] if origin is not None else name, [])
            if origin:
                fulls = self._from(origin, name, fulls)
            if len(fulls) == 1:
                return self._by_full[fulls[0]]
            if fulls:
                raise errors.UnknownClass(f"{name!r} could be any of {', '.join(fulls)}: say which")
            known = ", ".join(sorted(self._by_short)) or "none"
        raise errors.UnknownClass(f"this host knows no agent class {name!r}; it knows: {known}")

    def _from(self, origin: str, name: str, fulls: list[str]) -> list[str]:
        """Those of ``fulls`` that come from the file ``origin``, or else from none; UnknownClass if all are others."""
        origins = {full: _origin(self._by_full[full]) for full in fulls}
        same = [full for full in fulls if origins[full] == origin and full.rpartition(":")[2] == name]
        possible = same or [full for full in fulls if not origins[full]]
        if fulls and not possible:
            places = ", ".join(_place_of(self._by_full[full]) for full in fulls)
            raise errors.UnknownClass(
                f"the class {name} of this host is another one: {places} is not the {origin.partition(' ')[0]} that "
                f"the client has imported. Load the same file in both, or say create_agent({name!r}) for the host's"
            )
        return possible

    def spec(self, name: str, origin: str | None = None) -> ClassSpec:
        found = self.find(name, origin)
        return found.spec if isinstance(found, Factory) else spec_of(found)

    def names(self) -> list[str]:
        """Full names, sorted."""
        with self._lock:
            return sorted(self._by_full)


def _origin(maker: Maker) -> str:
    return origin_of(maker) if isinstance(maker, type) else ""


def _place_of(maker: Maker) -> str:
    try:
        return f"{maker_name(maker)} ({inspect.getfile(maker.make if isinstance(maker, Factory) else maker)})"
    except (TypeError, OSError):
        return maker_name(maker)
