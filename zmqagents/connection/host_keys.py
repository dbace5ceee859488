"""Which of its keys a host is asked to prove, when there are two for a time (`security.rotation`).

A host proves one key. If it proves another one than it was asked for, the handshake breaks off; the next attempt to
connect asks for the next key that is known. What a host has told of its keys counts as long as this connection object
lives, also where no file of keys can be written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from .. import errors

__all__ = ["HostKeys"]

log = logging.getLogger(__name__)


class HostKeys:
    """The keys of one host, as one client knows them. ``keep`` stores what the host has told. For one thread."""

    def __init__(self, keep: Callable[[Sequence[str]], object]) -> None:
        self._keep = keep
        self._told: tuple[str, ...] = ()
        self._proved = self._asked = ""
        self._attempts = 0  # since the host has proved a key

    def __repr__(self) -> str:
        return f"<HostKeys {self._proved!r}, told {self._told!r}>"

    def choose(self, known: Sequence[str]) -> str | None:
        """The key to ask for now. ``known``: those that the store has; none where the host is to prove none."""
        if not known:
            self._asked = ""
            return None
        keys = [key for key in dict.fromkeys((self._proved, *known, *self._told)) if key in known or key in self._told]
        self._asked = keys[self._attempts % len(keys)]
        self._attempts += 1
        return self._asked

    def learn(self, told: list[str]) -> None:
        """The host has proved the key that it was asked for, and says that these are valid."""
        if not self._asked or not told:
            return
        self._proved, self._attempts = self._asked, 0
        if self._told != (keys := tuple(told)):
            self._told = keys
            try:
                self._keep(keys)
            except errors.ConfigError as exc:
                log.warning("another key of a host cannot be kept beyond the end of this program: %s", exc)
