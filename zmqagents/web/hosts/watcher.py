"""Asks one host for the web process, when somebody asks that, and remembers when the host last answered anything.

Every method may wait for the host and is called in threads, by several at a time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from ... import errors
from ...client.rpc import RpcClient

__all__ = ["LIVE_S", "Watcher"]

LIVE_S = 30.0  # a host that has answered nothing for so long does not live
READY_S = 1.0


class Watcher:
    """``connect`` gives a client of the host; it is called again after the host was lost."""

    def __init__(self, connect: Callable[[], RpcClient], *, name: str) -> None:
        self.name = name  # of the host, as it last said
        self._connect = connect
        self._lock = threading.Lock()
        self._client: RpcClient | None = None
        self._answered: float | None = None

    def __repr__(self) -> str:
        return f"<Watcher of {self.name}>"

    def figures(self) -> dict[str, Any] | None:
        """All figures of the host; None if it does not answer."""
        client = None
        try:
            client = self._open()
            figures = client.get_metrics()
        except (errors.ZmqAgentsError, OSError) as exc:
            self._note(client, exc)
            return None
        self._note(client)
        self.name = str(figures["server_id"])
        return figures

    def not_ready(self) -> list[str]:
        """Why the host cannot take calls now; empty if it can."""
        client = None
        try:
            client = self._open()
            told = client.get_health(READY_S)
        except errors.HostStopping as exc:
            self._note(client)
            return [f"it is stopping: {exc}"]
        except (errors.ZmqAgentsError, OSError) as exc:
            self._note(client, exc)
            return [f"{type(exc).__name__}: {exc}"]
        self._note(client)
        self.name = str(told["server_id"])
        return [str(reason) for reason in told["reasons"]]

    def not_live(self) -> list[str]:
        """Why the host does not live; empty if it has answered anything within `LIVE_S`."""
        self.not_ready()
        answered = self._answered
        if answered is None:
            return ["it has never answered"]
        silent_s = time.monotonic() - answered
        return [f"it has answered nothing for {silent_s:.0f} s"] if silent_s > LIVE_S else []

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _open(self) -> RpcClient:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _note(self, client: RpcClient | None, exc: Exception | None = None) -> None:
        """The host has answered, or ``exc`` is what came instead: then ``client`` is of no more use.

        By then another thread may have opened a new one, which is left alone.
        """
        if exc is None or isinstance(exc, (errors.HostBusy, errors.PermissionRefused)):
            self._answered = time.monotonic()
        elif client is not None and not isinstance(exc, errors.CallTimeout):
            with self._lock:
                if self._client is client:
                    self._client = None
            with contextlib.suppress(Exception):
                client.close()
