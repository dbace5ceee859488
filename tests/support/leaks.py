"""What a test has left behind: the snapshot and the comparison behind the fixture of ``conftest.py``.

A `Snapshot` is a multiset of texts, one for each thing that this process holds and that a test could leak:

* threads, Python's and those of ZeroMQ contexts, which Python does not know;
* child processes, also dead ones that nobody has waited for, and processes that are no children any more
  but were started with this session's ``ZMQAGENTS_RUNTIME`` in their environment (a daemon, an orphan);
* open descriptors, by what they refer to: a socket, pipe or file by its inode or path, an eventfd or epoll
  by its kind and therefore by their number;
* files in the session's runtime directory: sockets, locks and connection files of hosts.

What is there after and was not there before is a leak. Things end a little after the call that ends them
(a ZeroMQ socket is closed by the context's reaper thread), so `leftovers` looks again for a bounded time.

Some things live as long as the process by design, and `warm_up` makes them before the first snapshot: so
nothing has to be excused later, and a second context is a leak as it should be. Linux only: elsewhere the
descriptors and processes are not compared, because there is no /proc.
"""

from __future__ import annotations

import multiprocessing.resource_tracker
import os
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import zmq

SETTLE_S = 2.0  # DESIGN: whatever a stop ends is gone within 2 s
_PROC = Path("/proc/self")
_NATIVE = "native thread "
_LAZY_FILES = {"/dev/random", "/dev/urandom"}  # opened once by libraries without getrandom(2), never closed
_SEGMENT = "descriptor of /memfd:zmqagents (deleted)"
_ended_when_alone: int | None = None  # what `_children_ended` was when no process was found


def snapshot(runtime_dir: Path) -> Counter[str]:
    """What this process holds now, one text each; ``runtime_dir`` is the session's ZMQAGENTS_RUNTIME."""
    return Counter([*_threads(), *_processes(runtime_dir), *_descriptors(), *_files(runtime_dir)])


def leftovers(before: Counter[str], runtime_dir: Path, settle_s: float = SETTLE_S) -> list[str]:
    """What is there now and was not there ``before``; looks until nothing is left or ``settle_s`` is over."""
    deadline = time.monotonic() + settle_s
    while (left := _named(_of_nothing_known(snapshot(runtime_dir) - before, before))) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


def _of_nothing_known(left: Counter[str], before: Counter[str]) -> Counter[str]:
    """``left`` without what belongs to hosts and connections that were there ``before``."""
    connections = sum(count for text, count in before.items() if text.startswith("descriptor of socket:"))
    if left[_SEGMENT] <= connections:  # each may have got its shared memory meanwhile, and has it until its end
        del left[_SEGMENT]
    return _without_children_of_hosts(left, before)


def _without_children_of_hosts(left: Counter[str], before: Counter[str]) -> Counter[str]:
    """``left`` without the processes that a host which was there ``before`` runs agents in: they end with it."""
    known = {int(text.split()[1].rstrip(":")) for text in before if text.startswith("process ")}
    files = {text for text in before if text.endswith(".ipc")}
    return Counter(text for text in left.elements() if not (_parent_of(text) in known or _host_of(text) in files))


def _parent_of(text: str) -> int | None:
    """The parent of the living process that ``text`` names."""
    if not text.startswith("process ") or "waited" in text:
        return None
    try:
        return psutil.Process(int(text.split()[1].rstrip(":"))).ppid()
    except psutil.NoSuchProcess:
        return None


def _host_of(text: str) -> str | None:
    """What names the socket of the host, if ``text`` names a file of one of its children."""
    name, child, _ = text.partition(".child-")
    return f"{name}.ipc" if child else None


def warm_up() -> None:
    """Make what is made once per process and kept on purpose.

    That is pyzmq's own thread and context for buffers sent without copying, and the context that all
    clients of a process share.
    """
    context = zmq.Context()
    try:
        with context.socket(zmq.PAIR) as here, context.socket(zmq.PAIR) as there:
            here.bind("inproc://warm-up")
            there.connect("inproc://warm-up")
            here.send(bytes(zmq.COPY_THRESHOLD + 1), copy=False)
            there.recv()
    finally:
        context.term()
    _use_a_client()


def _use_a_client() -> None:
    import zmqagents

    client_class = getattr(zmqagents, "RpcClient", None)
    if client_class is not None:
        with client_class("127.0.0.1", 9) as client:  # port 9: discard; nobody answers, and nobody has to
            client.is_alive()


def _threads() -> Iterator[str]:
    known = set()
    for thread in threading.enumerate():
        known.add(str(thread.native_id))
        if not thread.name.startswith("pytest_timeout"):  # the timer of the running test, with --timeout-method=thread
            yield f"thread {thread.name} ({type(thread).__name__}, ident {thread.ident})"
    for task in _listing(_PROC / "task"):
        if task not in known:
            yield _NATIVE + task


def _named(left: Counter[str]) -> list[str]:
    """``left`` as sorted texts, native threads by their names, and of these only ZeroMQ's.

    Others are pools that a library keeps (BLAS). The comparison goes by number, not by name, because a
    thread names itself a little after it was started: it would be new once more.
    """
    texts = []
    for text in left.elements():
        if text.startswith(_NATIVE):
            name = _text(_PROC / "task" / text.removeprefix(_NATIVE) / "comm").strip()
            text = f"thread {name} of a ZeroMQ context" if name.startswith("ZMQbg") else ""
        texts.append(text)
    return sorted(filter(None, texts))


def own_processes(runtime_dir: Path) -> set[int]:
    """The pids of all processes that this session started and that are still there, in whatever state."""
    if sys.platform == "linux":
        found = _strangers.others_than(f"\0ZMQAGENTS_RUNTIME={runtime_dir}\0".encode())
    else:
        found = {child.pid for child in psutil.Process().children(recursive=True)}
    tracker = getattr(multiprocessing.resource_tracker._resource_tracker, "_pid", None)  # one per process
    return found - {tracker}


class _Strangers:
    """The processes of the machine that have nothing to do with this session: they are looked at for two seconds.

    So long may one take between its fork and its exec, which gives it the environment that says where it belongs. To
    look at each of a hundred processes before and after each test took 5 ms.
    """

    KNOWN_AFTER_S = 2.0
    FORGOTTEN_AFTER_S = 10.0  # without a look; meanwhile their numbers may have been given to others

    def __init__(self) -> None:
        self._marker = b""
        self._first_seen: dict[str, float] = {}
        self._looked_at = 0.0

    def others_than(self, marker: bytes) -> set[int]:
        """The pids of those that have ``marker`` in their environment, and of all that this process has started."""
        now, me = time.monotonic(), str(os.getpid())
        if marker != self._marker or now - self._looked_at > self.FORGOTTEN_AFTER_S:
            self._first_seen.clear()
        self._marker, self._looked_at = marker, now
        pids = [name for name in _listing(Path("/proc")) if name.isdigit() and name != me]
        new = [pid for pid in pids if now - self._first_seen.get(pid, now) < self.KNOWN_AFTER_S]
        parents = {pid: _parent(pid) for pid in new}
        own = {pid for pid in new if parents[pid] == me or marker in _environment(pid)}
        while more := {pid for pid in new if parents[pid] in own} - own:
            own |= more
        self._first_seen = {pid: self._first_seen.get(pid, now) for pid in pids if pid not in own}
        return {int(pid) for pid in own}


_strangers = _Strangers()


def _processes(runtime_dir: Path) -> list[str]:
    """One text for each; does not look if there was none last time and this process has had no child since."""
    global _ended_when_alone
    children_ended = _children_ended()
    if children_ended is not None and children_ended == _ended_when_alone:
        return []
    found = list(_look_for_processes(runtime_dir))
    _ended_when_alone = None if found else children_ended
    return found


def _children_ended() -> int | None:
    """None while there may be a child; else a number that grows with each child that has been waited for.

    Only a child can start what outlives it, so without one, and with the number of last time, nothing was started
    since. Looking for processes takes longer than most tests take that start none.
    """
    if sys.platform != "linux":
        return None
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # there is none, dead or alive
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt  # a process cannot begin without page faults
    return None


def _look_for_processes(runtime_dir: Path) -> Iterator[str]:
    for pid in own_processes(runtime_dir):
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                yield f"process {pid} ({process.name()}) has ended and nobody waited for it"
            else:
                yield f"process {pid}: {' '.join(process.cmdline())[:100]}"
        except psutil.NoSuchProcess:  # it ended between the two looks
            continue


def _descriptors() -> Iterator[str]:
    tracker = getattr(multiprocessing.resource_tracker._resource_tracker, "_fd", None)
    for number in _listing(_PROC / "fd"):
        try:
            target = os.readlink(f"{_PROC}/fd/{number}")
        except OSError:  # the one that the listing itself had open
            continue
        if target not in _LAZY_FILES and int(number) != tracker:
            yield f"descriptor of {target}"


def _files(runtime_dir: Path) -> Iterator[str]:
    for path in runtime_dir.rglob("*"):
        if not path.is_dir():
            yield f"file {path}"


def _listing(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:  # no /proc here
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # the thread has just ended
        return ""


def _parent(pid: str) -> str:
    """The pid of the process that has started it or has got it since; empty when it has ended."""
    after_the_name = _text(Path("/proc", pid, "stat")).rpartition(") ")[2]  # which may itself hold a parenthesis
    return after_the_name.split(" ")[1] if after_the_name else ""


def _environment(pid: str) -> bytes:
    """The environment that a process was started with; empty when it has ended or is another user's."""
    try:
        return b"\0" + Path("/proc", pid, "environ").read_bytes() + b"\0"
    except OSError:
        return b""
