"""Many clients of a cluster, each a process: ``python -m benchmarks.cluster.crowd HOSTS COUNT AGENTS RATE FOLDER``.

They are forked before this program has a thread. Each calls agents in turn, ``RATE`` calls a second, by a `Cluster` of
its own that asks the first of HOSTS and goes no shorter way: so all of them lose their host when that one dies. It
prints ``ready``, calls until its standard input ends, and each client writes its calls to a file in FOLDER.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from zmqagents import Cluster

from .agents import Account
from .load import Called

TIMEOUT_S = 20.0


def main(hosts: str, count: int, agents: int, rate: float, folder: Path) -> None:
    """Fork them, and wait."""
    over_r, over_w = os.pipe()
    ready_r, ready_w = os.pipe()
    pids = []
    for number in range(count):
        pid = os.fork()
        if not pid:
            os.close(over_w)
            status = 1
            try:
                attend(hosts, number, agents, rate, folder, over_r, ready_w)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    os.close(ready_w)
    heard = 0
    while heard < count:
        heard += len(os.read(ready_r, count)) or sys.exit("a client did not start")
    print("ready", flush=True)
    sys.stdin.read()
    os.close(over_w)
    if any(os.waitpid(pid, 0)[1] for pid in pids):
        sys.exit("a client has failed")


def attend(hosts: str, number: int, agents: int, rate: float, folder: Path, over: int, ready: int) -> None:
    """Be one client."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.set_blocking(over, False)
    chance, found = random.Random(number), list[Called]()
    with Cluster(hosts, relay=True) as cluster:
        which = chance.randrange(agents)
        call(cluster, which, time.monotonic())
        os.write(ready, b".")
        due = time.monotonic() + chance.random() / rate
        while not is_over(over):
            time.sleep(max(0.0, due - time.monotonic()))
            found.append(call(cluster, chance.randrange(agents), due))
            due = max(due + 1 / rate, time.monotonic() - 1 / rate)
    (folder / f"client-{number}").write_text(json.dumps(found), encoding="utf-8")


def call(cluster: Cluster, which: int, due: float) -> Called:
    """One call."""
    error = ""
    try:
        agent: Any = cluster.get_agent(f"a-{which}", cls=Account)
        agent.add(1, timeout=TIMEOUT_S)
    except Exception as exc:
        error = type(exc).__name__
    return Called(which, due, time.monotonic(), error)


def is_over(pipe: int) -> bool:
    """Whether the other end is closed."""
    try:
        return not os.read(pipe, 1)
    except BlockingIOError:
        return False


if __name__ == "__main__":
    where, *numbers, rate, folder = sys.argv[1:]
    main(where, int(numbers[0]), int(numbers[1]), float(rate), Path(folder))
