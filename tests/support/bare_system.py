"""Take away from this process what Windows lacks: for programs that tests run, before they import anything of ours."""

from __future__ import annotations

import importlib.abc
import os
import select
import signal
import socket
import sys
from typing import Any

MODULES = {"fcntl", "resource", "termios", "pwd", "grp", "tty", "pty"}
NAMES: dict[Any, tuple[str, ...]] = {
    os: ("geteuid", "getuid", "fork", "register_at_fork", "killpg", "setsid", "waitid", "pidfd_open", "memfd_create",
         "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"),
    socket: ("AF_UNIX", "MSG_DONTWAIT", "MSG_NOSIGNAL", "SO_PEERCRED"),
    select: ("poll", "epoll"),
    signal: ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGRTMIN", "SIGRTMAX", "pthread_sigmask", "set_wakeup_fd"),
}  # fmt: skip


class _Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def take_away() -> None:
    """From now on neither the modules nor the names can be had."""
    import subprocess  # noqa: F401  # the library itself chooses by the platform, and has chosen then
    import threading  # noqa: F401

    pair, unix = socket.socketpair, socket.AF_UNIX
    socket.socketpair = lambda: pair(unix)  # type: ignore[assignment, misc]  # Windows makes such a pair of two TCP sockets
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, _Missing())
    for module, names in NAMES.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
