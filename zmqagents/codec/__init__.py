"""Values to msgpack and back.

A receiver rebuilds only types that it knows; it imports nothing by a name that a peer sent, but for packages that it
trusts.

What makes values of all types that msgpack does not have, and knows classes by their names, is loaded with the first
of them: 10 ms and 1 MiB that a host or a client need not pay before it works.

May import errors and config.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import RemoteProtocolError
from .bounds import HARMLESS, SHORT_BYTES, check_structure
from .encoder import encode, encode_call, encode_error
from .forms import (
    INLINE_LIMIT_BYTES,
    MAX_BUFFERS,
    MAX_DEPTH,
    MAX_NUMBER_BYTES,
    MAX_TEXT,
    NATIVE_TYPES,
    NO_SCOPE,
    TAG,
    AgentRef,
    Buffer,
    Encoded,
    Resolve,
    Scope,
    TaskRef,
    all_str,
    check_reference,
    is_name,
    new_tuple,
)
from .plain import (
    LONG_BYTES,
    NO_CALL,
    NO_NAME,
    decode_plain,
    encode_plain,
    encode_plain_call,
    lone_arguments,
    lone_forms,
    lone_values,
    pack,
    pack_rows,
    unpack,
    unpack_long,
    unpack_plain,
    why_not_decoded,
)

if TYPE_CHECKING:
    from .classes.types import expected_by as expected_by
    from .classes.types import register_type as register_type
    from .classes.types import register_types as register_types
    from .classes.types import registry as registry
    from .classes.types import trust_types as trust_types
    from .decoder import decode_error as decode_error

__all__ = [
    "HARMLESS", "INLINE_LIMIT_BYTES", "MAX_BUFFERS", "MAX_DEPTH", "MAX_NUMBER_BYTES", "MAX_TEXT", "NATIVE_TYPES",
    "NO_SCOPE", "SHORT_BYTES", "TAG", "AgentRef", "Buffer", "Encoded", "Scope", "TaskRef", "check_reference",
    "check_structure", "decode", "decode_call", "decode_error", "decode_plain", "encode", "encode_call", "encode_error",
    "encode_plain", "encode_plain_call", "expected_by", "is_name", "lone_arguments", "lone_forms", "lone_values",
    "new_tuple", "pack", "pack_rows", "register_type", "register_types", "registry", "trust_types", "unpack", "warm_up",
]  # fmt: skip

_LAZY = {
    **dict.fromkeys(("expected_by", "register_type", "register_types", "registry", "trust_types"), "classes.types"),
    "decode_error": "decoder",
}


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def decode(
    payload: Buffer, buffers: Sequence[Buffer] = (), *, resolve: Resolve | None = None,
    unpickler: Callable[[bytes], Any] | None = None, scope: Scope = NO_SCOPE, root: str = "value",
    place: int | None = 0,
) -> Any:  # fmt: skip
    """The value that `encode` put into ``payload`` and ``buffers`` (bytes, or memoryviews of bytes).

    ``resolve`` turns each reference into what the value is to hold (without it, the reference itself);
    what it raises comes out as it is. ``scope`` says which types are known beside the registered and trusted ones.
    SerializationError for an object of another class; its path begins with ``root``. ``place``: what ``scope.expected``
    knows the value by, 0 for the result of its method, None for nothing. RemoteProtocolError for
    everything that is wrong with the data, a pickled part without ``unpickler`` included.
    """
    if payload[:1] != TAG and not buffers:
        return decode_plain(payload)
    if len(buffers) == 1 and type(payload) is bytes:  # as the decoder would, in a tenth of the time
        read = lone_values.get(payload)
        if read is not None:
            return read(buffers[0])
    return _tagged(payload, buffers, resolve, unpickler, scope, root, place)


def decode_call(
    payload: Buffer, buffers: Sequence[Buffer] = (), *, resolve: Resolve | None = None,
    unpickler: Callable[[bytes], Any] | None = None, scope: Scope = NO_SCOPE,
) -> tuple[tuple[Any, ...], dict[str, Any]]:  # fmt: skip
    """The arguments that `encode_call` put into ``payload`` and ``buffers``; as `decode`.

    An argument whose parameter ``scope.expected`` has as a dict or list arrives in its plain form.
    """
    if buffers or payload[:1] == TAG:
        if len(buffers) == 1 and type(payload) is bytes:
            read = lone_arguments.get(payload)
            if read is not None:
                return (read(buffers[0]),), {}
        return _tagged_call(payload, buffers, resolve, unpickler, scope)
    try:  # as `decode`, for one function call less
        items = unpack_plain(payload) if len(payload) <= LONG_BYTES else unpack_long(payload, unpack_plain)
    except RemoteProtocolError:
        raise
    except Exception as exc:
        raise RemoteProtocolError(why_not_decoded(exc)) from exc
    if type(items) is not list or not items or type(items[-1]) is not dict:
        raise RemoteProtocolError(NO_CALL)
    kwargs = items.pop()
    if kwargs and not all_str(kwargs):
        raise RemoteProtocolError(NO_NAME)
    return tuple(items), kwargs


def warm_up() -> None:
    """Load what the first value of a type that msgpack does not have would load: some 10 ms."""
    global _tagged, _tagged_call
    from . import decoder

    _tagged, _tagged_call = decoder.decode_tagged, decoder.decode_tagged_call


def _first_tagged(*args: Any) -> Any:
    warm_up()
    return _tagged(*args)


def _first_tagged_call(*args: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    warm_up()
    return _tagged_call(*args)


# Those of `decoder`, once it is loaded: a step in between would cost each such value 0.4 us.
_tagged: Callable[..., Any] = _first_tagged
_tagged_call: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]] = _first_tagged_call
