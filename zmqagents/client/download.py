"""A file of the host as it arrives: written to a draft beside its place, and renamed when it is whole.

An interrupted download leaves nothing. Only ``kill -9`` leaves the draft, ``.<name>.<8 hex digits>.part``.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from typing import Any

from .. import errors

# On Windows a file is opened as text unless told otherwise.
_AS_IT_IS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

Progress = Callable[[int, int], object]  # bytes there, bytes in all


class Incoming:
    """A file that is being received: ``with Incoming(...) as file``, `take` every item of the stream, then `finish`.

    Entering makes the draft and raises OSError where that cannot be; leaving without `finish` removes it.
    ``progress(bytes there, bytes in all)`` is what `report` calls.
    """

    def __init__(self, path: str | os.PathLike[str], progress: Progress | None = None) -> None:
        self._path = os.fspath(path)
        self._progress = progress
        self._there = 0
        self._size: int | None = None
        directory, name = os.path.split(self._path)
        self._draft = os.path.join(directory, f".{name[:128]}.{os.urandom(4).hex()}.part")

    def __enter__(self) -> Incoming:
        if os.path.isdir(self._path) or not os.path.basename(self._path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._path)
        fd = os.open(self._draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _AS_IT_IS, 0o666)  # less the umask
        self._file = open(fd, "wb", buffering=0)  # closed by __exit__
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._draft)

    def take(self, item: Any) -> None:
        """One item of the stream. RemoteProtocolError if it is not what a host sends."""
        if self._size is None and type(item) is int and item >= 0:
            self._size = item
        elif self._size is not None and isinstance(item, (bytes, memoryview)) and 0 < len(item) <= self._missing:
            view = memoryview(item)
            while view:
                view = view[self._file.write(view) :]  # fewer at once where a signal comes in between
            self._there += len(item)
        else:
            raise errors.RemoteProtocolError("the host sent an item that is no part of a file")

    def report(self) -> None:
        """Call ``progress``, if there is one."""
        if self._progress is not None:
            self._progress(self._there, self._size or 0)

    def finish(self) -> int:
        """Give the file its name; its size. RemoteProtocolError if the stream ended early."""
        if self._size is None or self._missing:
            raise errors.RemoteProtocolError("the host ended the file too early")
        os.fsync(self._file.fileno())  # else a power cut may leave the name with less
        os.replace(self._draft, self._path)
        return self._size

    @property
    def _missing(self) -> int:
        return (self._size or 0) - self._there
