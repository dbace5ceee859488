"""``start --web``: a web process beside the host, which ends with it.

The socket is opened here, before the host: that the port is taken is known at once, and a request that comes before the
web process is there waits for it. The web process gets the socket, and a pipe at its stdin whose end it takes for its
own, so that it never outlives what has started it.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable

from .. import errors
from .output import say

__all__ = ["Beside", "listen"]

STOP_S = 3.0  # more than the web process lets its requests go on
EXTRA = ("starlette", "uvicorn", "prometheus_client", "jsonschema")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address of this machine. Raises AddressInUse, LaunchError."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise errors.AddressInUse(f"port {port} is in use: choose another port (0: any free one)") from exc
        raise errors.LaunchError(f"cannot listen at {host}, port {port}: {exc.strerror}") from exc


class Beside:
    """The web process of a host that is about to start. ``ids``: the agents that its gateway shows.

    Raises AddressInUse, LaunchError, MissingExtra.
    """

    def __init__(self, host: str, port: int, ids: Iterable[str]) -> None:
        missing = next((name for name in EXTRA if importlib.util.find_spec(name) is None), None)
        if missing is not None:
            raise errors.MissingExtra(f"{missing} is missing: pip install 'zmqagents[web]'")
        self._socket = listen(host, port)
        self._ids = list(ids)
        self._process: subprocess.Popen[str] | None = None

    def __repr__(self) -> str:
        return f"<Beside {self._ids}>"

    def begin(self, server_id: str, port: int | None) -> None:
        """Start it, once the host listens at ``port``. A second time, for the same host anew, nothing is done."""
        if self._process is not None:
            return
        fd = self._socket.fileno()
        command = [sys.executable, "-m", "zmqagents", "web", "--listen", f"fd:{fd}", "--end-with-stdin"]
        command += ["--server-id", server_id, "--port", str(port)]
        command += [word for agent_id in self._ids for word in ("--expose", agent_id)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[fd], start_new_session=True
        )
        self._socket.close()
        threading.Thread(target=self._pass_on, args=(self._process,), name="zmqagents-web", daemon=True).start()

    def end(self) -> None:
        """End it, and wait for that."""
        self._socket.close()
        process = self._process
        if process is None or process.stdin is None:
            return
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @staticmethod
    def _pass_on(process: subprocess.Popen[str]) -> None:
        """What the web process prints goes to stderr: stdout is for the line of the host."""
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                say(line.rstrip("\n"))
