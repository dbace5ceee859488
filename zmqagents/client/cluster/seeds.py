"""The hosts that a user has named: by these a cluster is entered, and one after the other is tried.

A name that has several addresses, as that of a service of Kubernetes without an address of its own, is as many hosts.
Its addresses are asked for anew whenever all hosts have failed, for hosts come and go.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterable
from typing import NamedTuple

from ... import errors
from ...checks import check_host
from ...security.private import is_this_machine

__all__ = ["Seed", "Seeds", "parse_hosts"]


class Seed(NamedTuple):
    """One host: where it is, and ``named``, as the user has called it, by which its key is known."""

    host: str
    port: int
    named: tuple[str, int]

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


def parse_hosts(hosts: str | Iterable[str]) -> list[tuple[str, int]]:
    """``"a:12010, b:12010"`` or a list of such texts. Raises ConfigError for anything else."""
    texts = hosts.split(",") if isinstance(hosts, str) else list(hosts)
    found = []
    for text in texts:
        host, _, port = str(text).strip().rpartition(":")
        if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
            raise errors.ConfigError(f"a host of a cluster is HOST:PORT, such as 'agents.example:12010', not {text!r}")
        check_host(host)
        found.append((host.strip("[]") if ":" in host else host, int(port)))
    if not found:
        raise errors.ConfigError("a cluster needs at least one host, HOST:PORT")
    return list(dict.fromkeys(found))


class Seeds:
    """See the module's docstring. Any thread."""

    def __init__(self, named: list[tuple[str, int]]) -> None:
        self._named = named
        self._lock = threading.Lock()
        self._all = [Seed(host, port, (host, port)) for host, port in named]
        self._at = 0

    def __len__(self) -> int:
        return len(self._all)

    def __str__(self) -> str:
        return ", ".join(f"{host}:{port}" for host, port in self._named)

    def __repr__(self) -> str:
        return f"<Seeds {self} at {self.current().address}>"

    def renew_lock(self) -> None:
        """In a forked child: a thread that is not here may hold it."""
        self._lock = threading.Lock()

    def current(self) -> Seed:
        """The host that is asked now."""
        return self._all[self._at]

    def failed(self, address: str) -> bool:
        """That host does not answer, or goes: another one is asked from now on. True if all were asked in turn."""
        with self._lock:
            if self._all[self._at].address != address:
                return False
            self._at = (self._at + 1) % len(self._all)
            return self._at == 0

    def look_up(self) -> None:
        """Ask for the addresses of the names. Takes as long as the system's resolver does."""
        found: list[Seed] = []
        for host, port in self._named:
            addresses = [host] if is_this_machine(host) else _addresses_of(host)
            found += [Seed(address, port, (host, port)) for address in addresses or [host]]
        with self._lock:
            current = self._all[self._at]
            self._all = list(dict.fromkeys(found))
            self._at = self._all.index(current) if current in self._all else self._at % len(self._all)


def _addresses_of(host: str) -> list[str]:
    with contextlib.suppress(OSError, UnicodeError):
        rows = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(row[4][0]) for row in rows))
    return []
