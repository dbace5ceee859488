"""Agent classes from files: what ``--agent-dir`` and the launcher's ``agent_dir`` read.

Which classes: the agent classes (`spec.is_agent_class`) *defined in* a file, in the order of their
definition. Not those that it imports, so that a base or a helper is not offered by accident, and not
those whose name starts with an underscore, so that a file can keep a base of its own to itself.

Which files: every ``*.py`` of a directory and of its sub-directories, sorted by path; not hidden
ones, not ``__pycache__``, not ``__main__.py`` (a program, not a module).

Under which name: each file is imported once per process, by the ordinary import system, as

    zmqagents_agents.<directory>_<digest>.<file>

where ``<digest>`` is of the directory's real path. The name follows from the file alone, so the same
file gives the same class objects however it is reached, it stands in ``sys.modules`` (pickle by
reference works), and no file can shadow a package of its name: ``json.py`` is a fine agent file.

What a file may import: anything installed, and its neighbours by a *relative* import
(``from .helper import X``); ``sys.path`` is left alone. Python's rules for packages hold: a
sub-directory with an ``__init__.py`` belongs to the package around it, so ``from .sub import X`` and
``from ..other import X`` work; one without is a package of its own.

A file that cannot be imported does not hide the others; `load_agents_from_dir` says how such a file is reported.
"""

from __future__ import annotations

import binascii
import importlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ..codec.pickling import make_package
from ..errors import LoadError, did_you_mean, safe_text
from .factories.factory import member
from .spec import is_agent_class

__all__ = ["PACKAGE", "load_agents_from_dir", "load_class", "load_custom_class_from_file", "load_named"]

PACKAGE = "zmqagents_agents"  # parent of every module that is loaded here

_log = logging.getLogger(__name__)


def load_custom_class_from_file(path: str | os.PathLike[str]) -> list[type]:
    """The agent classes defined in one ``.py`` file; empty when it defines none.

    The file runs in the calling thread, the first time only. Raises `LoadError` with one line,
    ``<file>:<line>: <error>``, and the original error as its cause, whatever the file raised:
    ``SystemExit`` too, only ``KeyboardInterrupt`` passes. A file that failed is tried anew next time.
    """
    file = Path(path)
    if not file.is_file():
        wrong = "is not a file" if file.exists() else "does not exist"
        raise LoadError(f"agent file '{file}' {wrong}; check the path", path=str(file))
    _forget_listings()
    module = _import(file)
    return [cls for cls in _classes_of(module) if is_agent_class(cls)]


def _forget_listings() -> None:
    """Have Python list the directories of its path anew: a file may be newer than the listing that it remembers.

    `importlib.invalidate_caches` does this and loads `importlib.metadata` for it (from Python 3.12 on, 8 ms).
    """
    for finder in sys.path_importer_cache.values():
        if finder is not None and hasattr(finder, "invalidate_caches"):
            finder.invalidate_caches()


def _classes_of(module: ModuleType) -> list[type]:
    """The public classes that a module defines itself, an alias once."""
    own = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__]
    return [cls for cls in dict.fromkeys(own) if not cls.__name__.startswith("_")]


def load_named(text: str) -> object:
    """What ``module:name`` stands for: a class, agent class or not, a function, any object. The module is imported as
    any other.

    Raises `LoadError`, one line that says what there is instead.
    """
    name, _, qualified = text.partition(":")
    if not all(part.isidentifier() for part in (*name.split("."), *qualified.split("."))):
        raise LoadError(f"{text!r} is not of the form module:Class, as in shop:Inventory")
    try:
        module = importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # a module may call sys.exit(), or raise what is no Exception
        raise LoadError(_why_no_module(name, exc)) from exc
    found: object = member(module, qualified)
    if found is None:
        names = [cls.__name__ for cls in _classes_of(module)]
        has = f"it has {', '.join(names)}" if names else "it has none"
        near = did_you_mean(qualified, (public for public in vars(module) if public[0] != "_"))
        raise LoadError(f"{getattr(module, '__file__', name)} has no class {qualified!r}: {has}{near}")
    return found


def load_class(text: str) -> type:
    """The class that ``module:Class`` names. Raises `LoadError` as `load_named` does."""
    found = load_named(text)
    if not isinstance(found, type):
        raise LoadError(f"{text} is no class, but of the type {type(found).__name__}")
    return found


def _why_no_module(name: str, exc: BaseException) -> str:
    if not isinstance(exc, ModuleNotFoundError) or not f"{name}.".startswith(f"{exc.name}."):
        return _explain(Path(name), Path(getattr(exc, "filename", None) or name), exc)
    beside = [path.stem for place in sys.path for path in Path(place or ".").glob("*.py")][:10_000]
    near = did_you_mean(name, beside)
    return (
        f"there is no module {exc.name!r} in {os.getcwd()}, nor is one installed{near}; --app-dir DIR looks elsewhere"
    )


def load_agents_from_dir(
    directory: str | os.PathLike[str], *, strict: bool = False, failures: list[LoadError] | None = None
) -> list[type]:
    """The agent classes defined in the files of ``directory`` and of its sub-directories.

    A file that cannot be loaded is left out and reported exactly once: its `LoadError` is appended to
    ``failures`` when that is given, else logged as one warning line.

    Raises `LoadError`, one line, if the directory is not there, if two classes have one name, if
    files failed and no class at all was found, and with ``strict`` if any file failed.
    """
    root = Path(directory)
    if not root.is_dir():
        wrong = "is not a directory; name the directory that holds it" if root.exists() else "does not exist"
        raise LoadError(f"agent directory '{root}' {wrong}; check the path", path=str(root))
    classes: list[type] = []
    failed: list[LoadError] = []
    origin: dict[str, tuple[type, Path]] = {}
    for file in _agent_files(root):
        try:
            loaded = load_custom_class_from_file(file)
        except LoadError as exc:
            failed.append(exc)
            continue
        for cls in loaded:
            known, where = origin.setdefault(cls.__name__, (cls, file))
            if known is not cls:
                places = f"in {where} and in {file}" if where != file else f"twice in {file}"
                raise LoadError(f"agent class {cls.__name__} is defined {places}; rename one of them", path=str(file))
            if cls not in classes:  # a link beside its file gives the same class again
                classes.append(cls)
    if failed and (strict or not classes):
        raise _sum_up(root, failed) from failed[0].__cause__
    _report(failed, failures)
    if not classes:
        _log.warning("agent directory '%s' defines no agent class%s", root, _undecorated(root))
    return classes


def _undecorated(root: Path) -> str:
    """What to do about the classes of the files that are no agent classes, "" if there are none."""
    modules = [_import(file) for file in _agent_files(root)]
    names = [cls.__name__ for module in modules for cls in _classes_of(module) if not issubclass(cls, BaseException)]
    if not names:
        return ""
    which = f"{', '.join(names)} in it {'is' if len(names) == 1 else 'are'} not marked as one"
    return f": {which}; put @agent on it, or name it at the start: as_server start MODULE:{names[0]}"


# ---------------------------------------------------------------- files


def _agent_files(root: Path) -> Iterator[Path]:
    """The files to load, sorted by path; a linked directory is followed, but none is visited twice."""
    seen: set[str] = set()
    found: list[Path] = []
    for place, directories, files in os.walk(root, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link to a directory that was visited before
            directories.clear()
            continue
        seen.add(real)
        directories[:] = sorted(name for name in directories if name[0] != "." and name != "__pycache__")
        found += [Path(place, name) for name in files if name[0] != "." and name.endswith(".py")]
    return iter(sorted(file for file in found if file.name != "__main__.py"))


# ---------------------------------------------------------------- importing one file


def _import(file: Path) -> ModuleType:
    """The module of ``file``, imported now unless it was before. Raises `LoadError` only."""
    real = Path(os.path.realpath(file))
    try:
        name = _module_name(real)
        module = importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except LoadError as exc:  # from _module_name, or a file that itself loads files
        raise LoadError(f"{file}: {exc}", path=str(file)) from exc
    except BaseException as exc:  # a file may call sys.exit(), or raise what is no Exception
        raise LoadError(_explain(file, real, exc), path=str(file)) from exc
    taken = getattr(module, "__file__", None)
    if taken is None or os.path.realpath(taken) != str(real):
        raise LoadError(f"{file}: Python prefers {taken} for this name; rename one of them", path=str(file))
    return module


def _module_name(real: Path) -> str:
    """The import name of a file, by its real path; makes the packages that stand above it."""
    if real.suffix != ".py" or "." in real.stem:
        raise LoadError(f"'{real.name}' cannot be imported; call it <name>.py, without a further dot")
    parts = [] if real.name == "__init__.py" else [real.stem]
    directory = real.parent
    while (directory / "__init__.py").is_file() and directory != directory.parent:
        parts.insert(0, directory.name)
        directory = directory.parent
    digest = binascii.crc32(os.fsencode(directory))  # hashlib would load OpenSSL
    package = f"{PACKAGE}.{re.sub(r'[^0-9A-Za-z_]', '_', directory.name)}_{digest:08x}"
    make_package(PACKAGE, [])
    make_package(package, [str(directory)])
    return ".".join([package, *parts])


# ---------------------------------------------------------------- reporting failures


def _explain(file: Path, real: Path, exc: BaseException) -> str:
    """One line: ``<file>:<line>: <type>: <message>``, and the remedy where there is a known one."""
    if isinstance(exc, SyntaxError) and exc.filename == str(real):
        line, message = exc.lineno, exc.msg
    else:
        # The innermost line of this very file: for an error in an imported module, the import.
        frames = traceback.walk_tb(exc.__traceback__)
        lines = [number for frame, number in frames if frame.f_code.co_filename == str(real)]
        line, message = lines[-1] if lines else None, safe_text(exc)
    place = f"{file}:{line}" if line else str(file)
    text = " ".join(f"{type(exc).__name__}: {message}".split())
    return f"{place}: {text.removesuffix(':')}{_remedy(real, exc)}"


def _remedy(real: Path, exc: BaseException) -> str:
    if isinstance(exc, SystemExit):
        return ' (the file called sys.exit(); put what it runs under: if __name__ == "__main__")'
    if isinstance(exc, ModuleNotFoundError) and exc.name and not exc.name.startswith(PACKAGE):
        first = exc.name.partition(".")[0]
        if (real.parent / f"{first}.py").exists() or (real.parent / first).is_dir():
            return f" (it lies beside the file: write 'from . import {first}', or start with --app-dir {real.parent})"
        return f" (is it installed for {sys.executable}?)"
    return ""


def _sum_up(root: Path, failed: list[LoadError]) -> LoadError:
    count = "a file" if len(failed) == 1 else f"{len(failed)} files"
    lines = "; ".join(str(exc) for exc in failed)
    return LoadError(f"agent directory '{root}': {count} cannot be loaded; correct or remove: {lines}", path=str(root))


def _report(failed: list[LoadError], failures: list[LoadError] | None) -> None:
    if failures is not None:
        failures.extend(failed)
        return
    for exc in failed:
        _log.warning("agent file left out: %s", exc)
        _log.debug("the traceback of that agent file:", exc_info=exc.__cause__)
