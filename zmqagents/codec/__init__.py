"""Values to msgpack and back.

A receiver rebuilds only types that it knows; it imports nothing by a name that a peer sent, but for packages that it
trusts.

May import errors and config.
"""

from .bounds import HARMLESS, check_structure
from .classes.types import expected_by, register_type, register_types, registry, trust_types
from .decoder import decode, decode_call, decode_error, decode_plain
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
    Scope,
    TaskRef,
    check_reference,
    is_name,
    new_tuple,
)
from .plain import encode_plain, encode_plain_call, lone_arguments, lone_forms, lone_values, pack, pack_rows, unpack

__all__ = [
    "HARMLESS", "INLINE_LIMIT_BYTES", "MAX_BUFFERS", "MAX_DEPTH", "MAX_NUMBER_BYTES", "MAX_TEXT", "NATIVE_TYPES",
    "NO_SCOPE", "TAG", "AgentRef", "Buffer", "Encoded", "Scope", "TaskRef", "check_reference", "check_structure",
    "decode", "decode_call", "decode_error", "decode_plain", "encode", "encode_call", "encode_error",
    "encode_plain", "encode_plain_call", "expected_by", "is_name", "lone_arguments", "lone_forms", "lone_values",
    "new_tuple", "pack", "pack_rows", "register_type", "register_types", "registry", "trust_types", "unpack",
]  # fmt: skip
