"""What telemetry costs a call: ``python -m benchmarks.telemetry_cost [counts|table]``.

``counts`` runs a host in this process and counts the bytecodes that its router and worker threads execute for a call,
and those of them that belong to telemetry: all of ``zmqagents/telemetry``, and the lines elsewhere that mention it. The
number is the same on every machine, however busy.

``table`` measures B1 (one caller, calls in a row) and B2 (256 in flight) against hosts that differ in nothing but what
they tell, in rounds that take turns: logs off; logs on; figures asked for ten times a second; calls traced, 1 % and all
of them, by both sides, to a collector that throws the spans away.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from zmqagents import RpcAgentServerLauncher, RpcClient

from . import loops, ours
from .ours import Echo, own_keys

PACKAGE = Path(__file__).parents[1] / "zmqagents"
OF_TELEMETRY = re.compile(r"meters|self\.count\(|traces|switch\.active|received_bytes|sent_bytes|_observer")
TRACED_CALLS = 200
ROUNDS, CALLS, IN_FLIGHT, PAYLOAD_BYTES = 5, 3000, 256, 64
Method = Callable[[Any, int], None]


def ask_in_turn(agent: Any, calls: int) -> None:
    """Calls of a quick method, one after the other: the router thread runs them."""
    for _ in range(calls):
        agent.echo(b"x" * PAYLOAD_BYTES)


def ask_ahead(agent: Any, calls: int) -> None:
    """The same in worker threads, for the results are kept."""
    for result in [agent.aecho(b"x" * PAYLOAD_BYTES) for _ in range(calls)]:
        result.result()


# ---------------------------------------------------------------- bytecodes


class Tally:
    """Counts the bytecodes that threads of a host execute, by file and line."""

    def __init__(self) -> None:
        self.lines: Counter[tuple[str, int]] = Counter()
        self.is_on = False

    def trace(self, frame: Any, event: str, _: Any) -> Any:
        """For `threading.settrace`."""
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode" and self.is_on:
            self.lines[frame.f_code.co_filename, frame.f_lineno or 0] += 1
        return self.trace

    def shares(self) -> tuple[int, int]:
        """All bytecodes, and those of telemetry."""
        telling = sum(count for place, count in self.lines.items() if _is_telemetry(*place))
        return sum(self.lines.values()), telling


def _is_telemetry(name: str, number: int) -> bool:
    path = Path(name)
    if not path.is_relative_to(PACKAGE):
        return False
    if path.is_relative_to(PACKAGE / "telemetry") or path.is_relative_to(PACKAGE / "tracing"):
        return True
    return bool(OF_TELEMETRY.search(path.read_text(encoding="utf-8").splitlines()[number - 1]))


def count(method: str, *, fast: bool) -> tuple[float, float]:
    """Bytecodes of a host for one call, and those of telemetry among them.

    On a busy machine a quick method may not stay quick.
    """
    tally = Tally()
    threading.settrace(tally.trace)
    given: dict[str, Any] = {"fast_lane": fast, "local_mode": True, "capacity": 1}
    launcher = RpcAgentServerLauncher(custom_agent_classes=[Echo], **given)
    server = threading.Thread(target=launcher.launch, kwargs={"in_subprocess": False})
    server.start()
    try:
        while launcher.port in (None, 0) or not launcher.is_running:
            time.sleep(0.01)
        program = f"import benchmarks.telemetry_cost as t; t.ask({launcher.port}, {method!r})"
        with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as asker:
            assert asker.stdin is not None
            assert asker.stdout is not None
            asker.stdout.readline()  # warm
            tally.is_on = True
            asker.stdin.write(b"go\n")
            asker.stdin.flush()
            asker.stdout.readline()
            tally.is_on = False
    finally:
        threading.settrace(None)
        launcher.shutdown(0.0)
        server.join()
    total, telling = tally.shares()
    return total / TRACED_CALLS, telling / TRACED_CALLS


def ask(port: int, method: str) -> None:
    """The client of `count`, a process of its own."""
    ways: dict[str, Method] = {"echo": ask_in_turn, "aecho": ask_ahead}
    with RpcClient("localhost", port) as client:
        agent = client.create_agent(Echo)
        ways[method](agent, TRACED_CALLS)
        print("warm", flush=True)
        sys.stdin.readline()
        ways[method](agent, TRACED_CALLS)
        print("done", flush=True)


def print_counts() -> None:
    """A line for the fast lane, and one for worker threads."""
    for text, method, fast in (("fast lane", "echo", True), ("worker", "echo", False), ("kept", "aecho", False)):
        total, telling = count(method, fast=fast)
        print(f"{text:10} {total:7.1f} bytecodes a call, {telling:5.1f} of telemetry: {100 * telling / total:.2f} %")


# ---------------------------------------------------------------- the table


@contextlib.contextmanager
def sink() -> Iterator[str]:
    """The address of a process that takes whatever is posted to it."""
    program = "import benchmarks.telemetry_cost as t; t.run_sink()"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


class _Sink(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def run_sink() -> None:
    """The program of `sink`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Sink)
    print(server.server_address[1], flush=True)
    server.serve_forever()


def measure(port: int, sampled: str) -> tuple[float, float]:
    """Nanoseconds of a call in B1 (the median) and in B2, measured by this process."""
    if sampled:
        from zmqagents.tracing import provider

        provider.begin("program")
    caller = ours.Ours({"host": "localhost", "port": port, "transport": "ipc"})
    loops.lat(caller, CALLS // 4, PAYLOAD_BYTES)
    found: float = loops.lat(caller, CALLS, PAYLOAD_BYTES)["p50_us"] * 1000
    rate: float = loops.thr(caller, CALLS, IN_FLIGHT, PAYLOAD_BYTES)["calls_per_s"]
    return found, 1e9 / rate


def run_scraper(port: str) -> None:
    """A program that asks for all figures, ten times a second."""
    with RpcClient("localhost", int(port)) as client:
        while client.get_metrics():
            time.sleep(0.1)


def run_measure(port: str, sampled: str) -> None:
    """The program of one measurement."""
    print(*measure(int(port), sampled), flush=True)
    os._exit(0)  # without waiting for the exporter


KINDS = {  # options of the host, whether figures are asked for, which share of the calls is traced
    "logs off": (["--log-level", "off"], False, ""),
    "logs on": (["--log-level", "info", "--log-format", "json"], False, ""),
    "metrics on": (["--log-level", "off"], True, ""),
    "traces, 1 %": (["--log-level", "off", "--otel"], False, "0.01"),
    "traces, all": (["--log-level", "off", "--otel"], False, "1.0"),
}


def print_table(rounds: int) -> None:
    """The table of `docs/seeing.rst`."""
    figures: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    with sink() as url:
        for _ in range(rounds):
            for kind, (options, asks, sampled) in KINDS.items():
                figures[kind].append(_one(options, asks, sampled, url))
    base = figures["logs off"]
    print(f"{'':14}{'B1 ns':>10}{'more':>10}{'%':>8}{'B2 ns':>10}{'more':>10}{'%':>8}")
    for kind, found in figures.items():
        cells = []
        for place in (0, 1):
            now = statistics.median(each[place] for each in found)
            more = statistics.median(each[place] - plain[place] for each, plain in zip(found, base, strict=True))
            share = statistics.median(each[place] / plain[place] for each, plain in zip(found, base, strict=True))
            cells.append(f"{now:10.0f}{more:10.0f}{100 * (share - 1):8.1f}")
        print(f"{kind:14}{''.join(cells)}")


def _one(options: list[str], asks: bool, sampled: str, url: str) -> tuple[float, float]:
    environment = {
        **os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": sampled or "0", "OTEL_BSP_MAX_QUEUE_SIZE": "100000",
    }  # fmt: skip
    start = [sys.executable, "-m", "zmqagents", "start", "benchmarks.ours:Echo", "--local-mode", "--json", *options]
    program = "import sys, benchmarks.telemetry_cost as t; t.{}(*sys.argv[1:])"
    quiet = {"stderr": subprocess.DEVNULL, "env": environment, "text": True}
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(subprocess.Popen(start, stdout=subprocess.PIPE, **quiet))  # type: ignore[call-overload]
        stack.callback(host.terminate)
        port = str(json.loads(host.stdout.readline())["port"])
        if asks:
            scraper = [sys.executable, "-c", program.format("run_scraper"), port]
            stack.callback(stack.enter_context(subprocess.Popen(scraper, **quiet)).kill)  # type: ignore[call-overload]
        command = [sys.executable, "-c", program.format("run_measure"), port, sampled]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    first, second = map(float, done.stdout.split())
    return first, second


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.telemetry_cost", description="What telemetry costs.")
    parser.add_argument("what", choices=["counts", "table"], nargs="?", default="counts")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    with own_keys():
        if given.what == "counts":
            print_counts()
        else:
            print_table(given.rounds)


if __name__ == "__main__":
    main()
