"""The processes of children: each is started, looked after and buried by a thread of its own.

What happens to a process is told to the router thread: `up` when it listens, `gone` when it has ended, whatever the
cause. The kernel tells of an end by a descriptor of the process (pidfd), so nobody waits for a connection to break.

Twice a second the memory of a process with a limit is looked at; above it the process is killed. What it allocates in
between is bounded by the kernel (RLIMIT_DATA), at some more than twice the limit. The last lines of its stderr are
kept, and passed on. Linux takes a child first where memory is short (oom_score_adj).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import resource
import select
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ..config import MEBIBYTE, Parent
from ..process import children
from ..process.memory import resident_bytes
from ..process.watching import readable
from ..telemetry import program

__all__ = ["Death", "Hatch", "Nursery", "Owner", "Process", "Upbringing"]

log = logging.getLogger(__name__)

SPARE_AFTER_S = 0.1  # after another process is up: its agents are made first
LOOK_S = 0.5  # how often memory is looked at
LAST_LINES, LINE_CHARS = 20, 400  # of stderr
MAX_LINE_BYTES = 65_536  # a longer one is taken for several
FATAL = "Fatal Python error"  # as `faulthandler` begins when the process crashes
STACKS_MB = 256  # of stacks of threads, which the kernel counts as data although most of them is never used
OOM_SCORE = 500  # above that of the host
START_LIMIT_S = 30.0
END_S = 2.0  # for a process that is asked to end in order; its own grace is shorter
KILLED_S = 0.5  # a process that was killed has ended after that
STDERR_LEFT_S = 0.05  # how long the end of stderr is waited for, once the process has ended


class Hatch(Protocol):
    """Starts a process that runs agents of this host."""

    def __call__(self, parent: Parent, name: str, stderr: int, env: Mapping[str, str] | None, /) -> children.Child: ...


Hatching = Callable[[str, int, "Mapping[str, str] | None"], children.Child]  # the same for one parent


@dataclass(frozen=True)
class Upbringing:
    """What the process of a child is to be like. ``memory_mb``: None for no limit; ``env``: beside the host's."""

    memory_mb: int | None = None
    env: Mapping[str, str] | None = None


class Death(NamedTuple):
    """How a process has ended. ``why``: the reason if this host has ended it, "" if it has ended by itself."""

    status: int
    why: str
    memory_mb: float
    stderr: str

    @property
    def text(self) -> str:
        """In words, with its own last ones."""
        return f"{self.how}; its last words: {self.stderr}" if self.stderr else self.how

    @property
    def how(self) -> str:
        """In words, on one line."""
        how = self.why or f"its process has ended: {children.how_it_ended(self.status).partition(',')[0]}"
        return f"{how} (memory: {self.memory_mb:.0f} MiB)"


class Process:
    """One process, from its start to its end. ``up`` and ``gone`` are called in the thread that looks after it, and
    ``tick`` twice a second between.

    `kill` and `end` may be called from any thread, before the start as well.
    """

    def __init__(
        self, name: str, hatch: Hatching, upbringing: Upbringing, pause_s: float,
        up: Callable[[Process, str], None], gone: Callable[[Process, Death], None], tick: Callable[[Process], None],
    ) -> None:  # fmt: skip
        self.name = name
        self.pid = 0  # until it is started
        self.memory_mb = 0.0
        self.ended = threading.Event()
        self._hatch = hatch
        self._upbringing = upbringing
        self._memory_mb = upbringing.memory_mb
        self._pause_s = pause_s
        self._up = up
        self._gone = gone
        self._tick = tick
        self._child: children.Child | None = None
        self._why = ""
        self._in_order = False
        self._ends_by = math.inf
        self._path = ""  # of its socket, once it listens
        self._stop = threading.Event()
        self._pause_over = threading.Event()
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._is_fatal = False  # `faulthandler` has written the stacks of a crash
        self._rest = b""  # of stderr: the line that is not complete
        threading.Thread(target=self._live, name=f"zmqagents-{name}", daemon=True).start()

    def __repr__(self) -> str:
        return f"<Process {self.name} [pid {self.pid or 'none'}, {self.memory_mb:.0f} MiB]>"

    def kill(self, why: str) -> None:
        """End it at once, with what it has started; its calls are told ``why``, unless it has ended by itself."""
        child = self._child
        if child is None or not readable([child.pidfd], 0):
            self._why = self._why or why
        self._stop.set()
        self._pause_over.set()
        if child is not None:
            child.kill_group()
            child.signal(signal.SIGKILL)

    def hurry(self) -> None:
        """Start it now, without the rest of its pause."""
        self._pause_over.set()

    def limit_memory(self, memory_mb: int | None) -> None:
        """From now on it may have so many MiB; None: as many as there are."""
        self._memory_mb = memory_mb
        self._bound_data(self.pid)

    def end(self, why: str) -> None:
        """Ask it to end in order, which it must have done within `END_S`."""
        self._in_order = True
        self._why = self._why or why
        self._ends_by = time.monotonic() + END_S
        self._stop.set()
        self._pause_over.set()
        child = self._child
        if child is not None:
            self._tell_to_end(child)

    def _tell_to_end(self, child: children.Child) -> None:
        child.say(b"stop\n")
        if not self._path:  # it may not listen to that yet; once it does, the signal does nothing
            child.signal(signal.SIGTERM)

    # ------------------------------------------------------------ its thread

    def _live(self) -> None:
        death = Death(0, self._why or "it was not started", 0.0, "")
        try:
            self._pause_over.wait(self._pause_s)
            if not self._stop.is_set():
                death = self._run()
        except Exception as exc:  # it cannot be started
            death = Death(1, f"its process could not be started: {exc}", 0.0, self._last_words())
        finally:
            self._gone(self, death)
            self.ended.set()
        if not self._in_order:  # here, for a write to a stderr that nobody reads would hold up the router thread
            log.warning("%s: %s", self.name, death.how)

    def _run(self) -> Death:
        stderr_r, stderr_w = os.pipe()
        os.set_blocking(stderr_r, False)
        try:
            env = None if self._upbringing.env is None else {**os.environ, **self._upbringing.env}
            try:
                child = self._child = self._hatch(self.name, stderr_w, env)
            finally:
                os.close(stderr_w)
            try:
                return self._attend(child, stderr_r)
            finally:
                child.kill_group()
                child.kill()
                child.close()
                self._clear_up()
        finally:
            os.close(stderr_r)

    def _attend(self, child: children.Child, stderr_r: int) -> Death:
        self.pid = child.pid
        self._set_limits(child.pid)
        if self._stop.is_set():  # told meanwhile
            self._tell_to_end(child)
        try:
            bound = child.wait_ready(START_LIMIT_S)["bound"]
        except Exception:
            self._read(stderr_r)
            if not self._stop.is_set():
                raise
        else:
            self._path = bound[3]
            self._up(self, bound[3])
        next_look = time.monotonic()
        while not readable([child.pidfd], 0):
            now = time.monotonic()
            if now >= next_look:
                next_look = now + LOOK_S
                self._look_at_memory(child.pid)
                self._tick(self)
                if now >= self._ends_by:
                    child.kill_group()
            if not _takes_more(sys.stderr):  # nobody reads it: then the child waits, and this thread does not
                readable([child.pidfd], STDERR_LEFT_S)
            elif readable([stderr_r, child.pidfd], next_look - now) and not self._read(stderr_r):
                readable([child.pidfd], LOOK_S)  # it has closed its stderr
        child.kill_group()
        end = time.monotonic() + STDERR_LEFT_S
        while self._read(stderr_r) and time.monotonic() < end:
            readable([stderr_r], STDERR_LEFT_S)
        status = child.wait(KILLED_S)
        return Death(status or 0, self._why, self.memory_mb, self._last_words())

    def _clear_up(self) -> None:
        """Remove what a process leaves behind that could not do so itself."""
        for path in (self._path, f"{self._path}.lock") if self._path else ():
            with contextlib.suppress(OSError):
                os.unlink(path)

    def _set_limits(self, pid: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            with open("/proc/self/oom_score_adj") as file:
                own = int(file.read())
            with open(f"/proc/{pid}/oom_score_adj", "w") as file:
                file.write(str(min(1000, own + OOM_SCORE)))
        self._bound_data(pid)

    def _bound_data(self, pid: int) -> None:
        if self._memory_mb is not None and pid:
            with contextlib.suppress(OSError, ValueError):
                most = (2 * self._memory_mb + STACKS_MB) * MEBIBYTE
                resource.prlimit(pid, resource.RLIMIT_DATA, (most, most))

    def _look_at_memory(self, pid: int) -> None:
        used = resident_bytes(pid)
        if not used:  # it has ended
            return
        self.memory_mb, limit = used / MEBIBYTE, self._memory_mb
        if limit is not None and self.memory_mb > limit:
            self.kill(f"it was killed, for it had taken {self.memory_mb:.0f} MiB, limit {limit} (memory_mb)")

    def _read(self, stderr_r: int) -> bool:
        """Take what it has written, and pass it on; False at the end."""
        try:
            data = os.read(stderr_r, select.PIPE_BUF)
        except BlockingIOError:
            return True
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            lines, self._rest = [*lines, self._rest], b""
        if program.current() is None:
            with contextlib.suppress(Exception):  # None, or closed
                if _takes_more(sys.stderr):
                    sys.stderr.buffer.write(data)
                    sys.stderr.flush()
        for line in lines:
            if line.strip():
                text = line.decode("utf-8", "replace")
                said = program.relay(text, self.name, self.pid)
                if said:
                    self._note(said[:LINE_CHARS])
        return bool(data)

    def _note(self, line: str) -> None:
        """Keep one of the last lines. Of the stacks of a crash in C, the first tells what happened."""
        if line.startswith(FATAL):
            self._is_fatal = True
            self._lines.clear()
        if not self._is_fatal or len(self._lines) < LAST_LINES:
            self._lines.append(line)

    def _last_words(self) -> str:
        rest = self._rest.decode("utf-8", "replace")[-LINE_CHARS:]
        return "\n".join([*self._lines, rest] if rest.strip() and not self._is_fatal else self._lines)


def _takes_more(stream: Any) -> bool:
    """Whether a write of `select.PIPE_BUF` bytes would not wait."""
    poll = select.poll()
    try:
        poll.register(stream.fileno(), select.POLLOUT)
    except Exception:  # None, or closed, or no file
        return True
    return bool(poll.poll(0))


class Owner(Protocol):
    """Whose process it is: the router thread tells it what happens. Each method is an event, and gives effects."""

    def on_up(self, process: Process, path: str) -> list[Any]:
        """The process listens at the socket ``path``."""

    def on_gone(self, process: Process, death: Death) -> list[Any]:
        """The process has ended."""

    def on_tick(self) -> list[Any]:
        """Half a second is over."""


class Nursery:
    """All processes of one host's children. ``post`` hands an event to the router thread, which calls all methods.

    Once a process is up there is a *spare* one as well, which the next child takes over: a start takes a while.
    """

    def __init__(self, server_id: str, hatch: Hatching, post: Callable[..., None]) -> None:
        self._server_id = server_id
        self._hatch = hatch
        self._post = post
        self._count = 0
        self._owners: dict[Process, Owner | None] = {}  # None: it is spare
        self._paths: dict[Process, str] = {}  # of those that listen
        self._ends = False

    def __len__(self) -> int:
        return len(self._owners)

    def __repr__(self) -> str:
        return f"<Nursery [{len(self._owners)} processes]>"

    def begin(self, upbringing: Upbringing, pause_s: float, owner: Owner) -> Process:
        """A process for ``owner``: the spare one, or one that is started in ``pause_s`` seconds."""
        spare = next((process for process, other in self._owners.items() if other is None), None)
        if spare is None or upbringing.env is not None or pause_s:
            process = self._start(upbringing, pause_s, owner)
        else:
            process = spare
            self._owners[process] = owner
            process.limit_memory(upbringing.memory_mb)
            if process in self._paths:
                self._post(self._on_up, process, self._paths[process])
            else:
                process.hurry()
        return process

    def _start(self, upbringing: Upbringing, pause_s: float, owner: Owner | None) -> Process:
        self._count += 1
        post = self._post
        process = Process(
            f"{self._server_id[:48]}.child-{self._count}", self._hatch, upbringing, pause_s,
            lambda process, path: post(self._on_up, process, path),
            lambda process, death: post(self._on_gone, process, death),
            lambda process: post(self._on_tick, process),
        )  # fmt: skip
        self._owners[process] = owner
        return process

    def _on_up(self, process: Process, path: str) -> list[Any]:
        if process not in self._owners:  # it has ended meanwhile
            return []
        self._paths[process] = path
        owner = self._owners[process]
        if owner is None:
            return []
        if not self._ends and None not in self._owners.values():
            self._start(Upbringing(), SPARE_AFTER_S, None)
        return owner.on_up(process, path)

    def _on_gone(self, process: Process, death: Death) -> list[Any]:
        self._paths.pop(process, None)
        owner = self._owners.pop(process, None)
        return [] if owner is None else owner.on_gone(process, death)

    def _on_tick(self, process: Process) -> list[Any]:
        owner = self._owners.get(process)
        return [] if owner is None else owner.on_tick()

    def end_all(self) -> None:
        """Ask all processes to end in order."""
        self._ends = True
        for process in list(self._owners):
            process.end("the host has stopped")

    def close(self, timeout_s: float) -> bool:
        """Kill what has not ended within ``timeout_s`` seconds; False if any did not end even so."""
        end = time.monotonic() + timeout_s
        everything = list(self._owners)  # they go from there meanwhile
        left = [process for process in everything if not process.ended.wait(max(0.0, end - time.monotonic()))]
        for process in left:
            process.kill("the host has stopped")
        end = time.monotonic() + KILLED_S
        return not [process for process in left if not process.ended.wait(max(0.0, end - time.monotonic()))]
