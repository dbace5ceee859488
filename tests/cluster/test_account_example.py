"""The example of accounts that survive their host prints what its page says."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile

import pytest

from hosts import ROOT, environment
from redis_server import running_redis
from scale import linux_only

pytestmark = [pytest.mark.program, pytest.mark.timeout(120), linux_only("CLOCK_BOOTTIME")]

FOLDER = ROOT / "examples" / "account"


def test_accounts_survive_the_death_of_their_host() -> None:
    # A host that is killed leaves its files for its next start; here there is none.
    with running_redis() as redis, tempfile.TemporaryDirectory(dir="/tmp", prefix="za") as runtime:
        command = [sys.executable, "-W", "error", "survive.py", redis.url]
        given = environment(PYTHONPATH=str(ROOT), ZMQAGENTS_RUNTIME=f"{runtime}/run")
        done = subprocess.run(command, cwd=FOLDER, env=given, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    *picture, _, last = done.stdout.splitlines()
    assert f"    {last}\n" in (FOLDER / "README.rst").read_text(encoding="utf-8")
    assert last.count(" 0") == 2
    killed = next(line for line in picture if line.startswith("kill -9"))
    name = re.split(r"[ ,]+", killed)[2]
    assert name in picture[3]
    assert name not in picture[-1], "its accounts are elsewhere"
