"""The latest log lines of a host, for those who ask it: `Ring`, of a fixed size."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Mapping
from typing import Any

from .lines import event_of

__all__ = ["Ring", "RingHandler"]

KEPT_LINES = 1000
TEXT_CHARS = 4096  # of a message or a traceback
PAGE_LINES = 200


class Ring:
    """Any thread may add and look. Each line has a number, 1 for the first that was ever added."""

    def __init__(self, size: int = KEPT_LINES) -> None:
        self._lines: deque[tuple[int, Mapping[str, Any]]] = deque(maxlen=size)
        self._numbers = itertools.count(1)

    def __repr__(self) -> str:
        return f"<Ring [{len(self._lines)} lines]>"

    def add(self, event: Mapping[str, Any]) -> None:
        """Keep an event, with long texts cut."""
        kept = dict(event)
        if max(map(len, map(str, kept.values())), default=0) > TEXT_CHARS:
            for key, value in event.items():
                if isinstance(value, str):
                    kept[key] = value[-TEXT_CHARS:] if key == "exc" else value[:TEXT_CHARS]
        self._lines.append((next(self._numbers), kept))

    def page(self, after: int = 0, agent: str | None = None, most: int = PAGE_LINES) -> dict[str, Any]:
        """``lines`` behind the number ``after``, the oldest first, of one agent or of all; ``next`` to go on behind;
        ``left_out``: lines that came after ``after`` and are kept no more. ``more``: there are further ones now.

        ``after`` below 0 means the last ``-after`` lines.
        """
        kept = list(self._lines)
        last = kept[-1][0] if kept else 0
        if after < 0:
            about = [number for number, event in kept if agent is None or event.get("agent") == agent]
            after = about[after] - 1 if len(about) >= -after else about[0] - 1 if about else last
        elif after > last:  # of another process of the host, which has ended
            after = 0
        left_out = max(0, kept[0][0] - 1 - after) if kept else 0
        found = [pair for pair in kept if pair[0] > after and (agent is None or pair[1].get("agent") == agent)]
        page = found[:most]
        more = len(found) > most
        return {
            "lines": [dict(event) for _, event in page], "next": page[-1][0] if more else last, "more": more,
            "left_out": left_out,
        }  # fmt: skip


class RingHandler(logging.Handler):
    """Puts records into a `Ring`."""

    def __init__(self, ring: Ring) -> None:
        super().__init__()
        self._ring = ring

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record."""
        self._ring.add(event_of(record))
