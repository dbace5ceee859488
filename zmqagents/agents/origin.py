"""Which file a class comes from, so that the same file is known again in another process.

An agent file has one module name in a program that imports it and another on a host that loads it by ``--agent-dir``,
and may lie elsewhere. What both have is its name and its text.
"""

from __future__ import annotations

import binascii
import os
import sys
import weakref

__all__ = ["origin_of"]

_origins: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()


def origin_of(cls: type) -> str:
    """``reader.py 1234 89abcdef``: the file of ``cls``, its size and checksum when first asked for.

    "" for a class without a file. Any thread.
    """
    origin = _origins.get(cls)
    if origin is None:
        origin = _origins[cls] = _read(getattr(sys.modules.get(cls.__module__), "__file__", None))
    return origin


def _read(path: str | None) -> str:
    if path is None:
        return ""
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError:  # in an archive, or gone
        return ""
    name = "".join(sign for sign in os.path.basename(path) if sign.isprintable())
    return f"{name} {len(source)} {binascii.crc32(source):08x}"
