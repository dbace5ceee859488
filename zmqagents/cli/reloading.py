"""``start --reload``: a host that is started anew when a file of the program changes. For development.

The host is a child of this process. When a ``.py`` file or ``zmqagents.toml`` has changed, the child gets SIGTERM, so
its running and queued calls end within its grace, and the next child listens on the same port, under the same id.
Clients connect again by themselves; of the agents, those of ``--agent`` are there again, new. A child that cannot start
says why, and the next change starts it again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from .. import discovery
from .config_file import FILE_NAME
from .output import say

__all__ = ["Reloader"]

LOOK_EVERY_S = 0.3
STABLE_S = 0.2  # an editor writes several files, or one in several steps
MOST_FILES = 5_000
LEFT_OUT = ("__pycache__", "node_modules", "site-packages")

Seen = dict[str, int]


class Reloader:
    """`run` it in the main thread. ``words``: those of `start`, without ``--reload``; ``places``: what is watched."""

    def __init__(self, words: Sequence[str], server_id: str, places: Sequence[str]) -> None:
        self._command = [sys.executable, "-m", "zmqagents", "start", *words, "--server-id", server_id]
        self._server_id = server_id
        self._places = [Path(place) for place in dict.fromkeys(places)]
        self._port: int | None = None
        self._signals = 0

    def run(self) -> int:
        """Until a signal ends it; the exit status of the last host."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        while True:
            seen = self._look()
            child = self._start()
            while child.poll() is None and not self._signals and self._look() == seen:
                time.sleep(LOOK_EVERY_S)
            if not self._signals and child.poll() is not None:
                self._wait_for_change(seen, child.returncode)
            status = self._end(child)
            if self._signals:
                return status
            self._wait_until_stable()
            say(f"{self._server_id}: a file has changed, starting anew")

    def _on_signal(self, number: int, _: object) -> None:
        self._signals += 1

    def _start(self) -> subprocess.Popen[bytes]:
        words = ["--port", str(self._port)] if self._port else []
        # Neither the environment nor a settings file may have the child reload, too.
        environment = {**os.environ, "AS_SERVER_RELOAD": "0"}
        return subprocess.Popen([*self._command, *words], env=environment, start_new_session=True)

    def _end(self, child: subprocess.Popen[bytes]) -> int:
        """End the host as a stop does, and keep its port for the next one."""
        for record in discovery.list_hosts():
            if record.pid == child.pid:
                self._port = record.port
        told = -1  # how many signals of this process the child knows; the first word to it is a stop in any case
        while child.poll() is None:
            if told < min(self._signals, 2):
                told = max(self._signals, told + 1)
                with contextlib.suppress(ProcessLookupError):
                    child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(LOOK_EVERY_S)
        return child.returncode

    def _wait_for_change(self, seen: Seen, status: int) -> None:
        say(f"{self._server_id}: the host has ended with exit code {status}; it is started again when a file changes")
        while not self._signals and self._look() == seen:
            time.sleep(LOOK_EVERY_S)

    def _wait_until_stable(self) -> None:
        seen = None
        while not self._signals and seen != (seen := self._look()):
            time.sleep(STABLE_S)

    def _look(self) -> Seen:
        """When each watched file was changed, in ns."""
        found: Seen = {}
        for path in self._files():
            with contextlib.suppress(OSError):
                found[str(path)] = path.stat().st_mtime_ns
            if len(found) == MOST_FILES:
                break
        return found

    def _files(self) -> Iterator[Path]:
        for place in self._places:
            for directory, inner, names in os.walk(place):
                inner[:] = [name for name in inner if name[0] != "." and name not in LEFT_OUT]
                yield from (Path(directory, name) for name in names if name.endswith(".py") or name == FILE_NAME)
