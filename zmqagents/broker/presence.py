"""What others find a host by on its machine: lock, socket path, connection file. They are there as long as it lives.

Cleaners of temporary directories remove what is old, and people remove what they do not know. Without its lock file a
host could be started a second time, and the next look-up of anybody would bury the living one as dead. So the host
looks after its files every few seconds, which also keeps them young: what is gone is made again.
"""

from __future__ import annotations

import logging
import os

from .. import discovery
from ..errors import ZmqAgentsError
from ..wire.unix_listener import UnixListener

__all__ = ["Presence"]

log = logging.getLogger(__name__)


class Presence:
    """The files of one host. Used by its router thread."""

    def __init__(self, record: discovery.ConnectionFile, lock: discovery.IpcLock, listener: UnixListener) -> None:
        self._record = record
        self._lock = lock
        self._listener = listener
        self._trouble = ""  # said last

    def renew(self) -> None:
        """Make again what is gone, and say so; never raises."""
        try:
            made = self._renewed()
            trouble = "" if made is not None else f"another host has taken the lock {self._lock.lock_path}"
        except (OSError, ZmqAgentsError) as exc:
            made, trouble = [], str(exc)
        if made:
            log.warning("%s: gone, and made again: %s", self._record.server_id, ", ".join(made))
        if trouble and trouble != self._trouble:
            log.error("%s cannot be found any more by clients on this machine: %s", self._record.server_id, trouble)
        self._trouble = trouble

    def _renewed(self) -> list[str] | None:
        """The paths of what was made again; None: they are another host's now."""
        lock, path, made = self._lock, self._record.ipc, []
        if not lock.is_in_place:
            if not lock.renew():
                return None
            made.append(lock.lock_path)
        if not self._listener.is_at(path):
            self._listener.open_again(path, lock.clear_path)
            made.append(path)
        if not discovery.is_published(self._record):
            made.append(str(discovery.publish(self._record)))
        for kept in (lock.lock_path, path, str(self._record.path), os.path.dirname(path)):
            os.utime(kept)
        return made
