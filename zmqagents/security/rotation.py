"""Another server key for the hosts of a store, without a client that is refused meanwhile.

A host proves one key to its clients, and these know it beforehand. So for a time there are two::

    server.key       the key so far          removed by `retire`, which gives its name to the other one
    server.next.key  the key that follows    proved by hosts that start when its time has come

From `rotate` on, clients that use the store accept either. All others are told of the second key by the hosts, whose
word is protected by the first one: in WELCOME, and in GOODBYE before a host ends. They keep it beside the first.
So the time until hosts prove the new key should be as long as the longest absence of a client that is to get in again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from ..errors import ConfigError
from .keys import NEXT_KEY, KeyPair, KeyStore, new_pair, read_next, write_next
from .private import one_at_a_time

__all__ = ["retire", "rotate"]


def rotate(store: KeyStore, after_s: float) -> tuple[KeyPair, float]:
    """Make the server key that follows; the new pair, and from when hosts that start have it, in epoch seconds.

    Raises ConfigError if one is following already.
    """
    with one_at_a_time(store.path / ".lock"):
        if read_next(store.path) is not None:
            raise ConfigError("two server keys are valid already: end that first, by as_server keys retire")
        pair, proved_from = new_pair(), time.time() + after_s
        write_next(store.path, pair, proved_from)
    return pair, proved_from


def retire(store: KeyStore, in_use: Iterable[tuple[str, str | None]]) -> str:
    """Let the former server key be valid no more; the public half of the one that is left.

    ``in_use``: the ids of the hosts that run with this store, and the public keys that they prove. Raises ConfigError
    while one of them proves the former key, before the time of the new one, and if there is only one key.
    """
    with one_at_a_time(store.path / ".lock"):
        following = read_next(store.path)
        if following is None:
            raise ConfigError("there is only one server key: as_server keys rotate makes the next one")
        pair, proved_from = following
        left_s = proved_from - time.time()
        if left_s > 0:
            raise ConfigError(f"hosts prove the new server key in {left_s:.0f} s at the earliest: wait for that")
        former = [server_id for server_id, key in in_use if key is not None and key != pair.public]
        if former:
            raise ConfigError(f"these hosts prove the former server key: restart them first: {', '.join(former)}")
        store.replace_server_pair(pair)
        (store.path / NEXT_KEY).unlink(missing_ok=True)
    return pair.public
