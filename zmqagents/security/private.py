"""Files and directories that only this user may read, and the question whether a host name is this machine.

What lies in them are keys and connection files. Each check is made on the open file or with ``lstat``, so that another
user cannot exchange the file between the check and the reading.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import ConfigError

StrPath = str | os.PathLike[str]

# On Windows, where there are clients and no hosts, a user's profile has its own access rights: there are no owners,
# mode bits and flags to look at. What reads a file as text there would change its line ends.
HAS_OWNERS = hasattr(os, "geteuid")
if HAS_OWNERS:
    import fcntl
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)

STALE_LOCK_S = 10.0  # what is done under a lock takes milliseconds

MAX_FILE_BYTES = 65_536  # connection files take about 300 bytes, key files 150

DRAFT_AGE_S = 60.0  # a file that is written takes milliseconds until it has its name


def private_dir(path: StrPath, *, create: bool = True) -> Path:
    """``path``, absolute, after a check that only this user can enter it; made with mode 0700 if missing.

    Raises ConfigError for a symbolic link, a file, a directory of another owner or one with any group or
    other permission, and when it cannot be made; FileNotFoundError if it is missing and not ``create``.
    """
    directory = Path(os.path.abspath(path))
    try:
        if create:
            directory.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                directory.mkdir(mode=0o700)
        info = directory.lstat()  # not stat: a link may be turned round after the check
    except OSError as exc:
        if isinstance(exc, FileNotFoundError) and not create:
            raise
        raise ConfigError(f"directory {directory} cannot be made or read: {exc.strerror}") from exc
    if not stat.S_ISDIR(info.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(info.st_mode) else "not a directory"
        raise ConfigError(f"{directory} is {what}: a real directory of mode 0700 is needed")
    _check_private(directory, info, forbidden=0o077, remedy="700")
    return directory


def read_private(path: StrPath, *, forbidden: int = 0o077) -> bytes:
    """The bytes of a small file that this user owns and that has none of the ``forbidden`` permission bits.

    Raises FileNotFoundError; ConfigError for anything else that is wrong (a link, a fifo, another owner,
    open permissions, more than 64 KiB). The checks are made on the open file, so a swap is no way round.
    """
    try:
        # O_NONBLOCK: opening a fifo must not wait for its writer.
        fd = os.open(path, os.O_RDONLY | _NO_LINK | _NO_WAIT)
    except FileNotFoundError:
        raise
    except OSError as exc:
        why = "is a symbolic link" if exc.errno == errno.ELOOP else f"cannot be read: {exc.strerror}"
        raise ConfigError(f"{os.fspath(path)} {why}") from exc
    with open(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise ConfigError(f"{os.fspath(path)} is not a regular file")
        _check_private(path, info, forbidden=forbidden, remedy="600")
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{os.fspath(path)} is larger than {MAX_FILE_BYTES} bytes")
    return data


def write_private(path: StrPath, data: bytes, *, lasting: bool = True) -> None:
    """Put ``data`` at ``path`` with mode 0600 in one step: a reader sees the old file or the new one, whole.

    ``lasting``: also after a power cut, which takes the disk 0.2 to 30 ms. Raises ConfigError when the directory cannot
    be written.
    """
    directory, name = os.path.split(os.fspath(path))
    draft = os.path.join(directory, f".{name[:64]}.{os.urandom(6).hex()}")
    try:
        # O_EXCL and 0600 from the first instant: no moment in which another may open it.
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(data)
                file.flush()
                if lasting:
                    os.fsync(fd)  # else a power cut may leave the name with an empty file: a lost key
            os.replace(draft, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(draft)
            raise
    except OSError as exc:
        raise ConfigError(f"{os.fspath(path)} cannot be written: {exc.strerror}") from exc


def _check_private(path: StrPath, info: os.stat_result, *, forbidden: int, remedy: str) -> None:
    if not HAS_OWNERS:
        return
    if info.st_uid != os.geteuid():
        raise ConfigError(f"{os.fspath(path)} belongs to user {info.st_uid}, not to user {os.geteuid()}")
    if info.st_mode & forbidden:
        mode = stat.S_IMODE(info.st_mode)
        raise ConfigError(f"{os.fspath(path)} is open to others (mode {mode:04o}): chmod {remedy} {os.fspath(path)}")


@contextlib.contextmanager
def one_at_a_time(path: StrPath) -> Iterator[None]:
    """Wait until no other process is in such a block for ``path``, a file that is made. For work of milliseconds.

    Raises ConfigError when the file cannot be opened.
    """
    try:
        fd = _locked(os.fspath(path)) if HAS_OWNERS else _made(os.fspath(path))
    except OSError as exc:
        raise ConfigError(f"{os.fspath(path)} cannot be opened: {exc.strerror}") from exc
    try:
        yield
    finally:
        os.close(fd)
        if not HAS_OWNERS:
            with contextlib.suppress(OSError):
                os.unlink(path)


def _locked(path: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def _made(path: str) -> int:
    """Without flock, the process that could make the file has the lock; one that died with it has it no more."""
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o600)
        except FileExistsError:
            with contextlib.suppress(OSError):
                if time.time() - os.stat(path).st_mtime > STALE_LOCK_S:
                    os.unlink(path)
            time.sleep(0.01)


def is_this_machine(host: str) -> bool:
    """Whether ``host`` is a name or address of this machine, as far as can be told without asking DNS.

    True for ``localhost`` (and ``*.localhost``, RFC 6761), loopback and wildcard addresses, the machine's
    own host name, long or short, and any address that one of its interfaces has.
    """
    name = host.strip().strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        own = socket.gethostname().lower()
        return bool(name) and name in (own, own.partition(".")[0])
    if address.is_loopback or address.is_unspecified:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        # The kernel lets a socket bind only an address of ours; a datagram socket sends nothing by that.
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((name, 0))
    except OSError:
        return False
    return True
