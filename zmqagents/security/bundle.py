"""A key store as one text, so that all hosts of a cluster can have the same: a file that is copied, or a secret.

The text is JSON, ``{"zmqagents-keys": 1, "files": {"server.key": "...", "authorized/ann.pub": "..."}}``. It has the
secret halves: whoever has it is a host of this user, and all of its clients.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from pathlib import Path

from ..errors import ConfigError
from .keys import NEXT_KEY, KeyStore, read_next
from .private import MAX_FILE_BYTES, StrPath, one_at_a_time, private_dir, read_private, write_private

__all__ = ["MAX_BUNDLE_BYTES", "exported", "imported"]

FORMAT = 1
MAX_BUNDLE_BYTES = 1 << 20  # what a secret of Kubernetes may have, too
_PAIRS = ("server.key", "client.key", NEXT_KEY)
_FILE = re.compile(
    r"(server|client|server\.next)\.key|(authorized|known_hosts)/[A-Za-z0-9%][A-Za-z0-9._@%-]{0,250}\.pub"
)


def exported(store: KeyStore) -> str:
    """All keys of ``store`` as one text, secrets included. Raises ConfigError for a file that cannot be read."""
    paths = [store.path / name for name in _PAIRS]
    paths += sorted([*store.path.glob("authorized/*.pub"), *store.path.glob("known_hosts/*.pub")])
    files: dict[str, str] = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # there is no following key, or one was revoked meanwhile
            files[path.relative_to(store.path).as_posix()] = read_private(path, forbidden=0o022).decode("ascii")
    return json.dumps({"zmqagents-keys": FORMAT, "files": files}, indent=1) + "\n"


def imported(text: str | bytes, place: StrPath, *, replace: bool = False) -> KeyStore:
    """Make the store at ``place`` one with the keys of ``text``: what that has not is removed there.

    Hosts that run with it see the clients within a second. Raises ConfigError for what is no bundle of keys, or one
    with a file that does not count, and, without ``replace``, if there is a store with another server key.
    """
    files = _checked(text)
    directory = private_dir(place)
    with one_at_a_time(directory / ".import.lock"):
        if not replace:
            _check_same_host(directory, files)
        for folder in ("authorized", "known_hosts"):
            private_dir(directory / folder)
        # The clients first, so that a host that is just starting finds a whole store once there is a server key.
        for name in sorted(files, key=lambda name: name in _PAIRS):
            _write(directory / name, files[name])
        for path in [*directory.glob("authorized/*.pub"), *directory.glob("known_hosts/*.pub"), directory / NEXT_KEY]:
            if path.relative_to(directory).as_posix() not in files:
                path.unlink(missing_ok=True)
    return KeyStore.open(directory, create=False)


def _write(path: Path, text: str) -> None:
    """What is there already is left as it is: a change of the file's times would make hosts read it again."""
    with contextlib.suppress(FileNotFoundError):
        if read_private(path, forbidden=0o022) == text.encode():
            return
    write_private(path, text.encode())


def _check_same_host(directory: Path, files: dict[str, str]) -> None:
    if not any((directory / name).exists() for name in _PAIRS):
        return
    present = KeyStore.open(directory, create=False).server_keys()
    if not any(f"public = {key}\n" in files.get(name, "") for key in present for name in _PAIRS):
        raise ConfigError(f"{directory} has another server key: use --replace to give that up, and who knows it")


def _checked(text: str | bytes) -> dict[str, str]:
    """The files in ``text``, tried out in a directory of their own."""
    if len(text) > MAX_BUNDLE_BYTES:
        raise ConfigError(f"a bundle of keys has at most {MAX_BUNDLE_BYTES} bytes, not {len(text)}")
    try:
        said = json.loads(text)
        form, files = said["zmqagents-keys"], dict(said["files"])
    except (ValueError, TypeError, LookupError):
        raise ConfigError("this is no bundle of keys: as_server keys export makes one") from None
    if form != FORMAT:
        raise ConfigError(f"the bundle of keys is of form {form!r}, and this version reads form {FORMAT}")
    for name, content in files.items():
        if not _FILE.fullmatch(name) or not isinstance(content, str) or not content.isascii():
            raise ConfigError("the bundle of keys has a file that no key store has")
        if len(content) > MAX_FILE_BYTES:
            raise ConfigError(f"{name} in the bundle of keys is larger than {MAX_FILE_BYTES} bytes")
    with tempfile.TemporaryDirectory(prefix="zmqagents-keys-") as scratch:
        trial = private_dir(scratch)
        for folder in ("authorized", "known_hosts"):
            private_dir(trial / folder)
        for name, content in files.items():
            write_private(trial / name, content.encode(), lasting=False)
        try:
            store = KeyStore.open(trial, create=False)
            read_next(trial)
            wrong = store.problems()
        except ConfigError as exc:
            raise ConfigError(f"in the bundle of keys: {_without(exc, scratch)}") from None
        if wrong:
            raise ConfigError(f"in the bundle of keys: {'; '.join(_without(each, scratch) for each in wrong)}")
    return files


def _without(trouble: object, scratch: str) -> str:
    return str(trouble).replace(f"{scratch}/", "")
