"""Records of a cluster in a real Redis whose clock is set."""

from __future__ import annotations

import itertools
from typing import Any

from cluster_world import CLOCK
from redis_server import RedisServer
from zmqagents.store.cluster import Beat, Claim, ClusterRecords, Locate, Located, Release, Request, Save
from zmqagents.store.cluster_scripts import ClusterScripts, cluster_scripts

__all__ = ["LEASE_S", "NAME", "Clocked"]

LEASE_S = 10.0
NAME = "Account/ann"


class Clocked:
    """Records whose clock is set: ``now_s`` is Redis's time."""

    def __init__(self, server: RedisServer, scripts: ClusterScripts | None = None) -> None:
        self.client = server.client
        self.client.flushdb()
        self.records = ClusterRecords(server.url, "shop", scripts=scripts or cluster_scripts(CLOCK))
        self.numbers = itertools.count(1)
        self.set(1_000_000.0)

    def set(self, now_s: float) -> None:
        self.now_s = now_s
        self.client.set("clock", round(now_s * 1e6))

    def tick(self, seconds: float) -> None:
        self.set(self.now_s + seconds)

    def one(self, request: Request) -> Any:
        [answer] = self.records.exchange([request])
        return answer

    def claim(self, owner: str, number: int = 1, **more: Any) -> Any:
        return self.one(Claim(NAME, owner, number, "Account", **{"version": 1, **more}))

    def save(self, owner: str, epoch: int, revision: int, state: bytes | None = b"state", **more: Any) -> Any:
        return self.one(Save(NAME, owner, epoch, revision, 1, state, **more))

    def release(self, owner: str, epoch: int, following: str = "", last: Save | None = None) -> Any:
        return self.one(Release(NAME, owner, epoch, following, last))

    def where(self) -> Located:
        located: Located = self.one(Locate(NAME))
        return located

    def beat(self, who: str, start: str = "s", **more: Any) -> Beat:
        number = next(self.numbers)
        return self.records.beat(who, number, lease_s=LEASE_S, draining=False, start=start, record=b"{}", **more)

    def declare(self, who: str, number: int | None = None, *, watched: bool = True) -> bool:
        return self.records.declare(who, number, watched=watched, lease_s=LEASE_S)

    def close(self) -> None:
        self.records.close()
        self.client.close()
