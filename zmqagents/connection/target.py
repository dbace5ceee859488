"""Which host is meant, and how it is reached: by its Unix socket on this machine, else by TCP with its CURVE key.

A host of this machine is found by its connection file, which holds its key too; the key of any other host must have
been added to the user's keys.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from .. import discovery, errors
from ..checks import check_host
from ..security.roles import ActsFor
from ..wire.addresses import endpoint_of
from .session import REMEDY

if TYPE_CHECKING:
    from ..security.keys import KeyPair, KeyStore

PROBE_S = 0.8  # a refused key is told within a second

Transport = Literal["ipc", "tcp", "tcp-insecure"]  # the last: to a host that was started so, which knows no keys


def check_transport(transport: object) -> None:
    """Raise ConfigError for what is no `Transport`, nor None, which leaves the choice to `Target.resolve`."""
    if transport not in (None, "ipc", "tcp", "tcp-insecure"):
        raise errors.ConfigError(f"transport must be 'ipc', 'tcp', 'tcp-insecure' or None, not {transport!r}")


class Target(NamedTuple):
    """What a user asked for: ``host:port``, or the socket path of a private host.

    ``referred``: it stands in a reference, so whoever sent that has chosen it. Then it leads only to a host of this
    user on this machine, or to one whose key was added; every other address is refused with the same text, and nothing
    is sent there. ``acts_for``: the user in whose name the connection is, "" for this one, and the role that is asked
    for; by TCP that takes the key of this user's web processes, see `KeyStore.door_keypair`.

    ``seed``: the host is one of a cluster, which is known by the keys of that one: the ``(host, port)`` that the user
    has named. Others may be reached instead of it.
    """

    host: str
    port: int | None
    transport: Transport | None = None
    ipc: str | None = None
    referred: bool = False
    acts_for: ActsFor | None = None
    seed: tuple[str, int] | None = None

    @property
    def address(self) -> str:
        return f"ipc:{self.ipc}" if self.ipc else f"{self.host}:{self.port}"

    def resolve(self) -> tuple[str, Sequence[str]]:
        """The ZeroMQ endpoint and the host's CURVE keys (none on ipc), one of which it must prove.

        Raises HostUnreachable, AuthenticationError.
        """
        if self.referred and not self._is_known():
            raise _unknown(self.address)
        if self.ipc is not None:
            return f"ipc://{self.ipc}", ()
        assert self.port is not None
        if self.transport == "tcp-insecure":
            return endpoint_of(self.host, self.port), ()
        found = discovery.find_host(self.host, self.port)
        if found is not None and self.transport != "tcp":
            return f"ipc://{found.ipc}", ()
        if self.transport == "ipc":
            raise errors.HostUnreachable(f"no host of yours on this machine listens on {self.address}")
        if found is not None:
            return endpoint_of(self.host, self.port), () if found.server_key is None else (found.server_key,)
        known = _store().server_keys_for(*self._keyed())
        if not known:
            self._check_that_somebody_listens()
            raise errors.AuthenticationError(
                f"the key of {self.address} is not known: get it with `as_server keys show` there and add it here"
            )
        return endpoint_of(self.host, self.port), known

    def keep_keys(self, public_keys: Sequence[str]) -> None:
        """The host has told by which keys it may be known from now on. Raises ConfigError if that cannot be stored."""
        if self.port is not None:
            _store(create=False).learn_host(*self._keyed(), public_keys)

    def _keyed(self) -> tuple[str, int]:
        assert self.port is not None
        return self.seed or (self.host, self.port)

    def keys(self) -> KeyPair:
        """The key pair with which a host is called by TCP."""
        store = _store()
        return store.door_keypair() if self.acts_for is not None and self.acts_for[0] else store.client_keypair()

    def _is_known(self) -> bool:
        if self.ipc is not None:
            return any(record.ipc == self.ipc for record in discovery.list_hosts())
        assert self.port is not None
        if discovery.find_host(self.host, self.port) is not None:
            return True
        known = _store().known_hosts()
        return any((host, port) == (self.host, self.port) for host, port, _ in known)

    def _check_that_somebody_listens(self) -> None:
        """A host of this machine that has ended has taken its connection file along, and so its key is not known."""
        try:
            socket.create_connection((self.host.strip("[]"), self.port or 0), PROBE_S).close()
        except socket.gaierror as exc:
            raise errors.HostUnreachable(
                f"{self.address}: the name {self.host!r} cannot be resolved ({exc.strerror}): is it written right, and "
                "known on this machine?"
            ) from None
        except OSError as exc:
            raise errors.HostUnreachable(f"{self.address}: nothing listens there ({exc}); {REMEDY}") from None


def _store(*, create: bool = True) -> KeyStore:
    from ..security.keys import KeyStore  # here: most clients are on the machine of their host, and need no key

    return KeyStore.open(create=create)


def target_of(address: str, *, referred: bool = False) -> Target:
    """The target that ``address`` names; ``referred``: see `Target`.

    ConfigError if it names none; of one that is referred the same HostUnreachable as `Target.resolve` raises.
    """
    if address.startswith("ipc:/") and "\0" not in address:  # a path has no NUL
        return Target("", None, ipc=address[4:], referred=referred)
    try:
        host, port = _parts_of(address)
    except errors.ConfigError:
        if referred:
            raise _unknown(address) from None
        raise
    return Target(host, port, referred=referred)


def _parts_of(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise errors.ConfigError(f"{address!r} is not the address of a host")
    check_host(host)
    return host, int(port)


def _unknown(address: str) -> errors.HostUnreachable:
    shown = address if address.isprintable() else repr(address)
    return errors.HostUnreachable.of_reference(f"{shown} is the address of no host that is known here")
