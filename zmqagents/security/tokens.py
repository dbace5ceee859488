"""Bearer tokens: a text that stands for a key of the key store where no key can be shown, in an HTTP request.

A token is ``zat.<name>.<proof>``, both in base64url. The proof is an HMAC over the name and the public key, made with a
secret that only the owner of the key store has. So nothing is kept of a token: it counts as long as the name has this
very key, with the role that stands beside it at that moment, and ends when the key is removed or replaced. All tokens
end when hosts that start prove another server key: their secret is made from its secret half.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from typing import NamedTuple

from ..errors import ConfigError
from .keys import SELF, KeyStore, Peer
from .roles import Role

__all__ = ["Holder", "token_of", "user_of_token"]

PREFIX = "zat"
MAX_CHARS = 512  # a name has 64 at most


class Holder(NamedTuple):
    """For whom a token stands: the user id as hosts know it, the name of the key, and its role."""

    user: str
    name: str
    role: Role


def token_of(store: KeyStore, name: str = SELF) -> str:
    """The token of the key ``name``; of this user's own without it. ConfigError if there is none that may have one."""
    found = _public_of(store.authorized(), name)
    if found is None:
        raise ConfigError(f"there is no key of {name!r}; as_server keys list shows those there are")
    public, peer = found
    if peer.role == "door":
        raise ConfigError(f"{name} is the key of a web process (role door): it stands for others, and has no token")
    return f"{PREFIX}.{_encoded(name.encode())}.{_encoded(_proof(store, name, public))}"


def user_of_token(store: KeyStore, token: str) -> Holder | None:
    """For whom ``token`` stands now; None for any text that is no token, or one that counts no more."""
    parts = token.split(".")
    if len(token) > MAX_CHARS or len(parts) != 3 or parts[0] != PREFIX or not token.isascii():
        return None
    try:
        name = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    found = _public_of(store.authorized(), name)
    if found is None or found[1].role == "door":
        return None
    public, peer = found
    if not hmac.compare_digest(_encoded(_proof(store, name, public)), parts[2]):
        return None
    return Holder(f"key:{name}:{public}", name, peer.role)


def _public_of(peers: Mapping[str, Peer], name: str) -> tuple[str, Peer] | None:
    return next(((public, peer) for public, peer in peers.items() if peer.name == name), None)


def _proof(store: KeyStore, name: str, public: str) -> bytes:
    secret = hashlib.sha256(b"zmqagents bearer tokens 1\0" + store.server_keypair().secret.encode()).digest()
    return hmac.new(secret, f"{name}\0{public}".encode(), hashlib.sha256).digest()


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
