"""Where a host is found on this machine: runtime directory, socket path, connection file.

A host listens on a Unix socket in a directory that only its user can enter, so file permissions are
the access control and the connection needs no encryption. Beside the socket lie two files::

    <dir>/<name>.ipc         the socket that the host binds
    <dir>/<name>.ipc.lock    held by flock(2) for the life of the host
    <dir>/<name>.json        the connection file: what a client must know, see `ConnectionFile`

``<dir>`` is the first of ``$ZMQAGENTS_RUNTIME``, ``$XDG_RUNTIME_DIR/zmqagents`` and
``/tmp/zmqagents-<uid>``. ``<name>`` is the server id, or a digest of one that is no fit file name. A host touches its
files every few seconds, so that cleaners of ``/tmp`` take them for young, and makes them again when they are gone.

Only the lock tells whether a host is alive. A socket at its path does not tell whether a host listens, and a
program that unlinks it to bind its own takes a live host's clients away without an error; a pid may be in use
again by another program. The kernel drops a flock with its holder, however that died. Hence

* a host takes the lock before it binds and lets it go after its listener is closed;
* what a dead host left (socket, connection file) is removed by the holder of its lock, so never while
  a new host of that name is starting;
* a child made by ``os.fork`` closes its copy at once: it must not keep a dead host's lock alive.

All files are opened without following links and are believed only when this user owns them and no
other user may write them. Nothing here blocks on the network or asks DNS.
On Windows there are no hosts, so none is found.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import stat
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from .errors import AddressInUse, ConfigError, HostUnreachable
from .security.private import (
    DRAFT_AGE_S,
    HAS_OWNERS,
    StrPath,
    is_this_machine,
    private_dir,
    read_private,
    write_private,
)

if HAS_OWNERS:
    import fcntl

__all__ = [
    "ConnectionFile",
    "IpcLock",
    "MAX_IPC_PATH_BYTES",
    "check_system",
    "find_host",
    "hosts_at",
    "ipc_path",
    "is_published",
    "list_hosts",
    "only_host",
    "publish",
    "runtime_dir",
    "sweep",
    "withdraw",
]

MEMBER_AGE_S = 300.0  # the longest lease of a member of a cluster: then it is over anyway

log = logging.getLogger(__name__)


# sockaddr_un.sun_path holds 108 bytes on Linux and 104 on macOS and the BSDs, with the final NUL.
MAX_IPC_PATH_BYTES = 107 if sys.platform == "linux" else 103
MAX_NAME_CHARS = 32
LOCK_WAIT_S = 0.25  # a client that looks whether a lock is free holds it for some microseconds
# A child's name is nobody else's: whoever has its lock only looks, and may be kept from its processor meanwhile.
CHILD_LOCK_WAIT_S = 10.0
_PLAIN_NAME = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{MAX_NAME_CHARS - 1}}}")


# ---------------------------------------------------------------- the runtime directory


def check_system() -> None:
    """Raise ConfigError on Windows, which has no flock, no fork and no owners of files: there are clients only."""
    if not HAS_OWNERS:
        raise ConfigError(
            f"a host needs Linux or macOS, and this is {sys.platform}: start the host on a machine that has one of "
            "them, and call it from here with RpcClient(HOST, PORT)"
        )


def runtime_dir() -> Path:
    """The directory for sockets and connection files, made if missing. Raises ConfigError (see `private_dir`)."""
    check_system()
    return private_dir(places()[0])


def places() -> list[Path]:
    """Where hosts of this user may be, the place for new ones first.

    A host started by cron has no XDG_RUNTIME_DIR while its user's shell has one, so discovery looks at both.
    """
    if not HAS_OWNERS:
        return []
    chosen = os.environ.get("ZMQAGENTS_RUNTIME")
    if chosen:
        return [Path(chosen)]
    fallback = Path(f"/tmp/zmqagents-{os.geteuid()}")
    xdg = os.environ.get("XDG_RUNTIME_DIR", "")
    try:
        # Under sudo and su the variable may still name the other user's directory.
        ours = os.path.isabs(xdg) and os.stat(xdg).st_uid == os.geteuid()
    except OSError:
        ours = False
    return [Path(xdg, "zmqagents"), fallback] if ours else [fallback]


def ipc_path(server_id: str) -> str:
    """The socket path of the host ``server_id`` in the runtime directory, which is made if missing.

    Raises ConfigError when the path is longer than the 107 bytes that a Unix socket address holds.
    """
    path = str(runtime_dir() / f"{file_name(server_id)}.ipc")
    _check_length(path)
    return path


def _check_length(path: str) -> None:
    size = len(os.fsencode(path))
    if size > MAX_IPC_PATH_BYTES:
        raise ConfigError(
            f"socket path {path} has {size} bytes, a Unix socket takes {MAX_IPC_PATH_BYTES}: "
            f"set ZMQAGENTS_RUNTIME to a shorter directory"
        )


def file_name(server_id: str) -> str:
    """The start of the names of a host's files: its id if that is a plain name, else a digest of it."""
    if _PLAIN_NAME.fullmatch(server_id):
        return server_id
    import hashlib  # only here: it loads OpenSSL, 3.6 MiB and 10 ms for every host and client

    # "~" is in no plain name, so a digest never equals another host's own id.
    return "~" + hashlib.blake2b(server_id.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


# ---------------------------------------------------------------- the lock


class IpcLock:
    """The right to bind one ipc path: ``with IpcLock(path): bind, serve, close the listener``.

    Entering makes the directory if it is missing and removes the socket that a dead host left. It raises
    AddressInUse when another host (of this or another process) holds the path or when something that is
    no socket lies there, ConfigError for a directory that is not private or a path that is too long.
    One thread at a time.
    """

    def __init__(self, path: StrPath, *, wait_s: float = LOCK_WAIT_S) -> None:
        self.path = os.path.abspath(path)
        self.lock_path = f"{self.path}.lock"
        self.wait_s = wait_s
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock within ``wait_s`` seconds; see the class for the errors."""
        _check_length(self.path)
        private_dir(os.path.dirname(self.path))
        deadline = time.monotonic() + self.wait_s
        while not self._try():
            if time.monotonic() >= deadline:
                raise AddressInUse(
                    f"a host already listens on {self.path}: stop it, or give this one another id or --server-id"
                )
            time.sleep(0.01)  # flock has no time-out of its own
        _held.add(self)
        try:
            _remove_socket(self.path)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Remove socket and lock file and let the lock go. Call it after the listener is closed.

        Does nothing without the lock, and leaves the files alone if they are another host's by now.
        """
        if self._fd is None:
            return
        if self.is_in_place:
            with contextlib.suppress(OSError):
                _remove_socket(self.path)
            with contextlib.suppress(OSError):
                os.unlink(self.lock_path)  # still locked: a process that has it open sees in `is_at` that it is gone
        self._forget()

    @property
    def is_held(self) -> bool:
        """True while this object has the lock."""
        return self._fd is not None

    @property
    def is_in_place(self) -> bool:
        """Whether this object has the lock, and the lock file is still the one that others look at."""
        return self._fd is not None and is_at(self._fd, self.lock_path)

    def renew(self) -> bool:
        """Make a lock file that was removed again; False: another process has made one, and has the lock."""
        former = self._fd
        private_dir(os.path.dirname(self.path))
        if former is None or not self._try():
            return False
        os.close(former)
        return True

    def clear_path(self) -> None:
        """Remove a socket that lies at the path. AddressInUse: it is no socket."""
        _remove_socket(self.path)

    def __enter__(self) -> IpcLock:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<IpcLock {self.path} {'held' if self.is_held else 'free'}>"

    def _try(self) -> bool:
        try:
            fd = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise ConfigError(f"{self.lock_path} cannot be opened: {exc.strerror}") from exc
        if _lock(fd, fcntl.LOCK_EX) and is_at(fd, self.lock_path):
            self._fd = fd
            return True
        os.close(fd)
        return False

    def _forget(self) -> None:
        fd, self._fd = self._fd, None
        _held.discard(self)
        if fd is not None:
            os.close(fd)  # in a forked child this drops a copy; the parent's lock stays


_held: weakref.WeakSet[IpcLock] = weakref.WeakSet()


def _forget_inherited() -> None:
    for lock in list(_held):
        lock._forget()


if HAS_OWNERS:
    os.register_at_fork(after_in_child=_forget_inherited)


def _lock(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(fd: int, path: str) -> bool:
    """True while ``path`` still names the open file.

    old host                 new host A                  new host B
    holds the lock           opens the file
    unlinks it, closes       gets the lock of a file     makes a new file
                             that has no name            gets its lock too
    """
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _is_locked(path: str) -> bool:
    """Whether a host holds ``path``'s lock, without making or keeping it."""
    try:
        fd = os.open(f"{path}.lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _lock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def _remove_socket(path: str) -> None:
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_socket:  # another program's file: not to be unlinked
        raise AddressInUse(f"{path} exists and is no socket: remove it or use another path")
    os.unlink(path)


# ---------------------------------------------------------------- connection files


class ConnectionFile(NamedTuple):
    """What a client of the same user must know to reach a host.

    ``host`` and ``port`` are what clients are told to use (``port`` None: the host listens on ipc alone);
    ``ipc`` is the socket path without ``ipc://``; ``server_key`` the CURVE public key (Z85, 40 characters),
    None when TCP is off or insecure; ``started`` is in seconds since 1970; ``grace_s`` is how long a stop lets calls go
    on, None from a host that does not say so. It holds no secret.
    """

    server_id: str
    host: str
    port: int | None
    pid: int
    ipc: str
    server_key: str | None
    version: str
    started: float
    grace_s: float | None = None

    @classmethod
    def from_json(cls, data: bytes) -> ConnectionFile:
        """The record in ``data``; unknown fields are ignored. Raises ConfigError for any other shape."""
        try:
            fields = json.loads(data)
        except (ValueError, RecursionError) as exc:
            raise ConfigError(f"not JSON: {exc}") from exc
        if not isinstance(fields, dict):
            raise ConfigError("not a JSON object")
        for name, types in _FIELD_TYPES.items():
            value = fields.get(name)
            if not isinstance(value, types) or isinstance(value, bool):
                raise ConfigError(f"field {name} is missing or of a wrong type")
        if fields["pid"] <= 0 or not os.path.isabs(fields["ipc"]):
            raise ConfigError("field pid or ipc has an impossible value")
        if not 0 <= (fields.get("grace_s") or 0) < math.inf:
            raise ConfigError("field grace_s has an impossible value")
        return cls(**{name: fields[name] for name in _FIELD_TYPES if name in fields})

    def to_json(self) -> bytes:
        """The record as one JSON object."""
        return json.dumps(self._asdict(), indent=1).encode()

    @property
    def path(self) -> Path:
        """Where this record is kept: beside the socket."""
        return Path(self.ipc).parent / f"{file_name(self.server_id)}.json"

    @property
    def is_live(self) -> bool:
        """Whether the host still runs: its lock is held and its process is there."""
        return _is_locked(self.ipc) and _is_running(self.pid)


_NONE = type(None)
_FIELD_TYPES: dict[str, tuple[type, ...]] = {
    "server_id": (str,),
    "host": (str,),
    "port": (int, _NONE),
    "pid": (int,),
    "ipc": (str,),
    "server_key": (str, _NONE),
    "version": (str,),
    "started": (int, float),
    "grace_s": (int, float, _NONE),
}


def publish(record: ConnectionFile) -> Path:
    """Write the connection file (mode 0600, in one step) and return its path.

    Called by a host that holds the `IpcLock` of ``record.ipc``, once it listens. Raises ConfigError.
    """
    private_dir(record.path.parent)
    write_private(record.path, record.to_json(), lasting=False)  # after a power cut the host is gone as well
    return record.path


def is_published(record: ConnectionFile) -> bool:
    """Whether the connection file is there and says the same."""
    return _read_record(record.path) == record


def withdraw(record: ConnectionFile) -> None:
    """Remove the connection file, if it is this one; to be called before the lock is released. Never raises."""
    with contextlib.suppress(OSError):
        if is_published(record):
            record.path.unlink()


def list_hosts() -> list[ConnectionFile]:
    """This user's live hosts on this machine, the oldest first. Removes what dead ones left behind."""
    return sorted((record for record in _records() if _live(record)), key=lambda record: record.started)


def sweep() -> None:
    """Remove what hosts that were killed have left behind, whenever they were killed. Never raises."""
    list_hosts()
    for place in places():
        with contextlib.suppress(ConfigError, OSError):
            directory = private_dir(place, create=False)
            for lock in directory.glob("*.ipc.lock"):  # of those that died before their record was written
                with contextlib.suppress(AddressInUse, ConfigError), IpcLock(str(lock)[: -len(".lock")], wait_s=0):
                    pass
            for start in directory.glob("*.start"):
                _forget_member(start)
            for draft in directory.glob(".*"):
                if (
                    re.search(r"\.json\.[0-9a-f]{12}$", draft.name)
                    and time.time() - draft.stat().st_mtime > DRAFT_AGE_S
                ):
                    draft.unlink()


def _forget_member(start: Path) -> None:
    """Remove the word that a member of a cluster has begun, if it was killed so long ago that others need none.

    The next start of a member here tells them that it is dead, for their leases to be over at once.
    """
    with contextlib.suppress(AddressInUse, ConfigError, OSError):
        if time.time() - start.stat().st_mtime > MEMBER_AGE_S:
            with IpcLock(str(start.with_suffix(".ipc")), wait_s=0):
                start.unlink()


def find_host(host: str, port: int) -> ConnectionFile | None:
    """This user's live host that a client calls ``host:port``, None when there is none on this machine.

    ``host`` must mean this machine (see `is_this_machine`) or be the very name the host was started with.
    """
    here = is_this_machine(host)
    found = [r for r in _records() if r.port == port and (here or r.host == host) and _live(r)]
    return max(found, key=lambda record: record.started, default=None)


def hosts_at(host: str) -> list[ConnectionFile]:
    """The hosts of this user with a TCP port that ``host`` may mean: all those here, or those that are called so."""
    here = is_this_machine(host)
    return [record for record in list_hosts() if record.port is not None and (here or record.host == host)]


def only_host(host: str, server_id: str = "") -> tuple[str, int]:
    """Host and port of the one host that a program means which says no port; the shell finds it in the same way.

    Raises HostUnreachable where there is none, ConfigError where there are several, or none that could be found here.
    """
    found = [record for record in hosts_at(host) if server_id in ("", record.server_id)]
    if not found and not is_this_machine(host):
        raise ConfigError(f"a host on {host} needs its port: RpcClient({host!r}, PORT)")
    if not found:
        which = f"no host {server_id!r} of yours" if server_id else "no host of yours"
        raise HostUnreachable(f"{which} is running on this machine: `as_server start` runs one")
    if len(found) > 1:
        names = ", ".join(f"{record.server_id} at {record.host}:{record.port}" for record in found)
        raise ConfigError(
            f"{len(found)} hosts are running: {names}; say which, as in RpcClient('localhost', {found[0].port})"
        )
    assert found[0].port is not None
    return found[0].host, found[0].port


def _records() -> Iterator[ConnectionFile]:
    """Every readable connection file of this user."""
    for place in places():
        try:
            directory = private_dir(place, create=False)
            paths = sorted(directory.glob("*.json"))
        except FileNotFoundError:
            continue
        except (ConfigError, OSError) as exc:
            log.debug("no hosts are looked for in %s: %s", place, exc)
            continue
        for path in paths:
            record = _read_record(path)
            if record is not None:
                yield record


def _read_record(path: Path) -> ConnectionFile | None:
    try:
        record = ConnectionFile.from_json(read_private(path))
        if record.path.name != path.name or not os.path.samefile(record.path.parent, path.parent):
            raise ConfigError(f"a file of this content belongs at {record.path}")
    except FileNotFoundError:  # withdrawn since the directory was read
        return None
    except ConfigError as exc:
        log.debug("connection file %s ignored: %s", path, exc)
        return None
    return record


def _live(record: ConnectionFile) -> bool:
    if record.is_live:
        return True
    if not _is_locked(record.ipc):
        _bury(record)
    # Otherwise the lock is held but the pid is gone: a host in another pid namespace, or a starting host
    # that has not yet written its own record. Neither may be removed here.
    return False


def _bury(record: ConnectionFile) -> None:
    """Remove a dead host's files, under its lock and only if the record is still the one judged."""
    with contextlib.suppress(AddressInUse, ConfigError), IpcLock(record.ipc, wait_s=0):
        if _read_record(record.path) == record:
            withdraw(record)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it runs, as another user
        return True
    return True
