"""What a service tells systemd: that it is ready, how it is, that it is alive, that it ends. sd_notify(3).

The protocol is one datagram of ``NAME=value`` lines to the Unix socket that ``$NOTIFY_SOCKET`` names; a leading
``@`` stands for the NUL of an abstract address. Without that variable every word goes nowhere, at no cost.
"""

from __future__ import annotations

import contextlib
import os
import socket

__all__ = ["Notifier"]


class Notifier:
    """Sends states to the service manager. Never raises, never blocks: a manager that does not read stops no host.

    ``address`` as in ``$NOTIFY_SOCKET``, "": there is none. ``watchdog_s``: a word must come at least this often.
    """

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = watchdog_s if address else None

    def __bool__(self) -> bool:
        """Whether systemd listens."""
        return bool(self._address)

    @classmethod
    def from_environment(cls) -> Notifier:
        """What the service manager has set for this very process; taken away, so that no child speaks for it."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        pid = os.environ.pop("WATCHDOG_PID", "")
        limit_us = os.environ.pop("WATCHDOG_USEC", "")
        meant = pid in ("", str(os.getpid())) and limit_us.isdecimal() and int(limit_us) > 0
        return cls(address, int(limit_us) / 1e6 if meant else None)

    def ready(self, status: str) -> None:
        self._send("READY=1", f"STATUS={_one_line(status)}")

    def status(self, status: str) -> None:
        self._send(f"STATUS={_one_line(status)}")

    def stopping(self, status: str) -> None:
        self._send("STOPPING=1", f"STATUS={_one_line(status)}")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to_manager:
            to_manager.setblocking(False)
            to_manager.sendto("\n".join(lines).encode(), self._address)


def _one_line(text: str) -> str:
    return " ".join(text.split())
