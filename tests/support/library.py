"""An agent class for the host that a browser looks at."""

from __future__ import annotations

import random
import time
from typing import Any

from zmqagents import AgentBase, async_func, current_call


class Reader(AgentBase):
    """Reads pages, and remembers what it has read."""

    def echo(self, value: int) -> int:
        """Give the value back."""
        return value

    def load(self, page: str) -> str:
        """Load a page; some are not there."""
        time.sleep(0.001)
        if random.random() < 0.1:
            raise ValueError(f"<b>{page}</b> is not there")
        return page

    @async_func
    def hold(self, seconds: float = 600.0) -> bool:
        """Wait until the call is cancelled."""
        print(f"waiting {seconds:g} s at most")
        call = current_call()
        assert call is not None
        call.progress(3, 10, "pages")
        return call.wait_cancelled(seconds)

    @async_func
    def ask(self, other: Any) -> bool:
        """Have another agent wait, and wait for it."""
        return bool(other.hold().result())
