"""How often a journey through the package changes file: ``python -m benchmarks.journeys [--detail NAME]``.

A journey is what one request of a user sets off, in the client and in the host: a call, a cancel, a launch. For each of
them, and for each of the two processes, three numbers:

files      files of the package of which a function was called (at a first launch: or the module was imported)
changes    calls that are not to the same file as the call before them in the same thread: who follows the journey from
           function to function opens another file so often
crossings  calls whose caller, the nearest one in the package, is in another file; returns are not counted

Both processes are watched by `sys.setprofile`, in all their threads. The host is a fork of the measuring program, so a
hook that runs after a fork starts the watching there; the package itself is not touched, and only its public interface
is used: the same program measures an older or a newer layout, with ``PYTHONPATH`` set to it.

What is counted must not depend on who is faster. So the host holds still for a moment at its first step, and its agents
take as long: by then whoever has nothing more to do is asleep. Each journey is made several times, and what happens
beside it now and then (a beat of the store, say) does not show in the median.
"""

from __future__ import annotations

import _thread
import argparse
import contextlib
import json
import os
import pickle
import posix
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import redis

import zmqagents
from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, async_func, current_call

from .ours import own_keys

PACKAGE = os.path.dirname(os.path.abspath(zmqagents.__file__)) + os.sep
PAUSE_S = 0.005  # of the host at its first step, and of an agent's method
QUIET_S = 0.03  # a journey is over when nothing has happened anywhere for so long
STORE_START_S = 20.0
PROGRAM_S = 600.0
ITEMS = 8
SHORT_RUNS = 150


# ---------------------------------------------------------------- watching one process


class Step(NamedTuple):
    """A call that changes the file, or whose caller is in another one."""

    thread: str
    caller: str  # file:function, the nearest one in the package; "" if a thread begins here
    callee: str
    is_change: bool
    is_crossing: bool


class Track(NamedTuple):
    """What one process has done in one journey."""

    files: int
    changes: int
    crossings: int
    steps: list[Step]


class Watcher:
    """Notes the calls of functions of the files below ``root`` in this process, once it is `installed` and ``on``."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._last: dict[int, str] = {}  # file of the latest call, by thread
        self._files: set[str] = set()
        self._steps: list[Step] = []
        self.on = False
        self.calls = 0  # in all, also while it is off
        self.pauses = False  # the next call of all waits for `PAUSE_S`
        self.at_exit: Callable[[], None] = lambda: None  # called before `os._exit`

    def install(self) -> None:
        """Watch this thread, and every thread that is started from now on."""
        threading.setprofile(self.see)
        sys.setprofile(self.see)

    def begin(self) -> None:
        self._last, self._files, self._steps = {}, set(), []
        self.on = True

    def end(self) -> Track:
        self.on = False
        changes = sum(step.is_change for step in self._steps)
        crossings = sum(step.is_crossing for step in self._steps)
        return Track(len(self._files), changes, crossings, self._steps)

    def see(self, frame: FrameType, event: str, what: Any) -> None:
        """What `sys.setprofile` calls."""
        if event == "call":
            if frame.f_code.co_filename.startswith(self._root):
                self.calls += 1
                if self.on:
                    self._note(frame)
        elif event == "c_call" and what is posix._exit:  # `os._exit` may be another: coverage puts its own there
            self.at_exit()

    def _note(self, frame: FrameType) -> None:
        if self.pauses:
            self.pauses = False
            time.sleep(PAUSE_S)
        file, callee = self._place(frame)
        before = self._last.get(threading.get_ident(), file)
        self._last[threading.get_ident()] = file
        self._files.add(file)
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(self._root):
            caller = caller.f_back
        caller_file, caller_name = ("", "") if caller is None else self._place(caller)
        is_crossing = caller is not None and caller_file != file
        step = Step(threading.current_thread().name, caller_name, callee, before != file, is_crossing)
        if step.is_change or step.is_crossing:
            self._steps.append(step)

    def _place(self, frame: FrameType) -> tuple[str, str]:
        file = frame.f_code.co_filename[len(self._root) :]
        return file, f"{file}:{frame.f_code.co_name}"


# ---------------------------------------------------------------- watching the host as well


class Both:
    """The watchers of this process and of the hosts that it forks, which are told what to do over a socket."""

    def __init__(self) -> None:
        self._watcher = Watcher(PACKAGE)
        self._host: socket.socket | None = None  # what the latest host is told over
        self._end: socket.socket | None = None  # the host's end of it
        os.register_at_fork(before=self._before_fork, after_in_parent=self._in_parent, after_in_child=self._in_child)
        self._watcher.install()

    def _before_fork(self) -> None:
        self._host, self._end = socket.socketpair()

    def _in_parent(self) -> None:
        assert self._end is not None
        self._end.close()

    def _in_child(self) -> None:
        assert self._host is not None
        self._host.close()
        self._watcher = Watcher(PACKAGE)
        self._watcher.at_exit = self._say_last
        self._watcher.install()
        self._watcher.begin()
        _thread.start_new_thread(self._obey, ())  # such a thread is not watched

    def _obey(self) -> None:
        end, watcher = self._end, self._watcher
        assert end is not None
        with contextlib.suppress(EOFError, OSError):
            while True:
                word = _receive(end)
                if word == "begin":
                    watcher.begin()
                    watcher.pauses = True
                _send(end, watcher.end() if word == "end" else watcher.calls)

    def _say_last(self) -> None:
        assert self._end is not None
        with contextlib.suppress(OSError):  # nobody listens: another process of the program
            _send(self._end, self._watcher.end())

    def _ask_host(self, word: str) -> Any:
        assert self._host is not None
        _send(self._host, word)
        return _receive(self._host)

    def settle(self) -> None:
        """Wait until both processes are quiet."""
        before = None
        while (now := (self._watcher.calls, self._ask_host("calls"))) != before:
            before = now
            time.sleep(QUIET_S)

    def journey(self, go: Callable[[], object]) -> tuple[Track, Track]:
        """What ``go()`` sets off here, and in the host."""
        self.settle()
        self._ask_host("begin")
        self._watcher.begin()
        go()
        self.settle()
        return self._watcher.end(), self._ask_host("end")

    def launch(self, go: Callable[[], object]) -> tuple[Track, Track]:
        """The same for what makes the host."""
        self._watcher.begin()
        go()
        mine = self._watcher.end()
        self.settle()
        return mine, self._ask_host("end")

    def shutdown(self, go: Callable[[], object]) -> tuple[Track, Track]:
        """The same for what ends it: its last word is its track."""
        self.settle()
        self._ask_host("begin")
        self._watcher.begin()
        go()
        mine = self._watcher.end()
        assert self._host is not None
        theirs = _receive(self._host)
        self._host.close()
        return mine, theirs


def _send(sock: socket.socket, what: Any) -> None:
    data = pickle.dumps(what)
    sock.sendall(struct.pack("I", len(data)) + data)


def _receive(sock: socket.socket) -> Any:
    return pickle.loads(_exactly(sock, struct.unpack("I", _exactly(sock, 4))[0]))


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)


# ---------------------------------------------------------------- the journeys


class Station(AgentBase):
    """Takes its time: its calls belong to a worker thread."""

    def echo(self, value: bytes) -> bytes:
        time.sleep(PAUSE_S)
        return value

    @async_func
    def aecho(self, value: bytes) -> bytes:
        time.sleep(PAUSE_S)
        return value

    def same(self, value: bytes) -> bytes:
        return value

    def items(self, count: int) -> Iterator[int]:
        yield from range(count)

    @async_func
    def stay(self) -> None:
        """Until it is cancelled, and a moment longer."""
        call = current_call()
        assert call is not None
        call.wait_cancelled()
        time.sleep(PAUSE_S)


class Relay(AgentBase):
    """Passes its calls on to another agent of its host."""

    def __init__(self, other: Station) -> None:
        self._other = other

    def echo(self, value: bytes) -> bytes:
        return self._other.echo(value)


class Ways:
    """The journeys of a client. Each method gets it ready and gives what is to be watched."""

    def __init__(self, client: RpcClient) -> None:
        self._station: Any = client.create_agent(Station)
        self._relay: Any = client.create_agent(Relay, self._station)
        self._open: Any = None

    def sync_call(self) -> Callable[[], object]:
        self._occupy()
        return lambda: self._station.echo(b"x")

    def sync_call_alone(self) -> Callable[[], object]:
        """After some calls in a row of one thread, and nothing beside them, that thread reads the socket itself."""
        for _ in range(8):
            self._station.echo(b"x")
        return lambda: self._station.echo(b"x")

    def async_call(self) -> Callable[[], object]:
        self._occupy()
        return lambda: self._station.aecho(b"x").result()

    def quick_call(self) -> Callable[[], object]:
        """After many short runs of a method the router thread runs it itself."""
        for _ in range(SHORT_RUNS):
            self._station.same(b"x")
        return lambda: self._station.same(b"x")

    def stream(self) -> Callable[[], object]:
        self._occupy()
        return lambda: list(self._station.items(ITEMS))

    def cancel(self) -> Callable[[], object]:
        self._open = self._station.stay()
        return lambda: self._open.cancel()

    def nested_call(self) -> Callable[[], object]:
        self._occupy()
        return lambda: self._relay.echo(b"x")

    def _occupy(self) -> None:
        """After this the client's I/O thread reads the socket."""
        self._station.aecho(b"x").result()


LAUNCH, RELAUNCH, SHUTDOWN = "launch", "launch again", "shutdown"
OF_CLIENTS: dict[str, Callable[[Ways], Callable[[], object]]] = {
    "sync call": Ways.sync_call,
    "sync call alone": Ways.sync_call_alone,
    "quick call": Ways.quick_call,
    "async call": Ways.async_call,
    "stream": Ways.stream,
    "cancel": Ways.cancel,
    "nested call": Ways.nested_call,
}
WITH_REDIS = {f"{name}, redis": OF_CLIENTS[name] for name in ("async call", "cancel")}
NAMES = (*OF_CLIENTS, *WITH_REDIS, LAUNCH, RELAUNCH, SHUTDOWN)

Tracks = dict[str, list[tuple[Track, Track]]]  # of the client and of the host, by journey


def travel(names: list[str], runs: int, redis_url: str) -> Tracks:
    """The journeys of one host. ``redis_url`` "": it keeps its results itself."""
    both = Both()
    store: dict[str, Any] = {"pool_type": "redis", "redis_url": redis_url} if redis_url else {}
    ways_of = WITH_REDIS if redis_url else OF_CLIENTS
    tracks: Tracks = {}
    server = RpcAgentServerLauncher(custom_agent_classes=[Station, Relay], start_method="fork", **store)
    tracks[LAUNCH] = [both.launch(server.launch)]
    client = RpcClient(server.host, server.port)
    ways = Ways(client)
    for name in [name for name in ways_of if name in names]:
        ways_of[name](ways)()  # what is loaded, connected or learned with the first time
        tracks[name] = [both.journey(ways_of[name](ways)) for _ in range(runs)]

    def leave() -> None:
        client.close()
        server.shutdown()

    tracks[SHUTDOWN] = [both.shutdown(leave)]
    if RELAUNCH in names:
        tracks[RELAUNCH] = [both.launch(server.launch)]
        server.shutdown()
    return {name: tracks[name] for name in names}


# ---------------------------------------------------------------- all of it


def measure(names: list[str], runs: int, programs: int, redis_url: str) -> Tracks:
    """The journeys, made by ``programs`` processes one after the other: only a new one launches for the first time."""
    found: Tracks = {}
    for _ in range(programs):
        for url in ("", redis_url):
            wanted = [name for name in names if (name in WITH_REDIS) == bool(url)]
            if wanted:
                for name, tracks in _program(wanted, runs, url).items():
                    found.setdefault(name, []).extend(tracks)
    return {name: found[name] for name in NAMES if name in found}


def _program(names: list[str], runs: int, redis_url: str) -> Tracks:
    command = [sys.executable, "-m", "benchmarks.journeys", "--program", json.dumps([names, runs, redis_url])]
    told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, timeout=PROGRAM_S, check=True).stdout)
    return {name: [(_track(mine), _track(theirs)) for mine, theirs in found] for name, found in told.items()}


def _track(told: list[Any]) -> Track:
    files, changes, crossings, steps = told
    return Track(files, changes, crossings, [Step(*step) for step in steps])


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """The URL of a store for this run; "" if there is no redis-server on the PATH."""
    binary = shutil.which("redis-server")
    if binary is None:
        yield ""
        return
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="zb") as directory:
        path = f"{directory}/redis.sock"
        options = ["--port", "0", "--unixsocket", path, "--dir", directory, "--save", "", "--appendonly", "no"]
        server = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL)
        try:
            _wait_for_store(f"unix://{path}")
            yield f"unix://{path}"
        finally:
            server.terminate()
            server.wait()


def _wait_for_store(url: str) -> None:
    end = time.monotonic() + STORE_START_S
    with redis.Redis.from_url(url) as client:
        while True:
            try:
                client.ping()
                return
            except redis.RedisError:  # not yet
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)


# ---------------------------------------------------------------- telling


def table(found: Tracks) -> Iterator[str]:
    """The medians, and in brackets the least and the most changes that there were."""
    head = "files  changes          crossings"
    yield f"{'':20}{'client':40}host"
    yield f"{'journey':20}{head:40}{head}   runs"
    for name, tracks in found.items():
        sides = [_medians([pair[side] for pair in tracks]) for side in (0, 1)]
        yield f"{name:20}{sides[0]:40}{sides[1]:36}{len(tracks):4}"


def _medians(tracks: list[Track]) -> str:
    files, changes, crossings = (
        statistics.median_low(values) for values in zip(*(track[:3] for track in tracks), strict=True)
    )
    extremes = f"{changes} ({min(track.changes for track in tracks)}-{max(track.changes for track in tracks)})"
    return f"{files:5}  {extremes:15}  {crossings:9}"


def detail(tracks: list[tuple[Track, Track]]) -> Iterator[str]:
    """The crossings of a run like most, in order and then by their number."""
    for side, name in enumerate(("client", "host")):
        mine = [pair[side] for pair in tracks]
        usual = statistics.median_low(track.changes for track in mine)
        track = next(track for track in mine if track.changes == usual)
        yield f"\n{name}: {track.files} files, {track.changes} changes (*), {track.crossings} crossings (>)"
        for step in track.steps:
            marks = "*"[: step.is_change] + ">"[: step.is_crossing]
            yield f"  {marks:2} {step.thread:28} {step.caller or '(begins)':40} {step.callee}"
        crossed = [step for step in track.steps if step.is_crossing]
        yield f"\n{name}: crossings by caller and callee"
        for (caller, callee), count in Counter((step.caller, step.callee) for step in crossed).most_common():
            yield f"  {count:3} {caller:40} {callee}"
        yield f"\n{name}: crossings by files"
        for files, count in Counter(tuple(map(_file_of, step[1:3])) for step in crossed).most_common():
            yield f"  {count:3} {' -> '.join(files)}"


def _file_of(place: str) -> str:
    return place.rpartition(":")[0]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.journeys", description="Count changes of file.")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--detail", choices=NAMES, metavar="NAME", help="each crossing of this one; measure no other")
    parser.add_argument("--runs", type=int, default=7, help="of each journey in each program (7)")
    parser.add_argument("--programs", type=int, default=3, help="that launch a host (3)")
    parser.add_argument("--redis-url", help="default: start the redis-server on the PATH")
    parser.add_argument("--program", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    if given.program:
        with own_keys():
            tracks = travel(*json.loads(given.program))
        print(json.dumps(tracks))
        return 0
    names = [given.detail] if given.detail else given.only
    print(f"journeys through {Path(PACKAGE)}\n")
    with contextlib.ExitStack() as stack:
        url = given.redis_url or (stack.enter_context(redis_server()) if WITH_REDIS.keys() & set(names) else "")
        if not url and WITH_REDIS.keys() & set(names):
            print("no redis-server on the PATH: the journeys with Redis are left out")
            names = [name for name in names if name not in WITH_REDIS]
        found = measure(names, given.runs, given.programs, url)
    print(*table(found), sep="\n")
    if given.detail:
        print(*detail(found[given.detail]), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
