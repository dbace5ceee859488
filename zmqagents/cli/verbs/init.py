"""``init``: a small project to begin with."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ... import errors
from ..command import Verb
from ..options import as_json
from ..output import show

__all__ = ["init"]

COUNTER = '''"""An agent: any class will do, and each agent of it keeps its own state."""

import asyncio


class Counter:
    """Counts, and tells."""

    def __init__(self, start: int = 0) -> None:
        self.value = start

    def add(self, n: int = 1) -> int:
        """Add ``n``. The call waits for the new value."""
        self.value += n
        return self.value

    async def later(self, seconds: float) -> int:
        """Give the value after a while. Callers get a result to come, at once."""
        await asyncio.sleep(seconds)
        return self.value

    def up_to(self, n: int):
        """Count. Callers get a stream."""
        yield from range(self.value, n)
'''
USE = '''"""Calls the agent of the host that runs here: start it with `as_server start`."""

from zmqagents import RpcClient

with RpcClient() as client:
    counter = client.get_agent("counter")
    print("value:", counter.add(2))
    result = counter.later(0.5)
    print("meanwhile:", list(counter.up_to(5)))
    print("later:", result.result())
'''
CONFIG = """# What `as_server` does here without being told. `as_server doctor` shows what holds.

[start]
agent = {counter = "counter:Counter"}    # made at each start: ID = "module:Class(argument=value)"

[client]
timeout = 60
"""
TEST = '''"""An agent is a plain class, so most tests need no host."""

from zmqagents import RpcAgentServerLauncher, RpcClient

from counter import Counter


def test_a_counter_adds() -> None:
    assert Counter(1).add(2) == 3


def test_a_counter_on_a_host_counts_for_all_callers() -> None:
    with RpcAgentServerLauncher(custom_agent_classes=[Counter]) as server:
        with RpcClient(server.host, server.port) as client:
            counter = client.create_agent(Counter, start=5)
            assert (counter.add(), list(counter.up_to(8))) == (6, [6, 7])
'''
FILES = {"counter.py": COUNTER, "use.py": USE, "zmqagents.toml": CONFIG, "test_counter.py": TEST}


@click.command(cls=Verb)
@click.argument("directory", required=False, default=".", type=click.Path(file_okay=False))
@as_json
def init(directory: str, as_json: bool) -> None:
    """Make a small project in DIRECTORY: an agent, a program that calls it, its settings and a test.

    Nothing that is there already is touched.
    """
    place = Path(directory)
    there = [name for name in FILES if os.path.lexists(place / name)]
    if there:
        raise errors.ConfigError(f"{place / there[0]} is there already: as_server init DIRECTORY takes an empty one")
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name, text in FILES.items():
            (place / name).write_text(text, encoding="utf-8")
    except OSError as exc:
        raise errors.ConfigError(f"{exc.filename or place} cannot be written: {exc.strerror}") from exc
    paths = [str(place / name) for name in FILES]
    steps = ["as_server start      # in this shell, until Ctrl-C", "python use.py        # in another one"]
    if directory != ".":
        steps.insert(0, f"cd {directory}")
    show(paths if as_json else "\n".join([f"made {', '.join(paths)}; now:", *(f"  {step}" for step in steps)]), as_json)
