"""How long a call may take: its own timeout, the block's deadline, and what is left to the calling agent.

The least of them counts. It travels as a number of milliseconds, so the clocks of two machines need not agree.
"""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Iterator

from .. import errors
from ..agents.context import own_call
from ..checks import DEFAULT_TIMEOUT_S

MAX_TIMEOUT_S = 4_000_000.0  # 46 days, what a header can say; also what float("inf") means


current_deadline: contextvars.ContextVar[float | None] = contextvars.ContextVar("zmqagents_deadline", default=None)
read_deadline = current_deadline.get  # bound once, as it is read with each call


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Every call made in this block must end within ``seconds`` of the block's start; of two nested blocks the least.

    A call that would begin later, or is not finished by then, raises CallTimeout. ConfigError if ``seconds`` is no
    number. It holds for the code of this block alone: for this thread, or this task.
    """
    end = time.monotonic() + _checked_timeout(seconds)
    outer = read_deadline()
    token = current_deadline.set(end if outer is None else min(end, outer))
    try:
        yield
    finally:
        current_deadline.reset(token)


class Unset:
    def __repr__(self) -> str:
        return "default"


UNSET = Unset()
Timeout = float | None | Unset


def _checked_timeout(seconds: object) -> float:
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or seconds != seconds:
        raise errors.ConfigError(f"a timeout is a number of seconds, or None for none at all, not {seconds!r}")
    return min(float(seconds), MAX_TIMEOUT_S)


def time_left(timeout: Timeout) -> float | None:
    """Seconds for one call: its own timeout, the block's deadline, the calling agent's rest; the least of them."""
    left = DEFAULT_TIMEOUT_S if isinstance(timeout, Unset) else timeout
    limits = [] if left is None else [_checked_timeout(left)]
    end = read_deadline()
    if end is not None:
        limits.append(end - time.monotonic())
    call = own_call()
    if call is not None:
        call.check()  # a cancelled call starts nothing new
        rest = call.remaining()
        if rest is not None:
            limits.append(rest)
    if not limits:
        return None
    least = min(limits)
    if least <= 0:
        raise errors.CallTimeout("the deadline had passed before the call was made")
    return least
