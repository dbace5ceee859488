"""B10: from ``as_server start`` to the first answered call; memory of the idle host then.

Beside it what no host on this interpreter can do without: to start Python and import pyzmq and msgpack.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from .. import ours
from . import Measurement, Options, run, seconds_of

AGENT_FILE = """
from zmqagents import AgentBase

class First(AgentBase):
    def echo(self, value):
        return value
"""
IDLE_S = 0.5  # after the call, before its memory is looked at


def rounds(options: Options) -> Iterator[list[Measurement]]:
    bare = [sys.executable, "-c", "import zmq, msgpack"]
    with tempfile.TemporaryDirectory(prefix="zb") as directory:
        Path(directory, "first.py").write_text(AGENT_FILE, encoding="utf-8")
        start_once(options, directory)  # compiles the file, reads everything from the disk once
        for number in range(options.rounds):
            bare_s = seconds_of(lambda: subprocess.run(bare, check=True))
            figures = {**start_once(options, directory), "bare_python_s": bare_s}
            yield [{"subject": "zmqagents", "round": number, "figures": figures}]


def start_once(options: Options, directory: str) -> dict[str, float]:
    """Start a host, call it, look at it, stop it."""
    command = [sys.executable, "-m", "zmqagents", "start", "--agent-dir", directory, "--json"]
    command += ["--pool-type", options.store, "--redis-url", options.redis_url]
    command += ["--insecure", "--local-mode"] if options.transport == "tcp" else []
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        bound = json.loads(process.stdout.readline())
        with ours.client(bound["host"], bound["port"], options.transport) as client:
            if client.create_agent("First").echo(1) != 1:
                raise RuntimeError("the echo is not what was sent")
            took_s = time.perf_counter() - begin
            time.sleep(IDLE_S)
            rss = psutil.Process(bound["pid"]).memory_info().rss
            client.stop(grace_s=0.0)
        process.wait(10)
    return {"start_s": took_s, "idle_mib": rss / (1 << 20)}


if __name__ == "__main__":
    run(rounds)
