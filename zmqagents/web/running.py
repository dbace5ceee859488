"""The web processes of this user that run: where each listens and the tokens of its link, in a file of its own.

The file lies in a directory that only this user can enter, beside those of hosts, and goes with its process. It is what
``as_server web --url`` prints the link from.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .. import discovery
from ..errors import ConfigError
from ..process.watching import has_ended
from ..security.private import private_dir, read_private, write_private

__all__ = ["Running", "found", "published"]


class Running(NamedTuple):
    """``host`` is what the web process watches; ``url`` has no token."""

    pid: int
    url: str
    host: str
    admin: str
    view: str
    port: int

    def link(self, role: str) -> str:
        """The address with the token for a role, ``admin`` or ``view``, in its fragment."""
        return f"{self.url}/#token={self.view if role == 'view' else self.admin}"


def _place(*, create: bool) -> Path:
    return private_dir(discovery.runtime_dir() / "web", create=create)


@contextlib.contextmanager
def published(running: Running) -> Iterator[None]:
    """Let others of this user find it meanwhile."""
    path = _place(create=True) / f"{running.pid}.json"
    write_private(path, json.dumps(running._asdict()).encode(), lasting=False)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def found() -> list[Running]:
    """Those that run, in the order of their addresses. Files of processes that have died are removed."""
    try:
        paths = sorted(_place(create=False).glob("*.json"))
    except FileNotFoundError:
        return []
    running = []
    for path in paths:
        try:
            each = Running(**json.loads(read_private(path)))
        except (ConfigError, FileNotFoundError, TypeError, ValueError):
            continue
        if each.pid != os.getpid() and has_ended(each.pid):
            with contextlib.suppress(OSError):
                path.unlink()
        else:
            running.append(each)
    return sorted(running, key=lambda each: each.url)
