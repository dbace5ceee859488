"""Values of packages, each in its own package's format; one module here for each package, the door to it.

The sender asks a door only for classes of its package, so the package is loaded by then. The receiver imports the
packages of `IMPORTED` when their first value comes in, and no others: pydantic and attrs classes are known by name like
all classes (`types`), and torch must be loaded already, or named as trusted.

May import forms, shapes, arrays and errors.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from ...errors import RemoteProtocolError, SerializationError
from ..forms import Decoding, Reducer, expect
from ..shapes import Shape

__all__ = ["DOORS", "builders_of", "model_shape", "read_package", "reducer_of"]

# The door of each package, by the name of the package; what it may read is below ``name.`` on the wire.
DOORS = {
    "numpy": "..arrays", "ml_dtypes": "..arrays", "pandas": ".pandas_door", "polars": ".polars_door",
    "pyarrow": ".pyarrow_door", "PIL": ".pillow_door", "torch": ".torch_door", "pydantic": ".pydantic_door",
    "pydantic_core": ".pydantic_door",
}  # fmt: skip
IMPORTED = frozenset({"numpy", "ml_dtypes", "pandas", "polars", "pyarrow", "PIL"})


def _door(package: str) -> Any:
    return importlib.import_module(DOORS[package], __name__)


def reducer_of(cls: type) -> Reducer | None:
    """The reducer of a class of one of the packages, None for any other."""
    for base in cls.__mro__:
        package = base.__module__.partition(".")[0]
        if package in DOORS and package in sys.modules:
            reducer: Reducer | None = _door(package).reducer_of(cls)
            if reducer is not None:
                return reducer
    return None


def model_shape(cls: type) -> Shape | None:
    """The shape of a pydantic model, None for any other class."""
    pydantic = sys.modules.get("pydantic")
    if pydantic is None or not hasattr(cls, "__pydantic_validator__"):
        return None
    shape: Shape | None = _door("pydantic").model_shape(cls)
    return shape


def builders_of(package: str) -> dict[str, Callable[..., Any]]:
    """What makes the values of a package, by their names on the wire. ImportError: it is not installed."""
    builders: dict[str, Callable[..., Any]] = _door(package).BUILDERS
    return builders


def read_package(decoder: Decoding, name: Any, *parts: Any) -> Any:
    """The builder of `MARK_PACKAGE`: ``name`` is the package and the kind of value, as ``pandas.Series``."""
    package = expect(str, name).partition(".")[0]
    if package not in DOORS:
        raise RemoteProtocolError("a value of a package that is not known here")
    if package not in IMPORTED and package not in sys.modules and not decoder.trusts(package):
        raise SerializationError(
            f"the value is a {name}, and {package} is not loaded here: import it, or name it with --types {package}"
        )
    try:
        build = builders_of(package).get(name)
    except ImportError as exc:
        raise SerializationError(f"the value is a {name}, and {package} is not installed here") from exc
    if build is None:
        raise RemoteProtocolError(f"a kind of value of {package} that is not known here")
    return build(decoder, *parts)
