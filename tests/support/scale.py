"""How much and how long: a short run in ``make test``, a thorough one in ``make soak`` (``ZMQAGENTS_SOAK=1``)."""

from __future__ import annotations

import os
import sys
import time
from typing import TypeVar

import psutil
import pytest

T = TypeVar("T")

SOAK = os.environ.get("ZMQAGENTS_SOAK", "") not in ("", "0")
MIB = 1024 * 1024
# How much later than is promised a test may see a thing: the workers of a parallel run take time from each other.
LATE_S = 2.0 if "PYTEST_XDIST_WORKER" in os.environ else 0.5

soak_only = pytest.mark.skipif(not SOAK, reason="a long one: make soak")
glibc_only = pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()), reason="the allocator is glibc's"
)


def linux_only(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(sys.platform != "linux", reason=reason)


def pick(short: T, thorough: T) -> T:
    return thorough if SOAK else short


class Memory:
    """The resident memory of a process: how much it has grown since this was made, and how much at most."""

    def __init__(self, pid: int | None) -> None:
        self._process = psutil.Process(pid)
        self._start = self._process.memory_info().rss
        self.most = 0.0

    @property
    def grown(self) -> float:
        """MiB."""
        grown = (self._process.memory_info().rss - self._start) / MIB
        self.most = max(self.most, grown)
        return grown

    def watch(self, seconds: float) -> float:
        """Look for so long; the most MiB ever seen."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.grown  # noqa: B018  # read at each access
            time.sleep(0.01)
        return self.most
