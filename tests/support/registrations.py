"""What a test registers with the codec is forgotten after it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from zmqagents.codec import registry


@contextlib.contextmanager
def forgotten() -> Iterator[None]:
    """What the block registers is known within it alone."""
    restore = registry.save()
    try:
        yield
    finally:
        restore()
