"""The settings of one host: a frozen dataclass whose values are checked once, when it is made.

Every way to start a host (launcher, shell, private host) ends in one `BrokerConfig`; nothing else
carries settings, so a setting cannot be parsed and then dropped on the way to the broker. Seconds
are floats and say ``_s``; sizes are bytes and say ``_bytes``.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from .checks import (
    DEFAULT_TIMEOUT_S,
    MAX_STRUCTURED_BYTES,
    MEBIBYTE,
    check_cluster_name,
    check_host,
    check_packages,
    check_threads,
    replaced_by_gevent,
)
from .errors import ConfigError
from .telemetry.settings import LogSettings

__all__ = [
    "DEFAULT_TIMEOUT_S",
    "END_WAIT_S",
    "MEAN_IT",
    "MEBIBYTE",
    "RECORD_FORMS",
    "BrokerConfig",
    "Parent",
    "check_host",
    "check_packages",
    "check_threads",
    "generate_server_id",
    "replaced_by_gevent",
    "without_password",
]

MIN_END_S = 1.0  # for the hooks at the end of an agent, on a host with less grace
END_WAIT_S = 2.0  # a host ends at most this long after its grace
MEAN_IT = "yes-i-mean-it"  # for `insecure` off loopback

RECORD_FORMS = (1, 1)  # the oldest and newest form of a cluster's records that this package knows: see `store.forms`
LEASE_S = (1.0, 300.0)  # of a member of a cluster: least and most
_SERVER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAMESPACE = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def generate_server_id(host: str, port: int | None) -> str:
    """A short id, new at each call: ``localhost-5000-3f9a1c``."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", host).strip("-")[:24] or "host"
    return "-".join(part for part in (name, str(port) if port else "", os.urandom(3).hex()) if part)


def _check_isolation(isolation: object) -> None:
    if not sys.platform.startswith("linux"):
        raise ConfigError(
            f"isolation={isolation!r} needs Linux (pidfd, /proc), and this is {sys.platform}: use isolation='thread'"
        )


def without_password(url: str) -> str:
    """``url`` as it may be shown: user information and query values are replaced by ``***``."""
    try:
        parts = urlsplit(url)
        netloc = parts.netloc
        if "@" in netloc:
            netloc = "***@" + netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, netloc, parts.path, "***" if parts.query else "", ""))
    except ValueError:  # not a URL at all
        return "***"


def _is_declared(item: Any) -> bool:
    match item:
        case str(agent_id), (str(class_name), dict(kwargs)):
            return bool(agent_id and class_name and all(isinstance(name, str) for name in kwargs))
    return False


class Parent(NamedTuple):
    """The host whose agents this host runs, in a process that it has started; ``address`` is what references say.

    ``seal_key``: see `scheduler.seals`. ``pickles``: it takes pickles, and so does this host. ``grace_s``: that of the
    host, which the hooks at the end of an agent have. ``cluster``: of which it is a member.
    """

    server_id: str
    address: str
    ipc: str
    seal_key: bytes
    pickles: bool = False
    grace_s: float = 0.0
    cluster: str = ""

    def __repr__(self) -> str:
        """All but the key, which is a secret."""
        return f"Parent({self.server_id!r}, {self.address!r}, {self.ipc!r}, pickles={self.pickles})"


@dataclass(frozen=True)
class BrokerConfig:
    """Everything that a host needs to know. A wrong value is a `ConfigError` that says what to do."""

    host: str = "localhost"  # the name that clients are told; listening is set by local_mode
    port: int | None = None  # None and 0: a free port, reported back
    capacity: int = 32  # agents that may run at the same moment: worker threads
    pool_type: Literal["local", "redis"] = "local"
    redis_url: str = dataclasses.field(default="redis://localhost:6379", repr=False)  # may hold a password
    max_pool_size: int = 8192  # finished results kept
    max_expire_time: float = 7200.0  # seconds that a finished result is kept
    max_timeout_seconds: float = 5.0  # default deadline of management requests; longest one fetch may wait
    local_mode: bool = False  # True: loopback and ipc only
    agent_dir: str | None = None
    server_id: str = ""  # "": generated
    studio_url: str | None = dataclasses.field(default=None, repr=False)
    model_config_path: str | None = None

    # Made at every start before the first client is served: id -> class name, keyword arguments of its __init__.
    agents: dict[str, tuple[str, dict[str, Any]]] = dataclasses.field(default_factory=dict)

    isolation: Literal["thread", "process", "pool"] = "thread"  # where agents run whose class does not say
    processes: int = 0  # shared processes for agents of isolation "pool"; 0: one for each core
    max_children: int = 64  # processes of all kinds that run agents of this host
    parent: Parent | None = None  # the host that has started this one, to run agents of its own
    otel: bool = False  # calls are traced, by OpenTelemetry's SDK as the variables OTEL_* set it up
    logs: LogSettings | None = None  # how it logs as a program; None: as a library, by what its program has set up

    types: tuple[str, ...] = ()  # packages whose classes arrive as themselves, as `trust_types` takes them
    plain_types: bool = False  # arguments of classes that the host does not know arrive in their plain form

    cluster: str = ""  # the cluster that this host is a member of; "": none
    lease_s: float = 15.0  # of a member: for so long others take it for alive after its last sign of life
    labels: dict[str, str] = dataclasses.field(default_factory=dict)  # of a member, for agents that ask for them
    record_forms: tuple[int, int] = RECORD_FORMS  # of a member: the oldest and the newest form of records that it knows

    redis_namespace: str = "zmqagents"  # hosts with the same one in one Redis share their results
    private: bool = False  # ipc alone, and values may be cloudpickled: only the parent can reach it
    insecure: bool | str = False  # TCP without keys: True with local_mode, "yes-i-mean-it" on every interface
    file_roots: tuple[str, ...] = ()  # directories below which `download_file` may read; none: nothing
    max_pool_bytes: int = 512 * MEBIBYTE  # bytes of finished results kept
    max_message_bytes: int = 256 * MEBIBYTE  # one message, arguments or result
    max_structured_bytes: int = MAX_STRUCTURED_BYTES  # of it, what is not bytes, text or arrays; in memory 32 times it
    max_unread_bytes: int = 256 * MEBIBYTE  # replies that one client has not read; beyond it the client is dropped
    resume_s: float = 5.0  # how long the calls of a client whose connection broke go on until it is back
    max_calls_per_client: int = 16_384  # accepted and unanswered, of one connection
    max_calls: int = 65_536  # accepted and unanswered, of the whole host
    max_mailbox: int = 16_384  # queued calls of one agent
    max_agents: int = 100_000  # of the whole host
    max_queued_bytes: int = 512 * MEBIBYTE  # arguments of all calls that have not started
    max_threads: int = 0  # worker threads and the stand-ins of those that wait; 0: capacity + 1024
    grace_s: float = 10.0  # stop: how long running and queued calls may go on
    hang_limit_s: float | None = None  # how long the host may answer nothing at all before it is ended; None: for ever
    fast_lane: bool = True  # short methods may be run by the router thread itself
    switch_interval_s: float = 0.0002  # sys.setswitchinterval of the broker process

    def __post_init__(self) -> None:
        for name in ("capacity", "max_pool_size", "max_pool_bytes", "max_message_bytes", "max_structured_bytes",
                     "max_unread_bytes", "max_calls_per_client", "max_calls", "max_mailbox", "max_agents",
                     "max_queued_bytes", "max_children"):  # fmt: skip
            self._check_count(name, 1)
        self._check_count("max_threads", 0)
        self._check_count("processes", 0)
        if self.isolation not in ("thread", "process", "pool"):
            raise ConfigError(f"isolation must be 'thread', 'process' or 'pool', not {self.isolation!r}")
        if self.isolation != "thread":
            _check_isolation(self.isolation)
        for name in ("local_mode", "private", "fast_lane", "plain_types", "otel"):
            if not isinstance(getattr(self, name), bool):  # "False" would be true
                raise ConfigError(f"{name} must be True or False, not {getattr(self, name)!r}")
        for name in ("max_expire_time", "max_timeout_seconds", "switch_interval_s", "resume_s"):
            self._check_seconds(name, above_zero=True)
        self._check_seconds("grace_s", above_zero=False)
        if self.hang_limit_s is not None:
            self._check_seconds("hang_limit_s", above_zero=True)
        self._check_address()
        self._check_insecure()
        object.__setattr__(self, "file_roots", _checked_roots(self.file_roots))
        object.__setattr__(self, "types", check_packages(self.types))
        if self.logs is not None and (not isinstance(self.logs, LogSettings) or self.logs.mistake):
            raise ConfigError(f"logs: {self.logs.mistake if isinstance(self.logs, LogSettings) else repr(self.logs)}")
        self._check_cluster()
        if self.pool_type not in ("local", "redis"):
            raise ConfigError(f"pool_type must be 'local' or 'redis', not {self.pool_type!r}")
        for name in ("agent_dir", "model_config_path"):
            if not isinstance(getattr(self, name), (str, type(None))):
                raise ConfigError(f"{name} must be a path as text, not {getattr(self, name)!r}")
        if not isinstance(self.agents, dict) or not all(map(_is_declared, self.agents.items())):
            raise ConfigError("agents must be a dictionary of agent ids to pairs: class name, keyword arguments")
        if not isinstance(self.server_id, str):
            raise ConfigError(f"server_id must be a text, not {self.server_id!r}")
        if self.agent_dir is not None and not Path(self.agent_dir).is_dir():
            raise ConfigError(f"agent_dir: {str(self.agent_dir)!r} is not a directory; give one that holds .py files")
        if self.model_config_path is not None and not Path(self.model_config_path).is_file():
            raise ConfigError(f"model_config_path: there is no file {str(self.model_config_path)!r}")
        if not self.server_id:
            object.__setattr__(self, "server_id", generate_server_id(self.host, self.port))
        if not _SERVER_ID.fullmatch(self.server_id):
            raise ConfigError(
                f"server_id must be 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit, "
                f"not {self.server_id!r}"
            )
        if not isinstance(self.redis_namespace, str) or not _NAMESPACE.fullmatch(self.redis_namespace):
            raise ConfigError(
                f"redis_namespace must be 1 to 64 letters, digits, '.', '_', ':' or '-', not {self.redis_namespace!r}"
            )
        if self.max_threads == 0:
            object.__setattr__(self, "max_threads", self.capacity + 1024)
        elif self.max_threads < self.capacity:
            raise ConfigError(f"max_threads ({self.max_threads}) must be at least capacity ({self.capacity})")

    def _check_count(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name} must be a whole number of at least {least}, not {value!r}")

    def _check_seconds(self, name: str, *, above_zero: bool) -> None:
        value = getattr(self, name)
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e9
        if not good or (above_zero and value == 0):
            least = "more than 0" if above_zero else "0 or more"
            raise ConfigError(f"{name} must be a number of seconds, {least}, not {value!r}")

    def _check_address(self) -> None:
        check_host(self.host)
        port = self.port
        if port is not None and (not isinstance(port, int) or isinstance(port, bool) or not 0 <= port <= 65535):
            raise ConfigError(f"port must be a whole number from 0 (any free port) to 65535, not {port!r}")
        for name in ("studio_url", "redis_url"):
            url = getattr(self, name)
            if url is not None and (not isinstance(url, str) or "://" not in url):
                raise ConfigError(f"{name} must be a URL such as http://127.0.0.1:5000 or redis://127.0.0.1:6379")

    def _check_cluster(self) -> None:
        labels = self.labels
        if not isinstance(labels, dict) or not all(isinstance(text, str) for item in labels.items() for text in item):
            raise ConfigError(f"labels must be a dictionary of texts, such as {{'zone': 'a'}}, not {labels!r}")
        self._check_seconds("lease_s", above_zero=True)
        if not LEASE_S[0] <= self.lease_s <= LEASE_S[1]:
            raise ConfigError(f"lease_s must be {LEASE_S[0]:g} to {LEASE_S[1]:g} seconds, not {self.lease_s!r}")
        object.__setattr__(self, "record_forms", _checked_forms(self.record_forms))
        if self.cluster == "":
            return
        check_cluster_name(self.cluster)
        if not sys.platform.startswith("linux"):
            raise ConfigError(f"a member of a cluster needs Linux, and this is {sys.platform}; clients work everywhere")
        if self.private or self.parent is not None:
            raise ConfigError("a private host cannot be a member of a cluster: other hosts do not reach it")
        object.__setattr__(self, "pool_type", "redis")  # a result must be found wherever its reader asks

    def _check_insecure(self) -> None:
        if not isinstance(self.insecure, bool) and self.insecure != MEAN_IT:
            raise ConfigError(f"insecure must be True, False or {MEAN_IT!r}, not {self.insecure!r}")
        if self.insecure is True and not self.local_mode and not self.private:
            raise ConfigError(
                "insecure opens the host to every program that can reach its port: add --local-mode (local_mode=True), "
                f"which keeps the port to this machine, or say insecure={MEAN_IT}"
            )

    @property
    def takes_pickles(self) -> bool:
        """Whether arguments and results may be pickled: only where none but the program that started it reaches it."""
        return self.private if self.parent is None else self.parent.pickles

    @property
    def pool_size(self) -> int:
        """How many shared processes there may be."""
        return self.processes or os.cpu_count() or 1

    @property
    def end_hooks_s(self) -> float:
        """How long the hooks at the end of an agent may take."""
        return max((self.parent or self).grace_s, MIN_END_S)

    @property
    def structured_limit(self) -> int:
        """The longest structured part of a message; a private host takes pickles, which are as long as they are."""
        return self.max_message_bytes if self.takes_pickles else min(self.max_structured_bytes, self.max_message_bytes)

    @property
    def open_to(self) -> str:
        """The users that can call the agents without any key, "" if no user can."""
        if not self.insecure or self.private:
            return ""
        return "any user of this machine" if self.local_mode else "every program that can reach this machine"

    def replace(self, **changes: Any) -> BrokerConfig:
        """A copy with ``changes``, checked anew."""
        return dataclasses.replace(self, **changes)

    def public(self) -> dict[str, Any]:
        """The settings as ``status`` shows them: URLs without passwords, agents without arguments, no secret.

        Nothing is checked again: a directory that was there at the start may have gone since.
        """
        shown = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        shown["agents"] = {agent_id: class_name for agent_id, (class_name, _) in self.agents.items()}
        for name in ("redis_url", "studio_url"):
            shown[name] = without_password(shown[name]) if shown[name] else shown[name]
        shown["file_roots"], shown["types"] = list(self.file_roots), list(self.types)
        shown["record_forms"] = list(self.record_forms)
        shown["parent"] = self.parent and self.parent.server_id
        shown["logs"] = self.logs and self.logs.public()
        return shown


def _checked_forms(forms: object) -> tuple[int, int]:
    """Two numbers, from a tuple or from JSON. Above what the package knows are forms that only its tests have."""
    numbers = tuple(forms) if isinstance(forms, (list, tuple)) else ()
    if len(numbers) != 2 or not all(type(number) is int for number in numbers) or not 0 < numbers[0] <= numbers[1]:
        raise ConfigError(f"record_forms must be the oldest and the newest form, such as (1, 2), not {forms!r}")
    return numbers


def _checked_roots(roots: object) -> tuple[str, ...]:
    """Directories as absolute paths without links; the file service looks at nothing else of them."""
    if isinstance(roots, (str, bytes, os.PathLike)) or not isinstance(roots, Iterable):
        raise ConfigError(f"file_roots must be a list of directories, not {roots!r}")
    found = []
    for root in roots:
        if not isinstance(root, (str, os.PathLike)) or not os.path.isdir(root):
            raise ConfigError(f"file_roots: {str(root)!r} is not a directory")
        found.append(os.path.realpath(root))
    return tuple(dict.fromkeys(found))
