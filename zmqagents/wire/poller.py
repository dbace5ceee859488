"""Which descriptors are ready: `select.epoll`, or `select.poll` behind the same interface where there is no epoll.

The host polls the descriptors of all its listeners with one poller. It registers each once, so the cost of a turn
depends on how many are ready and not on how many there are; `select.poll` lacks that, and serves for development.
"""

from __future__ import annotations

import math
import select
from typing import Any

IN, OUT = select.POLLIN, select.POLLOUT  # those of epoll are the same numbers


def new_poller() -> Any:
    """Make a `select.epoll`, or its stand-in. Its timeouts are in seconds."""
    return select.epoll() if hasattr(select, "epoll") else _Poll()


class _Poll:
    """`select.poll`, with the interface of epoll."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self.register, self.modify, self.unregister = self._poll.register, self._poll.modify, self._poll.unregister

    def poll(self, timeout: float, maxevents: int) -> list[tuple[int, int]]:
        return self._poll.poll(math.ceil(timeout * 1000))

    def close(self) -> None:
        """There is no descriptor."""
