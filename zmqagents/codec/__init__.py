"""Values to msgpack and back.

A receiver rebuilds only types that it knows; it imports nothing by a name that a peer sent.

May import errors and config.
"""

from .classes.types import register_type
from .decoder import decode, decode_call
from .encoder import encode, encode_call
from .forms import (
    INLINE_LIMIT_BYTES,
    MAX_BUFFERS,
    MAX_DEPTH,
    MAX_NUMBER_BYTES,
    MAX_TEXT,
    NATIVE_TYPES,
    TAG,
    AgentRef,
    Buffer,
    Encoded,
    TaskRef,
    check_reference,
    is_name,
    new_tuple,
)
from .headers import encode_plain, encode_plain_call, pack, unpack

__all__ = [
    "INLINE_LIMIT_BYTES", "MAX_BUFFERS", "MAX_DEPTH", "MAX_NUMBER_BYTES", "MAX_TEXT", "NATIVE_TYPES", "TAG",
    "AgentRef", "Buffer", "Encoded", "TaskRef", "check_reference", "decode", "decode_call", "encode", "encode_call",
    "encode_plain", "encode_plain_call", "is_name", "new_tuple", "pack", "register_type", "unpack",
]  # fmt: skip
