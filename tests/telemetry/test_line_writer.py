"""The thread that writes log lines."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.program

PROGRAM = """
import io, sys
from zmqagents.telemetry.program import LineWriter

class Counting(io.StringIO):
    count = 0

    def write(self, text):
        self.count += 1
        return len(text)

sys.setswitchinterval(1e-6)
lines = Counting()
writer = LineWriter(lines)
for number in range(2, 100_000, 2):
    writer.put("a line")
    writer.put("another")
    writer.flush(30)
    assert lines.count == number, (lines.count, number)
"""


def test_a_flush_ends_when_all_lines_before_it_are_written_however_the_threads_take_turns() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
