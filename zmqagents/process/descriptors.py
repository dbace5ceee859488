"""The descriptors of a host process: how many there may be, how many there are, and which children get copies of them.

Each client takes one, and so does each file that an agent opens. A host without a free one cannot accept: libzmq then
tries again and again, at most of a core (measured: 76 %), while the connected clients are served. So the soft limit,
often 1,024, is raised to the hard one, and `Gauge` warns in time.

A child made by a bare ``os.fork()`` holds copies of all of them. While it lives the port of a dead host stays taken,
and its clients see no end of their connections. `not_for_forks` has the copies closed in the child; the host's own
stay as they are. Children that are programs of their own (`subprocess`, and `multiprocessing` but for its method
"fork") get none in the first place: libzmq marks its sockets close-on-exec.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import socket
import stat
from collections.abc import Iterator

__all__ = ["Gauge", "in_use", "not_for_forks", "raise_limit"]

log = logging.getLogger(__name__)

WARN_AT = 0.8  # of the limit
CALM_AT = 0.7  # below it, the next rise is worth a line again
_OPEN = next((place for place in ("/proc/self/fd", "/dev/fd") if os.path.isdir(place)), None)


def raise_limit() -> None:
    """Raise the soft limit of this process to its hard one."""
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def in_use() -> int | None:
    """How many descriptors this process has open; None where that cannot be told."""
    if _OPEN is None:
        return None
    try:
        return len(os.listdir(_OPEN)) - 1  # the listing has one itself
    except OSError as exc:
        if exc.errno in (errno.EMFILE, errno.ENFILE):  # not one left to look with
            return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return None


class Gauge:
    """Warns when most of the descriptors are taken: once for each rise over `WARN_AT`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._warned = False

    def look(self) -> None:
        used, limit = in_use(), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if used is None or limit == resource.RLIM_INFINITY:
            return
        if used >= WARN_AT * limit and not self._warned:
            self._warned = True
            log.warning(
                "%s has %d of at most %d descriptors open, and each client needs one: raise the hard limit (ulimit "
                "-Hn, LimitNOFILE= in a systemd unit) or let fewer clients connect", self._name, used, limit,
            )  # fmt: skip
        elif used < CALM_AT * limit:
            self._warned = False


# ---------------------------------------------------------------- forks


_addresses: list[int | str] = []  # ports and socket paths that hosts in this process listen at


@contextlib.contextmanager
def not_for_forks(*addresses: int | str | None) -> Iterator[None]:
    """Meanwhile a fork of this process loses its copies of what is bound to these TCP ports and socket paths:
    listeners, and the connections that they have accepted.
    """
    given = [address for address in addresses if address is not None]
    _addresses.extend(given)
    try:
        yield
    finally:
        for address in given:
            _addresses.remove(address)


def _close_copies() -> None:
    """In the child, before anything else runs there. Nothing of libzmq works in it any more: its threads are gone."""
    if not _addresses or _OPEN is None:
        return
    with contextlib.suppress(OSError):
        for number in [int(name) for name in os.listdir(_OPEN)]:
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(number).st_mode) and _address_of(number) in _addresses:
                    os.close(number)
    _addresses.clear()


def _address_of(number: int) -> int | str | None:
    """The local port or socket path of a descriptor."""
    probe = socket.socket(fileno=number)
    try:
        name = probe.getsockname()
    finally:
        probe.detach()
    return name[1] if isinstance(name, tuple) and len(name) > 1 else name if isinstance(name, str) else None


os.register_at_fork(after_in_child=_close_copies)
