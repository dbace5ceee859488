"""The answers of all members of a host to one question: lists of rows."""

from __future__ import annotations

import threading
import time
from typing import Any

from .. import codec, errors
from ..wire.messages import Reply

__all__ = ["Answers"]

MAX_BYTES = 1 << 28


class Answers:
    """See the module's docstring. A `Sink` for each of the requests that `expect` has announced."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._missing = 0
        self._rows: list[dict[str, Any]] = []

    def expect(self) -> None:
        """One more is asked."""
        with self._changed:
            self._missing += 1

    def rows(self, timeout_s: float) -> list[dict[str, Any]]:
        """All rows that have come within ``timeout_s`` seconds: a member that is busy in C code may not answer."""
        end = time.monotonic() + timeout_s
        with self._changed:
            while self._missing and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            return list(self._rows)

    def deliver(self, reply: Reply | None) -> None:
        found: Any = []
        if reply is not None and not reply.code:
            try:
                found = codec.unpack(reply.body[0], max_bytes=MAX_BYTES)
            except errors.ZmqAgentsError:
                found = []
        with self._changed:
            self._missing -= 1
            self._rows += [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
            self._changed.notify_all()

    def fail(self, error: Exception) -> None:
        self.deliver(None)

    def chunk(self, item: Reply) -> None:
        """Never comes."""
