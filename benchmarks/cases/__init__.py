"""One script for each budget of the design. Each is a program: ``python -m benchmarks.cases.b05_sleepers [OPTIONS]``.

A case is a generator ``rounds(options)``; it sets up, then gives one list of measurements a round, and takes down. A
measurement is a map: ``subject``, the ``round``, perhaps a ``point`` (the x of a curve), and ``figures`` by name, whose
units are in their names. The program prints each list as a line of JSON, so that the caller can show how far
it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from ..driver import PEERS, Process
from ..loops import NotOffered

Measurement = dict[str, Any]
T = TypeVar("T")

WARM_UP_CALLS = 200
PEER_CLIENTS = 8  # of some of them each is hundreds of MiB and a second of CPU


@dataclass(frozen=True, slots=True)
class Options:
    """How to measure. The figures of a run can be compared only with those of one with equal options."""

    subjects: tuple[str, ...] = ("zmqagents",)  # those of the case that are wanted; floors among them
    transport: str = "ipc"  # ipc, tcp (not encrypted) or curve
    store: str = "local"
    redis_url: str = "redis://localhost:6379"
    rounds: int = 7
    first_round: int = 0  # its number: figures of the same subject in several runs of a case are put together
    quick: bool = False
    core: int | None = None  # the core to be pinned to

    @classmethod
    def from_json(cls, text: str) -> Options:
        values: Any = json.loads(text)
        return cls(**(values | {"subjects": tuple(values.get("subjects", cls().subjects))}))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    def scaled(self, full: T, quick: T) -> T:
        """``quick`` in a quick run."""
        return quick if self.quick else full


Rounds = Callable[[Options], Iterator[list[Measurement]]]


def run(rounds: Rounds) -> None:
    """The program of a case."""
    options = Options.from_json(sys.argv[1] if len(sys.argv) > 1 else "{}")
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})  # before the first thread; children inherit it
    for measurements in rounds(options):
        print(json.dumps(measurements), flush=True)


def in_turn(items: Iterable[T], number: int) -> list[T]:
    """``items`` in an order that moves on with the number of the round, so that nobody always comes first."""
    found = list(items)
    first = number % len(found) if found else 0
    return found[first:] + found[:first]


class Told:
    """A program that does something as often as it is told by each line of its stdin, and says so on its stdout."""

    def __init__(self, source: str, *words: str, new_session: bool = False) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", source, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=new_session,
        )  # fmt: skip

    def begin(self, count: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """Wait until it is done. Raises RuntimeError when the program has failed."""
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError(f"a program has ended with exit status {self._process.wait()}, see its messages")

    def close(self) -> None:
        self._process.communicate()


def seconds_of(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# ---------------------------------------------------------------- cases over subjects


class Subject:
    """The server of a subject and its clients, each a process."""

    def __init__(self, name: str, options: Options, clients: int) -> None:
        self.name = name
        self._stack = contextlib.ExitStack()
        setup = {"transport": options.transport, "store": options.store, "redis_url": options.redis_url}
        try:
            where = self._start("serve", setup).hear()
            self.clients = [self._start("client", where) for _ in range(clients)]
            for client in self.clients:
                client.hear()
        except BaseException:
            self._stack.close()
            raise

    def _start(self, role: str, argument: Any) -> Process:
        return self._stack.enter_context(contextlib.closing(Process(role, self.name, argument)))

    def close(self) -> None:
        self._stack.close()


Measure = Callable[[Subject], list[Measurement]]


def take_turns(
    options: Options, measure: Measure, *, clients: int = 1, warm_up: bool = True
) -> Iterator[list[Measurement]]:
    """Open every subject, then measure all of them in each round. What one does not offer is said once, as a reason."""
    with contextlib.ExitStack() as stack:
        subjects: list[Subject] = []
        for name in options.subjects:
            count = min(clients, PEER_CLIENTS) if name in PEERS else clients
            subjects.append(stack.enter_context(contextlib.closing(Subject(name, options, count))))
        if warm_up:
            for subject in subjects:
                for client in subject.clients:
                    client.ask("lat", calls=WARM_UP_CALLS, payload_bytes=64)
        for number in range(options.first_round, options.first_round + options.rounds):
            found: list[Measurement] = []
            for subject in in_turn(subjects, number):
                try:
                    made = measure(subject)
                except NotOffered as exc:
                    subjects.remove(subject)
                    made = [{"not_offered": str(exc), "figures": {}}]
                found += [{"subject": subject.name, "round": number, **one} for one in made]
            yield found
