"""Seals on the chain of calls that a call was made in, so that none is named there that has not made it.

A call that comes back through another host names, in its option ``chain``, the calls that it was made in. What it is
allowed for that (to enter the turn of a reentrant agent, to be refused as a deadlock) must not be had by writing the
task id of another user's call there. So a host seals each of its own task ids as it leaves in a chain, with a key that
it makes at its start, and believes no other. It passes on the seals of other hosts, which only these can check.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

__all__ = ["Seals"]

_MARK = "!"


class Seals:
    """Seals with one key, a new one if none is given. Any thread may use it."""

    def __init__(self, key: bytes | None = None) -> None:
        self.key = os.urandom(16) if key is None else key

    def seal(self, chain: Iterable[str]) -> list[str]:
        """``chain`` with each task id sealed; what is sealed already stays as it is."""
        return [entry if _MARK in entry else f"{entry}{_MARK}{self._sign(entry)}" for entry in chain]

    def is_ours(self, entry: str) -> bool:
        """Whether this key has sealed ``entry``."""
        import hmac

        task_id, _, sign = entry.partition(_MARK)
        return hmac.compare_digest(sign.encode(), self._sign(task_id).encode())

    @staticmethod
    def task_id_of(entry: str) -> str:
        """The task id in ``entry``; "" if it has no seal at all."""
        task_id, mark, _ = entry.partition(_MARK)
        return task_id if mark else ""

    def _sign(self, task_id: str) -> str:
        import hashlib  # only here: it loads OpenSSL, and a host that calls no other has no need of it

        return hashlib.blake2b(task_id.encode(), key=self.key, digest_size=8).hexdigest()
