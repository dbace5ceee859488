"""TODO."""

from __future__ import annotations

import math
import select
from typing import Any

IN, OUT = select.POLLIN, select.POLLOUT  # those of epoll are the same numbers


def new_poller() -> Any:
    """An `select.epoll`, or what is like it where there is none."""
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
