"""The errors in which calls have ended lately, grouped: how often, first and last, and one of them in full.

A group is one class, method and type of error. `MAX_GROUPS` are kept, those that came last; a flood of one error fills
one group. The router thread counts, and any thread may read.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any

__all__ = ["ErrorLog"]

MAX_GROUPS = 200
MAX_CALLS = 5  # of a group, by their task ids
TEXT_CHARS = 4_096


class _Group:
    __slots__ = ("calls", "count", "first", "last", "latest")

    def __init__(self) -> None:
        self.count = 0
        self.first = self.last = 0.0
        self.latest: Mapping[str, Any] = {}
        self.calls: deque[str] = deque(maxlen=MAX_CALLS)


class ErrorLog:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._groups: OrderedDict[tuple[str, str, str], _Group] = OrderedDict()

    def __repr__(self) -> str:
        return f"<ErrorLog [{len(self._groups)} groups]>"

    def note(self, class_name: str, method: str, kind: str, agent: str, task_id: str, data: Mapping[str, Any]) -> None:
        """A call has failed: with an error of the type ``kind``, of which ``data`` is the description."""
        key = class_name, method, kind
        group = self._groups.get(key)
        if group is None:
            group = _Group()
            group.first = time.time()
            if len(self._groups) >= MAX_GROUPS:
                self._groups.popitem(last=False)
        else:
            del self._groups[key]
        self._groups[key] = group  # the last one
        group.count += 1
        group.last = time.time()
        message, traceback = (str(data.get(name, "")) for name in ("message", "traceback"))  # either may be long
        group.latest = {"agent": agent, "message": message[:TEXT_CHARS], "traceback": traceback[-TEXT_CHARS:]}
        group.calls.append(task_id)

    def told(self) -> list[dict[str, Any]]:
        """The groups as plain data, the latest first. Any thread."""
        rows = []
        for (class_name, method, kind), group in reversed(list(self._groups.items())):
            rows.append(
                {
                    "class": class_name, "method": method, "error": kind, "count": group.count,
                    "first": round(group.first, 3), "last": round(group.last, 3), "calls": list(group.calls),
                    **group.latest,
                }
            )  # fmt: skip
        return rows
