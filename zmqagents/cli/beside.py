"""``start --web``: the web process beside a host. It begins before the host and ends with it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from types import TracebackType

from .. import errors

__all__ = ["WebBeside"]

END_S = 0.6  # in which it ends once its stdin has ended: of the 1.5 s after the grace in which its host is to end
EXIT_S = 5.0  # between the end of its output and its own, on a busy machine


class WebBeside:
    """A web process for the host ``server_id``; within a ``with`` block. ``log_format`` as of `LogSettings`.

    ``exposed``: the ids of the agents that its gateway shows. ``cluster``: whose hosts it shows, "" for this one alone.
    """

    def __init__(
        self, server_id: str, listen: tuple[str, int], log_format: str, exposed: Iterable[str] = (), cluster: str = ""
    ) -> None:
        host, port = listen
        # Of a host the id alone: its port may be any. What the environment says is meant for the host.
        words = ["--server-id", server_id, "--host", "localhost", "--port", "0", "--end-with-stdin"]
        words += ["--listen", f"{host}:{port}", "--log-format", log_format]
        words += ["--cluster", cluster] if cluster else []
        words += [word for agent_id in exposed for word in ("--expose", agent_id)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "zmqagents", "web", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if not name.startswith("AS_SERVER_")},
            start_new_session=True,  # a Ctrl-C is for the host, which may take a while to end
        )  # fmt: skip
        self._link = ""

    def __repr__(self) -> str:
        return f"<WebBeside {self._process.pid}>"

    @property
    def link(self) -> str:
        """The address of the page with its token, once the process listens. LaunchError: it has ended."""
        stdout = self._process.stdout
        if not self._link and stdout is not None:
            line = stdout.readline()  # ends with the process
            if not line:
                raise errors.LaunchError(
                    f"--web: the web process has ended with exit code {self._process.wait(EXIT_S)}"
                )
            self._link = line.split()[-1].decode()  # of a line for people: so are its errors, which stderr shows
        return self._link

    def __enter__(self) -> WebBeside:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        process = self._process
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
