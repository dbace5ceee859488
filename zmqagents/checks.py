"""What a client needs of the settings: a few defaults, and checks of what users give.

They stand apart from `config`, whose class of forty settings costs as much to make as all of the wire: a program that
only calls agents has no use for it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

from .errors import ConfigError

__all__ = [
    "CLUSTER", "DEFAULT_TIMEOUT_S", "MAX_STRUCTURED_BYTES", "MEBIBYTE", "check_cluster_name", "check_host",
    "check_packages", "check_threads", "replaced_by_gevent",
]  # fmt: skip

DEFAULT_TIMEOUT_S = 300.0  # deadline of a call whose caller names none
CLUSTER = "cluster:"  # how the ids of clusters and of their agents begin, and no others
MEBIBYTE = 1024 * 1024
MAX_STRUCTURED_BYTES = 16 * MEBIBYTE  # of a message what is not beside the payload, unless its host says otherwise
_CLUSTER = re.compile(r"[A-Za-z0-9._-]{1,40}")  # between braces in the keys of Redis, and before a slash in references


def check_host(host: object) -> None:
    """Raise ConfigError for what cannot be the name or address of a machine."""
    if not isinstance(host, str) or not host or any(c.isspace() or c == "/" for c in host):
        raise ConfigError(f"host must be a host name or address, not {host!r}")
    name, colon, port = host.rpartition(":")
    if colon and port.isdecimal() and ":" not in name:  # an IPv6 address has more of them
        raise ConfigError(f"host must be a host name or address without its port, which stands apart: {name!r}, {port}")


def check_cluster_name(text: object) -> str:
    """``text`` if a cluster can be called so; raises `ConfigError`."""
    if not isinstance(text, str) or not _CLUSTER.fullmatch(text):
        raise ConfigError(f"a cluster's name must be 1 to 40 letters, digits, '.', '_' or '-', not {text!r}")
    return text


def check_packages(names: object) -> tuple[str, ...]:
    """``names`` as a tuple; ConfigError unless all are names of packages or modules."""
    if isinstance(names, str):
        names = (names,)
    if not isinstance(names, Iterable):
        raise ConfigError(f"types are a list of packages, not {names!r}")
    found = tuple(names)
    for name in found:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"types are trusted by the name of their package, such as 'pydantic_ai', not by {name!r}")
    return found


def replaced_by_gevent(*names: str) -> list[str]:
    """Those modules of the standard library, among ``names``, that gevent has patched in this process."""
    monkey = sys.modules.get("gevent.monkey")
    return [] if monkey is None else [name for name in names if monkey.is_module_patched(name)]


def check_threads() -> None:
    """Raise ConfigError where gevent has replaced threads or sockets, and on a free-threaded build of Python.

    A greenlet that waits in ZeroMQ stops all others, and a socket of gevent's never wakes a thread of ours.
    """
    if "t" in getattr(sys, "abiflags", ""):  # much here relies on single operations of lists and dicts in order
        raise ConfigError(
            f"{sys.executable} is a free-threaded build, for which zmqagents is not made: use the build with the GIL"
        )
    if replaced := replaced_by_gevent("threading", "socket"):
        raise ConfigError(
            f"gevent has patched {' and '.join(replaced)}, and zmqagents needs the real ones: call gevent's "
            "monkey.patch_all(thread=False, socket=False), or use zmqagents in a process of its own"
        )
