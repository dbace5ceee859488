"""Many client processes of one subject: ``python -m benchmarks.crowd NAME WHERE COUNT``.

The clients are forked before this program has a thread: so 200 of them start within a second or two, and share their
memory. It prints ``ready`` when all are connected; then, for each line ``[begin, seconds]`` on standard input, every
client makes blocking calls for so long, and a line for each says how long it has waited for each call, in ms.

Standard library alone, and the subject's own module, as in `driver`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from typing import Any

from .driver import module_of
from .loops import Client

WARM_UP_CALLS = 20
PAYLOAD_BYTES = 64


def main(name: str, where: Any, count: int) -> None:
    """Fork the clients, and pass on what is said to them and by them."""
    module = importlib.import_module(module_of(name))
    ends = [fork(module, name, where) for _ in range(count)]
    if any(answers.readline() != "ready\n" for _, answers in ends):
        raise SystemExit("a client did not start")
    print("ready", flush=True)
    for line in sys.stdin:
        for orders, _ in ends:
            orders.write(line)
            orders.flush()
        for _, answers in ends:
            print(answers.readline(), end="", flush=True)
    for orders, _ in ends:
        orders.close()
    for _ in ends:
        os.wait()


def fork(module: Any, name: str, where: Any) -> tuple[Any, Any]:
    """One client, and the two ends of its pipes."""
    order_r, order_w = os.pipe()
    answer_r, answer_w = os.pipe()
    if os.fork() == 0:
        status = 1
        with contextlib.suppress(BrokenPipeError):
            os.closerange(3, order_r)  # the ends of those before: each client has to see its own end of file
            os.close(order_w)
            os.close(answer_r)
            attend(module.connect(name, where), os.fdopen(order_r), os.fdopen(answer_w, "w"))
            status = 0
        os._exit(status)
    os.close(order_r)
    os.close(answer_w)
    return os.fdopen(order_w, "w"), os.fdopen(answer_r)


def attend(client: Client, orders: Any, answers: Any) -> None:
    """Be one client."""
    with contextlib.closing(client):
        payload = os.urandom(PAYLOAD_BYTES)
        for _ in range(WARM_UP_CALLS):
            client.call(payload)
        print("ready", file=answers, flush=True)
        for line in orders:
            begin, seconds = json.loads(line)
            time.sleep(max(0.0, begin - time.monotonic()))
            samples, now, end = [], time.monotonic(), begin + seconds
            while now < end:
                client.call(payload)
                before, now = now, time.monotonic()
                samples.append(round((now - before) * 1000, 3))
            print(json.dumps(samples), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]))
