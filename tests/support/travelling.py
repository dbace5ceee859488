"""Send a value by every way that a value can take, without sockets: argument, result, item of a stream, exception."""

from __future__ import annotations

import collections
import enum
import math
import sys
import types as types_module
from collections.abc import Callable
from typing import Any

import numpy as np

from registrations import forgotten
from zmqagents import codec, errors
from zmqagents.codec.forms import Scope

Check = Callable[[Any, Any], None]
KNOWN_BY = ["trusted", "expected", "registered"]  # how a receiver comes to know a class


def found_by(value: Any) -> Any:
    """``value`` as something that is equal only for what cannot be told apart: types, order, NaN and all."""
    kind = type(value)
    if isinstance(value, (list, tuple, collections.deque)):
        more = value.__reduce__()[1:] if hasattr(value, "n_sequence_fields") else ()
        return (kind, *map(found_by, value), getattr(value, "maxlen", 0), repr(more), *_attributes(value))
    if isinstance(value, dict):
        return (kind, *((found_by(key), found_by(item)) for key, item in value.items()), *_attributes(value))
    if isinstance(value, (set, frozenset)):
        return (kind, frozenset(map(found_by, value)), *_attributes(value))
    if isinstance(value, enum.Enum):
        return (kind, value.name, repr(value.value))
    if isinstance(value, (np.ndarray, np.generic)):
        return (kind, value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, (BaseException, types_module.SimpleNamespace)):
        return (kind, found_by(getattr(value, "args", ())), *_attributes(value))
    if isinstance(value, float) and math.isnan(value):
        return (kind, "NaN", *_attributes(value))
    if isinstance(value, slice):
        return (kind, found_by(value.start), found_by(value.stop), found_by(value.step))
    if hasattr(value, "__slots__") and hasattr(value, "__dataclass_fields__") and not hasattr(value, "__dict__"):
        return (kind, *(found_by(getattr(value, name)) for name in value.__slots__))
    if hasattr(value, "__dict__") and kind.__module__.startswith("test_"):
        base = repr(value) if isinstance(value, (int, float, str, bytes)) else ""
        return (kind, base, *_attributes(value))
    return (kind, repr(value))


def _attributes(value: Any) -> list[Any]:
    held = dict(getattr(value, "__dict__", {}))
    for name in getattr(value, "__dataclass_fields__", ()):
        held[name] = getattr(value, name)  # it may be the default, which the class holds
    return [(name, found_by(item)) for name, item in sorted(held.items())]


def check_same(got: Any, sent: Any) -> None:
    assert found_by(got) == found_by(sent), f"{got!r:.400} is not {sent!r:.400}"


def scope_for(cls: type, known: str) -> Scope:
    """A receiver that knows ``cls`` and what its fields name, by one of `KNOWN_BY`; `every_way` registers it."""
    if known == "expected" and cls.__module__.startswith("test_"):

        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError

        method.__annotations__ = {"args": cls, "kwargs": cls, "return": cls}
        return Scope(expected=codec.expected_by(method), trusted=(cls.__module__,))
    package = cls.__module__.partition(".")[0]
    return Scope() if package in sys.stdlib_module_names else Scope(trusted=(package,))


def every_way(value: Any, check: Check = check_same, *, known: str = "trusted", may_refuse: bool = False) -> None:
    """Check that ``value`` arrives by every way. ``may_refuse``: or is refused by every way, with a reason."""
    scope = scope_for(type(value), known)
    with forgotten():
        if known == "registered" and type(value).__module__.startswith("test_"):
            codec.register_type(type(value))
        try:
            _send(value, check, scope)
        except errors.SerializationError:
            if not may_refuse:
                raise


def _send(value: Any, check: Check, scope: Scope) -> None:
    result = codec.encode(value)  # the result of a call, and each item of a stream
    check(codec.decode(result.payload, received(result), scope=scope), value)
    inner = codec.encode({"k": [(value,)]})
    check(codec.decode(inner.payload, received(inner), scope=scope)["k"][0][0], value)
    call = codec.encode_call((value,), {"keyword": value})
    args, kwargs = codec.decode_call(call.payload, received(call), scope=scope)
    check(args[0], value)
    check(kwargs["keyword"], value)
    if len(call.payload) + sum(map(len, call.buffers)) < 30_000:  # more of an exception stays behind
        error = codec.unpack(codec.encode_error(LookupError("why", value)), max_bytes=1 << 20)
        rebuilt = codec.decode_error(error, from_agent=False, scope=scope)
        assert type(rebuilt) is LookupError
        assert rebuilt.args[0] == "why"
        check(rebuilt.args[1], value)


def received(encoded: codec.Encoded) -> list[memoryview]:
    """The buffers as ZeroMQ gives them to a receiver: they may be written to."""
    return [memoryview(bytearray(buffer)) for buffer in encoded.buffers]
