"""A value that takes its time to be read."""

from __future__ import annotations

import time
from dataclasses import dataclass

from zmqagents import register_type


@dataclass
class SlowToRead:
    """A value that takes ``seconds`` to be made where it arrives."""

    seconds: float


def _read_slowly(seconds: float) -> SlowToRead:
    time.sleep(seconds)
    return SlowToRead(seconds)


register_type(SlowToRead, to_data=lambda value: value.seconds, from_data=_read_slowly)
