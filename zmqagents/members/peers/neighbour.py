"""The connection to another member of the cluster, by which calls are passed on to it.

It is a client's own `Channel`: it connects, asks again what a broken connection has left open, and has a thread, whose
events it posts to the router thread. The other host must have this cluster's server key, whoever has said where it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from ... import discovery
from ...connection.channel import Channel
from ...connection.requests import Call, Credit, Plain
from ...connection.target import Target, target_of
from ...security.keys import KeyStore
from ...wire.addresses import endpoint_of
from ...wire.link import Sink
from ...wire.messages import Flag, Kind

__all__ = ["Neighbour"]


class _Member(Target):
    """A host that has the server key of this cluster."""

    def resolve(self) -> tuple[str, Sequence[str]]:
        assert self.port is not None
        found = discovery.find_host(self.host, self.port)
        if found is not None:
            return f"ipc://{found.ipc}", ()
        return endpoint_of(self.host, self.port), KeyStore.open().server_keys()

    def keep_keys(self, public_keys: Sequence[str]) -> None:
        """Nothing: the keys of the cluster are this host's own."""


class Neighbour:
    """See the module's docstring. For the router thread, but for `join`."""

    def __init__(self, address: str) -> None:
        self.address = address
        target = target_of(address)
        self._channel = Channel(_Member(target.host, target.port))

    def __repr__(self) -> str:
        return f"<Neighbour at {self.address}>"

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return not self._channel.closing

    def ask(self, call: Call, sink: Sink) -> int:
        """Pass a call on, or ask for something; the number that it has on this connection."""
        return self._channel.request(call, sink, None)

    def cancel(self, call_id: int, *, alone: bool) -> None:
        """No caller waits for the call any more; its answer comes all the same."""
        self._channel.request(Plain(Kind.CANCEL, call_id, flags=Flag.ALONE if alone else 0), None, None)

    def grant(self, call_id: int, items: int) -> None:
        """Allow the stream to send ``items`` more."""
        self._channel.request(Credit(call_id, items), None, None)

    def close(self, error: Exception) -> None:
        """Close it; what is open fails with ``error``."""
        self._channel.session.fail_all(error)
        self._channel.close()

    def join(self) -> None:
        """Wait for its thread."""
        self._channel.join()
