"""The files that a host lets its clients read.

A file travels as a stream: its size first, then its bytes in chunks. The credit window of streams (`stream_sender`)
bounds what is on its way, so both ends need the same memory for any size.

What may be read is below the directories that ``--file-root`` names, and nothing without one. A path is judged by
where it really leads, all links and ``..`` followed. In between another program may put a link where a directory was,
so the way is then walked once more, from the root down, by descriptors that follow no link (openat(2), O_NOFOLLOW).
Only regular files are opened, and never in a way that waits (a fifo would). What is outside is refused alike whether
it is there or not. A hard link is a file like any other: its maker can read the file anyway.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence

from .. import errors

__all__ = ["FileRoots", "hold_apart"]

CHUNK_BYTES = 262_144  # 16 of them on their way (the window of streams) fill a connection; larger ones gain nothing
MAX_PATH = 4096  # PATH_MAX of Linux
_WALK = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def hold_apart(roots: Sequence[str], secret: str | os.PathLike[str]) -> None:
    """Raise ConfigError if the directory ``secret``, where the keys are, could be read through one of ``roots``."""
    place = os.path.realpath(secret)
    for root in roots:
        if place == root or _is_below(place, root) or _is_below(root, place):
            raise errors.ConfigError(f"file_roots: the key store {place} could be read through {root}")


def _is_below(path: str, root: str) -> bool:
    return path.startswith(root if root.endswith("/") else root + "/")


class FileRoots:
    """The files that a host serves. ``roots``: absolute paths without links. Any thread may use it."""

    def __init__(self, roots: Sequence[str], *, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._roots = tuple(roots)
        self._chunk_bytes = chunk_bytes

    def read(self, path: object) -> Iterator[int | bytes]:
        """The size of a file, then its bytes in chunks: as many as that size was when it was opened.

        ``path`` is absolute, or relative to a root. Raises PermissionRefused for what is not to be read, UnknownFile
        for what is not there, CallError if the file becomes shorter meanwhile.
        """
        with open(self.open(path), "rb", buffering=0) as file:
            left = os.fstat(file.fileno()).st_size
            yield left
            while left:
                chunk = file.read(min(self._chunk_bytes, left))
                if not chunk:
                    raise errors.CallError(f"{path!r} became shorter while it was read: {left:,} bytes are missing")
                left -= len(chunk)
                yield chunk

    def open(self, path: object) -> int:
        """A descriptor to read the file from; errors as in `read`."""
        if not isinstance(path, str) or not 0 < len(path) <= MAX_PATH or "\0" in path:
            raise errors.PermissionRefused(f"a path is a text of 1 to {MAX_PATH} characters, not {str(path)[:80]!r}")
        if not self._roots:
            raise errors.PermissionRefused("this host serves no files: it was started without --file-root DIR")
        for place in [path] if os.path.isabs(path) else [os.path.join(root, path) for root in self._roots]:
            try:
                real = os.path.realpath(place)
            except (OSError, ValueError):  # a link that changed while it was followed; what no file name can hold
                continue
            root = next((root for root in self._roots if _is_below(real, root)), None)
            if root is None:
                raise errors.PermissionRefused(f"{path!r} leads out of the directories that this host serves")
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                return open_below(root, os.path.relpath(real, root).split(os.sep), path)
        raise errors.UnknownFile(f"there is no file {path!r} in the directories that this host serves")


def open_below(root: str, parts: list[str], asked: str) -> int:
    """Walk from ``root`` to the file by descriptors: what led there without links a moment ago may have one now."""
    try:
        directory = os.open(root, _WALK)
        try:
            for part in parts[:-1]:
                below = os.open(part, _WALK, dir_fd=directory)
                os.close(directory)
                directory = below
            if not stat.S_ISREG(os.stat(parts[-1], dir_fd=directory, follow_symlinks=False).st_mode):
                raise errors.PermissionRefused(f"{asked!r} is no regular file")  # to open a device may do something
            file = os.open(parts[-1], _READ, dir_fd=directory)
        finally:
            os.close(directory)
    except (errors.PermissionRefused, FileNotFoundError, NotADirectoryError):
        raise
    except OSError as exc:
        raise errors.PermissionRefused(f"{asked!r} cannot be read by this host: {exc.strerror}") from exc
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)  # put there since
    raise errors.PermissionRefused(f"{asked!r} is no regular file")
