"""B14: the life of a child: its start, its memory, agents made in it, and how soon they are back when it was killed.

``start_ms`` is what the first agent of an own child takes, from the request to its first answer, where no spare process
stands ready. ``idle_mib`` is the memory of a child with one agent. ``create_per_s`` is how many agents `CALLERS`
programs make in a shared child that is warm, each of them one after the other; ``create_alone_per_s`` is how many one
program makes, which waits for three processes in turn. Then a child is killed `CRASHES` times within a minute, under
calls to four agents of it: the worst of ``told_ms`` (until the calls that ran have their `AgentCrashed`) and of
``back_ms`` (until an agent of it answers again, from the kill). ``back_at_once_ms`` is the same where it is killed
again as soon as it is back, so that no spare process stands ready.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil

from zmqagents import AgentBase, AgentCrashed

from .. import ours
from . import Measurement, Options, Told, run

CRASHES = 5  # as many as one agent may count within a minute
CALLERS = 2
AGENTS = 4
CALLS_PER_S = 200
NAP_S = 0.01
MADE = 1000
IDLE_S = 0.6  # memory is looked at twice a second
BETWEEN_S = 0.6  # from one crash to the next
AT_ONCE_S = 0.03  # the same, as soon as the next call runs


class Sitter(ours.Napper):
    """Is called while its process is killed."""

    def pid(self) -> int:
        return os.getpid()


class Plain(AgentBase):
    """Is made often."""


def start_once(options: Options) -> dict[str, float]:
    """A host of its own, so that no spare process is there."""
    with ours.host(options, Sitter) as (_, client):
        began = time.perf_counter()
        agent: Any = client.create_agent(Sitter, agent_options={"isolation": "process"})
        pid = agent.pid()
        took_s = time.perf_counter() - began
        time.sleep(IDLE_S)
        return {"start_ms": took_s * 1000, "idle_mib": psutil.Process(pid).memory_info().rss / (1 << 20)}


def made_per_s(client: Any, count: int) -> float:
    """Agents made one after the other by one client; they are deleted again, which does not count."""
    began = time.perf_counter()
    agents = [client.create_agent(Plain) for _ in range(count)]
    took_s = time.perf_counter() - began
    for agent in agents:
        client.delete_agent(agent.agent_id)
    return count / took_s


class Caller(Told):
    """A program that makes as many agents as it is told, one after the other."""

    SOURCE = """
import sys
from benchmarks import ours
with ours.client(sys.argv[1], int(sys.argv[2]), sys.argv[3]) as client:
    for line in sys.stdin:
        made = [client.create_agent("Plain") for _ in range(int(line))]
        print("made", flush=True)
"""

    def __init__(self, host: str, port: int, options: Options) -> None:
        super().__init__(self.SOURCE, host, str(port), options.transport)


def made_at_once_per_s(callers: list[Caller], count: int) -> float:
    """Agents made by all of them at the same time."""
    began = time.perf_counter()
    for caller in callers:
        caller.begin(count // len(callers))
    for caller in callers:
        caller.end()
    return count / (time.perf_counter() - began)


class Load:
    """Calls to agents of one child, at a fixed rate, and what became of them."""

    def __init__(self, agents: list[Any]) -> None:
        self.results: list[Any] = []
        self._agents = agents
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._call)
        self._thread.start()

    def _call(self) -> None:
        began, number = time.perf_counter(), 0
        while not self._over.wait(max(0.0, began + number / CALLS_PER_S - time.perf_counter())):
            self.results.append(self._agents[number % len(self._agents)].nap(NAP_S))
            number += 1

    def end(self) -> int:
        """Stop calling; how many calls ended in AgentCrashed. Every other call has its value."""
        self._over.set()
        self._thread.join()
        errors = [error for error in (result.exception(10.0) for result in self.results) if error is not None]
        if strange := [error for error in errors if not isinstance(error, AgentCrashed)]:
            raise strange[0]
        return len(errors)


def crashes(options: Options, between_s: float) -> dict[str, float]:
    """Kill the child of some agents `CRASHES` times under load."""
    with ours.host(options, Sitter, isolation="pool", processes=1) as (_, client):
        return crashes_of(client, between_s)


def crashes_of(client: Any, between_s: float) -> dict[str, float]:
    agents = [client.create_agent(Sitter) for _ in range(AGENTS)]
    load = Load(agents)
    told_ms, back_ms = [], []
    for _ in range(CRASHES):
        pid = agents[0].pid()
        running = client.create_agent(Sitter)
        victim = running.nap(60)  # it runs when the process is killed
        time.sleep(between_s)
        began = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(AgentCrashed):
            victim.result(10.0)
        told_ms.append((time.perf_counter() - began) * 1000)
        while agents[0].pid() == pid:
            pass
        back_ms.append((time.perf_counter() - began) * 1000)
        client.delete_agent(running.agent_id)
    lost = load.end()
    return {"told_ms": max(told_ms), "back_ms": max(back_ms), "calls": len(load.results), "lost_calls": lost}


def making(options: Options, count: int) -> dict[str, float]:
    """How fast agents are made."""
    with contextlib.ExitStack() as stack:
        server, client = stack.enter_context(ours.host(options, Plain, isolation="pool", processes=1))
        made_per_s(client, count)  # warm
        alone = made_per_s(client, count)
        callers = [Caller(server.host, server.port or 0, options) for _ in range(CALLERS)]
        for caller in callers:
            stack.callback(caller.close)
        made_at_once_per_s(callers, CALLERS)  # they are connected then
        return {"create_alone_per_s": alone, "create_per_s": made_at_once_per_s(callers, count)}


def rounds(options: Options) -> Iterator[list[Measurement]]:
    made = options.scaled(MADE, MADE // 2)
    for number in range(options.first_round, options.first_round + options.rounds):
        figures = start_once(options)
        with (
            ours.host(options, Plain, isolation="pool", processes=1) as (server, client),
            contextlib.ExitStack() as stack,
        ):
            made_per_s(client, made)  # warm
            figures["create_alone_per_s"] = made_per_s(client, made)
            callers = [Caller(server.host, server.port or 0, options) for _ in range(CALLERS)]
            for caller in callers:
                stack.callback(caller.close)
            made_at_once_per_s(callers, CALLERS)  # they are connected then
            figures["create_per_s"] = made_at_once_per_s(callers, made)
        figures |= crashes(options, BETWEEN_S)
        figures["back_at_once_ms"] = crashes(options, AT_ONCE_S)["back_ms"]
        yield [{"subject": "zmqagents", "round": number, "figures": figures}]


if __name__ == "__main__":
    run(rounds)
