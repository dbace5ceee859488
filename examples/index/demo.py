"""Eight agents read the documentation of the Python standard library; a ninth answers questions on it.

    python examples/index/demo.py            start a host, ask three questions, stop the host
    python examples/index/demo.py --keep     leave the host running until Ctrl-C, to call its agents from a shell
    python examples/index/demo.py "How do I pick a random element?" ...      your own questions

What to look at, in the order in which it happens:

1. `started_host` runs ``as_server start``, the shell command, as a process of its own. It loads the agent
   classes from the directory ``agents`` beside this file and says on one line where it listens.
2. `make_agents` makes the agents on that host by the names of their classes and gets a *proxy* of each: an
   object here whose methods run there. The coordinator is made with the proxies of the indexers.
3. ``indexer.index()`` returns an *AsyncResult* at once, so all eight read at the same time; `watch` shows
   how far they are, which each call tells by ``current_call().progress(...)``: ``result.progress``.
4. ``coordinator(question)`` makes the agents talk to each other; only the answers come back here.
5. `draw_calls` draws what the host has counted meanwhile: the calls of each method, and how long they took.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from zmqagents import Progress, RpcClient

AGENTS = Path(__file__).resolve().parent / "agents"
INDEXERS = 8
START_LIMIT_S = 30.0
INDEX_LIMIT_S = 300.0
STOP_LIMIT_S = 10.0
QUESTIONS = (
    "How do I create a temporary directory?",
    "How do I run another program and capture its output?",
    "How do I compare two texts line by line?",
)

Update = Callable[[Sequence[Progress]], None]  # shows how far the indexers are
NOTHING = Progress(0, 1)


def main() -> int:
    options = parse_options()
    # A polite kill goes the way of Ctrl-C: through the with block, which stops the host.
    signal.signal(signal.SIGTERM, leave)
    try:
        with started_host() as host:
            say(f"Host {host['server_id']} listens on {host['host']}:{host['port']} (pid {host['pid']}).")
            with RpcClient(host["host"], host["port"]) as client:
                run(client, options.questions or QUESTIONS)
            show_shell(host["port"], keep=options.keep)
            if options.keep:
                say("\nThe host stays. Ctrl-C stops it.")
                threading.Event().wait()
        say("\nThe host has stopped.")
    except KeyboardInterrupt:
        say("\nStopped.")
        return 0 if options.keep else 130
    except HostDidNotStart as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return 1
    return 0


def leave(signum: int, frame: object) -> None:
    """The handler of a polite kill."""
    sys.exit(143)


def run(client: RpcClient, questions: Sequence[str]) -> None:
    """What a program does with agents: make them, let them work, ask them."""
    indexers, coordinator = make_agents(client)
    say(f"Made {INDEXERS} indexers and a coordinator, whose classes the host loaded from {shown(AGENTS)}.\n")

    say(f"Reading the standard library of Python {platform.python_version()}:")
    started = time.perf_counter()
    results = [indexer.index() for indexer in indexers]  # eight AsyncResults, at once
    watch(results)
    counts = [result.result(timeout=INDEX_LIMIT_S) for result in results]
    took_s = time.perf_counter() - started
    modules, entries = (sum(count[key] for count in counts) for key in ("modules", "entries"))
    say(f"{entries:,} docstrings of {modules} modules, read in {took_s:.1f} s.")

    for question in questions:
        started = time.perf_counter()
        found = coordinator(question, k=3).result(timeout=60)
        show_answers(found, (time.perf_counter() - started) * 1000)
    draw_calls(client)


def make_agents(client: RpcClient) -> tuple[list[Any], Any]:
    """Proxies of the indexers and of the coordinator, which is given the indexers' proxies."""
    indexers = [
        client.create_agent("Indexer", share=number, shares=INDEXERS, agent_id=f"indexer-{number + 1}")
        for number in range(INDEXERS)
    ]
    return indexers, client.create_agent("Coordinator", indexers, agent_id="coordinator")


# ---------------------------------------------------------------- the host


class HostDidNotStart(Exception):
    """``as_server start`` ended, or said nothing; its own messages are on stderr already."""


@contextmanager
def started_host() -> Generator[dict[str, Any], None, None]:
    """A host process with our agent classes: where it listens, as a dict. Stopped however the block ends."""
    options = ["--port", "0", "--agent-dir", str(AGENTS), "--server-id", f"demo-{os.getpid()}", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "zmqagents", "start", *options], stdout=subprocess.PIPE, text=True
    )
    host: dict[str, Any] | None = None
    try:
        host = read_ready_line(process)
        yield host
    finally:
        stop(process, host)


def read_ready_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The line of JSON that ``as_server start --json`` prints once it listens."""
    assert process.stdout is not None
    timer = threading.Timer(START_LIMIT_S, process.kill)  # ends the wait for a line that never comes
    timer.start()
    try:
        line = process.stdout.readline()
    finally:
        timer.cancel()
    try:
        host: dict[str, Any] = json.loads(line)
    except ValueError:
        process.kill()
        raise HostDidNotStart(f"the host did not start (exit code {process.wait()})") from None
    return host


def stop(process: subprocess.Popen[str], host: dict[str, Any] | None) -> None:
    """Ask the host to stop, as ``as_server stop`` does; insist if it does not."""
    if host is None:
        process.terminate()  # it is still starting, or has ended by itself
    elif process.poll() is None:
        with suppress(Exception), RpcClient(host["host"], host["port"]) as client:
            client.stop()
    for insist in (process.terminate, process.kill):
        try:
            process.wait(STOP_LIMIT_S)
            break
        except subprocess.TimeoutExpired:
            insist()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


# ---------------------------------------------------------------- what is shown


def watch(results: Sequence[Any]) -> None:
    """Show how far the calls have come until all results are there: bars on a terminal, else a few lines."""
    show = bars if sys.stdout.isatty() else lines
    with show(len(results)) as update:
        finished = False
        while not finished:
            finished = all(result.done() for result in results)  # before the last look, which then shows 100 %
            update([state_of(result) for result in results])
            if not finished:
                time.sleep(0.1)


def state_of(result: Any) -> Progress:
    """How far a call has come. A finished one is whole, whatever it has told last."""
    told: Progress = result.progress or NOTHING
    return told._replace(done=told.total or 1) if result.done() else told


@contextmanager
def bars(count: int) -> Generator[Update, None, None]:
    """A progress bar for each indexer, drawn by rich (``pip install 'zmqagents[rich]'``), or else `lines`."""
    try:
        from rich import progress
    except ImportError:
        with lines(count) as plain:
            yield plain
        return
    columns = (
        progress.TextColumn("  {task.description:<10}"), progress.BarColumn(bar_width=32),
        progress.MofNCompleteColumn(), progress.TextColumn("[dim]{task.fields[text]:>14}"),
        progress.TimeElapsedColumn(),
    )  # fmt: skip
    with progress.Progress(*columns) as drawn:
        tasks = [drawn.add_task(f"indexer-{number + 1}", total=None, text="") for number in range(count)]

        def update(states: Sequence[Progress]) -> None:
            for task, state in zip(tasks, states, strict=True):
                drawn.update(task, completed=state.done, total=state.total, text=state.text)

        yield update


@contextmanager
def lines(count: int) -> Generator[Update, None, None]:
    """A line at every quarter of the way."""
    shown_quarters = 0

    def update(states: Sequence[Progress]) -> None:
        nonlocal shown_quarters
        quarters = int(4 * sum(state.fraction or 0.0 for state in states) / count)
        if quarters > shown_quarters:
            shown_quarters = quarters
            say(f"  {25 * quarters:3} %  of {count} shares")

    yield update


def draw_calls(client: RpcClient) -> None:
    """A picture of what the agents have done: a bar for each method, as long as its calls took on average."""
    found: dict[str, tuple[int, float]] = {}
    for row in client.get_metrics()["methods"]:
        calls, seconds = sum(row["ran"]["counts"]), row["ran"]["sum_s"]
        if calls:
            found[f"{row['class'].rpartition(':')[2]}.{row['method']}"] = calls, 1000 * seconds / calls
    say("\nWhat the host has counted, and how long a call took on average:")
    most_ms = max(ms for _, ms in found.values())
    for name, (calls, ms) in sorted(found.items(), key=lambda item: -item[1][1]):
        length = max(1, round(8 * 30 * ms / most_ms))  # in eighths of a sign
        bar = "█" * (length // 8) + " ▏▎▍▌▋▊▉"[length % 8].strip()
        say(f"  {name:<24} {calls:>3} calls {ms:>9.2f} ms  {bar}")


def show_answers(found: dict[str, Any], took_ms: float) -> None:
    """The question, and its ranked answers: what to call, what it does, where it is."""
    width = min(100, shutil.get_terminal_size().columns)
    say(f"\n{found['question']}")
    for rank, answer in enumerate(found["answers"], 1):
        # "(self, a, b)" is called with (a, b)
        signature = answer["signature"].replace("(self, ", "(").replace("(self)", "()")
        call = textwrap.shorten(answer["name"] + signature, width - 16, placeholder=" ...)")
        say(f"  {rank}. {call:<{width - 14}} {answer['score']:6.1f}")
        say(f"     {textwrap.shorten(answer['summary'], width - 8, placeholder=' ...')}")
        say(f"     {answer['place']}")
    say(f"  from {found['searched']:,} entries of {INDEXERS} agents in {took_ms:.0f} ms")


def show_shell(port: int, *, keep: bool) -> None:
    """How to do the same without Python."""
    say(
        "\nThe same agents from a shell"
        + (":" if keep else ", while the host runs (try: python examples/index/demo.py --keep):")
    )
    say(f"  as_server agents --port {port}")
    say(f"""  as_server call coordinator reply '"How do I escape HTML?"' --port {port}""")
    say(f"  as_server call indexer-1 size --port {port}")


def shown(path: Path) -> str:
    """A path as one would type it here."""
    with suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def say(text: str) -> None:
    print(text, flush=True)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="ask this instead of the three prepared ones")
    parser.add_argument("--keep", action="store_true", help="leave the host running until Ctrl-C")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
