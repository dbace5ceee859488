"""A process that keeps a host running: its child is the host, and is started again when it crashes.

    launcher or shell ──life line──► supervisor ──life line──► host

It has one thread, no ZeroMQ and none of the agents' files, so there is little in it that could fail, and it can fork
where the launching process no longer could: the next host is there within some ten milliseconds. That host has the
same port, server id, socket path and keys, and another epoch. The agents of the dead one are gone.

Started again is what ended by a signal or with a status other than 0. Not what was stopped, even if a timer had to end
it (SIGALRM, see `end_timer`), and not what cannot work the second time either (settings, agent files). With more than
`LIMIT` crashes within `WINDOW_S` it is given up.

The words that reach a supervisor: SIGTERM and SIGINT (passed on; what does not end is killed), any byte on its own
life line (the host may end now and is not to be started again), the end of that line (the launcher is dead).

    exit status   0 stopped as asked   1 it did not start, or had to be killed   70 given up   75 the parent is gone
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NoReturn

from .. import discovery, errors
from ..agents.factories.factory import Maker
from ..config import END_WAIT_S, BrokerConfig
from ..process import children, life_line, signals
from ..process.crashes import Crashes
from ..process.end_timer import FORCED
from ..process.watching import readable
from . import child_main
from .systemd import Notifier

__all__ = ["EXIT_GIVEN_UP", "Supervisor", "main", "run_forked"]

log = logging.getLogger(__name__)

EXIT_GIVEN_UP = 70  # EX_SOFTWARE of sysexits.h
LIMIT = 5
WINDOW_S = 60.0
TICK_S = 0.05  # where the system cannot tell of a child's end by a descriptor

# They would fail again.
_HOPELESS = (errors.ConfigError, errors.LoadError, errors.MissingExtra)


class Supervisor:
    """`run` it in the main thread of a process that has no other.

    ``life_fd``: the life line of this process, None if it has none. ``new_session``: see `children.fork`.
    """

    def __init__(
        self, config: BrokerConfig, classes: Sequence[Maker], *, launch_timeout_s: float, life_fd: int | None = None,
        new_session: bool = False, notifier: Notifier | None = None,
    ) -> None:  # fmt: skip
        self.config = config
        self._classes = classes
        self._launch_timeout_s = launch_timeout_s
        self._life_fd = life_fd
        self._new_session = new_session
        self._notifier = notifier or Notifier()
        self._wake_r = self._wake_w = -1
        self._child: children.Child | None = None
        self._signals = 0
        self._is_last = False  # what runs now is not to be started again
        self._is_orphan = False
        self._kill_at: float | None = None

    def run(self, ready: Callable[[dict[str, Any], int], object]) -> int:
        """Keep the host running until it is stopped or given up; the exit status.

        ``ready`` gets the report and the pid of the first host. Raises what kept that one from starting, or a later
        one from starting again if it would do so for ever.
        """
        crashes = Crashes(LIMIT, WINDOW_S)
        with _wake_ups() as (self._wake_r, self._wake_w):
            report = self._start()
            if report is None:
                return self._status(0)
            assert self._child is not None
            self.config = self.config.replace(port=report["bound"][2])
            ready(report, self._child.pid)
            self._notifier.ready(f"listening on port {self.config.port} as {self.config.server_id}")
            while True:
                status = self._outlive()
                died = time.monotonic()
                if status in (0, FORCED) or self._is_last:
                    return self._status(status)
                how = f"the host process {self._child.pid} has ended ({children.how_it_ended(status)})"
                if not self._start_again(crashes, how, died):
                    return self._status(0) if self._is_last else EXIT_GIVEN_UP

    def _start_again(self, crashes: Crashes, how: str, died: float) -> bool:
        """Until it listens. False: it is not to, or has been given up."""
        name = self.config.server_id
        while (pause_s := crashes.pause(time.monotonic())) is not None:
            times = f"{len(crashes)} of {crashes.limit} times in {crashes.window_s:g} s"
            log.warning("%s: %s; starting it again in %.2f s (%s)", name, how, pause_s, times)
            self._notifier.status(f"{how}; starting it again")
            if not self._pause(pause_s):
                return False
            try:
                report = self._start()
            except errors.ZmqAgentsError as exc:
                if isinstance(exc, _HOPELESS):
                    raise
                how = f"it could not start: {exc}"
                continue
            if report is None:
                return False
            assert self._child is not None
            took_s = time.monotonic() - died
            log.warning("%s: running again %.2f s later, as process %d", name, took_s, self._child.pid)
            self._notifier.status(f"listening on port {self.config.port} as {name}")
            return True
        log.error("%s: %s; given up after %d crashes in %g s", name, how, crashes.limit + 1, crashes.window_s)
        return False

    def _start(self) -> dict[str, Any] | None:
        """A child that listens, and its report; None if it was not to start after all."""
        child = self._child = self._begin()
        try:
            while not (self._signals or self._is_orphan):
                interrupts = [fd for fd in (self._wake_r, self._life_fd) if fd is not None]
                try:
                    return child.wait_ready(self._launch_timeout_s, interrupts)
                except children.Interrupted:  # or only told that this start is the last
                    self._hear()
        except BaseException:
            self._stop_child(child)
            raise
        self._stop_child(child)
        return None

    def _stop_child(self, child: children.Child) -> None:
        child.kill()
        child.close()
        discovery.sweep()  # it may have listened already

    def _begin(self) -> children.Child:
        if children.why_not_fork():
            return children.spawn(
                "zmqagents.server.child_main", self.config, self._classes, new_session=self._new_session
            )
        return children.fork(self._be_the_host, new_session=self._new_session)

    def _be_the_host(self, ready_fd: int, life_fd: int) -> NoReturn:
        """In the fork: what belongs to the supervisor goes, and it is a host like any other."""
        signal.set_wakeup_fd(-1)
        for fd in (self._wake_r, self._wake_w, self._life_fd):
            if fd is not None:
                os.close(fd)
        child_main.run_forked(self.config, self._classes, ready_fd, life_fd)

    # ------------------------------------------------------------ waiting

    def _outlive(self) -> int:
        """Wait for the end of the child; its exit status."""
        child = self._child
        assert child is not None
        while (status := child.poll()) is None:
            left = None if self._kill_at is None else self._kill_at - time.monotonic()
            if left is not None and left <= 0:
                log.warning("%s: the host process %d has not ended in time: SIGKILL", self.config.server_id, child.pid)
                child.kill()
                continue
            if child.pidfd is None:
                left = TICK_S if left is None else min(left, TICK_S)
            readable([child.pidfd, self._wake_r, self._life_fd], left)
            self._hear()
        child.close()
        if status != 0:  # it could not clean up after itself
            discovery.sweep()
        return status

    def _pause(self, seconds: float) -> bool:
        """Wait between two starts; False if there is not to be another."""
        end = time.monotonic() + seconds
        while not self._is_last and (left := end - time.monotonic()) > 0:
            readable([self._wake_r, self._life_fd], left)
            self._hear()
        return not self._is_last

    def _hear(self) -> None:
        """Handle what has come: signals, a message of the launcher, the launcher's end."""
        with contextlib.suppress(BlockingIOError):
            for _ in os.read(self._wake_r, 64):
                self._on_signal()
        if self._life_fd is None or not readable([self._life_fd], 0):
            return
        self._is_last = True
        if not os.read(self._life_fd, 64):
            self._life_fd = None
            self._is_orphan = True
            self._kill_at = time.monotonic() + life_line.ORPHAN_LIMIT_S
            if self._child is not None:
                self._child.cut_life_line()  # it then ends in order, as an orphan does

    def _on_signal(self) -> None:
        self._signals += 1
        self._is_last = True
        self._notifier.stopping("stopping: running and queued calls may end")
        grace_s = self.config.grace_s if self._signals == 1 else 0.0
        self._kill_at = min(time.monotonic() + grace_s + END_WAIT_S, self._kill_at or float("inf"))
        if self._child is not None:
            self._child.signal(signal.SIGTERM)

    def _status(self, status: int) -> int:
        if self._is_orphan:
            return life_line.EXIT_ORPHANED
        return 0 if status == 0 else 1


@contextlib.contextmanager
def _wake_ups() -> Iterator[tuple[int, int]]:
    """A pipe whose first end can be read once SIGTERM or SIGINT has come: a byte for each."""
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_r, False)
    os.set_blocking(wake_w, False)
    old_fd = signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield wake_r, wake_w
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # None: set by C code
        signal.set_wakeup_fd(old_fd)
        os.close(wake_r)
        os.close(wake_w)


# ---------------------------------------------------------------- as the child of a launcher


def run_forked(
    config: BrokerConfig, classes: Sequence[Maker], launch_timeout_s: float, ready_fd: int, life_fd: int
) -> NoReturn:
    """The whole life of a supervisor that is a fork of the launching process."""
    _run(lambda: (config, classes), launch_timeout_s, child_main.Report(ready_fd), life_fd)


def main(source: BinaryIO, ready_fd: str, life_fd: str, launch_timeout_s: str) -> NoReturn:
    """The same in a fresh interpreter, see `hosting.main`."""
    os.set_inheritable(int(life_fd), False)
    _run(
        lambda: child_main.load_payload(source), float(launch_timeout_s), child_main.Report(int(ready_fd)), int(life_fd)
    )


def _run(
    load: Callable[[], tuple[BrokerConfig, Sequence[Maker]]],
    launch_timeout_s: float,
    report: child_main.Report,
    life_fd: int,
) -> NoReturn:
    try:
        signals.forget_parents_signals()
        signals.show_stacks_on_request()
        config, classes = load()
        signals.close_stdin(life_fd)
        supervisor = Supervisor(config, classes, launch_timeout_s=launch_timeout_s, life_fd=life_fd)
        signals.leave(supervisor.run(lambda message, pid: report.say(message)))
    except BaseException as exc:  # the launcher waits for one line, whatever it says
        if not report.say({"error": errors.describe(exc)}):
            log.error("the host is not started again: %s", exc)
        signals.leave(1)
