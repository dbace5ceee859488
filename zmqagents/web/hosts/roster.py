"""Which hosts a cluster has, and the connections to them.

Any host tells of all. The one that answered last is asked first, then the others that are known, then those that the
user has named: so the web process goes on when the hosts that it began with have gone. All are known by the key of the
one that was named.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any, cast

from ... import errors
from ...client.cluster.handle import Cluster
from ...client.proxy import request_body, value_of
from ...client.rpc import RpcClient, rows
from ...cluster.protocol import HostRow
from ...connection.connection import connect
from ...security.roles import ActsFor
from ...wire.link import Link
from ...wire.messages import Op

__all__ = ["Roster", "joined_at"]

PAGE = 500  # events that are asked for at once
ASK_S = 1.0  # for one host to tell of the others


class Roster:
    """``open_cluster`` gives the cluster by the hosts that are named. Any thread; `rows` waits."""

    def __init__(self, open_cluster: Callable[[], Cluster], name: str, timeout_s: float) -> None:
        self._open_cluster = open_cluster
        self._lock = threading.Lock()
        self._cluster: Cluster | None = None
        self._name = name
        self._timeout_s = timeout_s
        self._addresses: list[str] = []  # of the hosts that were there last, the one that has told so first
        self._there: set[str] = set()  # their incarnations
        self._drained: set[str] = set()
        self._after = ""  # the last event that was looked at

    def __repr__(self) -> str:
        return f"<Roster of {self.name} [{len(self._addresses)} hosts]>"

    @property
    def name(self) -> str:
        """The name of the cluster, "cluster" until it is known."""
        return self._name or "cluster"

    def rows(self) -> list[HostRow]:
        """The hosts, as one of them knows them. Raises what stands in the way: HostUnreachable, UnknownCluster ..."""
        link = self._opened().link
        error: Exception | None = None
        for address in [*self._addresses, ""]:  # at last whichever of those that were named
            try:
                found = _hosts_by(link.connection_at(address) if address else link)
            except (errors.ZmqAgentsError, OSError, TimeoutError) as exc:
                error = exc
                continue
            self._addresses = [row["address"] for row in found]
            self._note_ends(link.connection_at(self._addresses[0]), {row["incarnation"] for row in found})
            return found
        assert error is not None
        raise error

    def has_ended(self, incarnation: str) -> bool:
        """Whether a host that is there no more has drained before: it has ended in order."""
        return incarnation in self._drained

    def _note_ends(self, link: Link, there: set[str]) -> None:
        gone, self._there = self._there - there, there
        with contextlib.suppress(errors.ZmqAgentsError, OSError, TimeoutError):
            while gone:
                page = _asked(link, Op.EVENTS, {"after": self._after, "most": PAGE})
                events = rows(page["rows"])
                self._drained |= {str(event["what"]) for event in events if event["kind"] == "draining"}
                self._after = str(page["following"]) or self._after
                if len(events) < PAGE:
                    break

    def client(self, address: str, acts_for: ActsFor | None = None) -> RpcClient:
        """A client of the host at an address, in the name of a user or of this process."""
        cluster = self._cluster
        if cluster is None:
            raise errors.HostUnreachable(f"no host of the cluster {self._name} is known")
        target = cluster.link.target_at(address)._replace(acts_for=acts_for)
        return RpcClient(link=connect(target), timeout=self._timeout_s)

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            cluster, self._cluster = self._cluster, None
        if cluster is not None:
            cluster.close()

    def _opened(self) -> Cluster:
        with self._lock:
            if self._cluster is None:
                cluster = self._open_cluster()
                if self._name and cluster.name != self._name:
                    cluster.close()
                    raise errors.UnknownCluster(f"the hosts here are members of the cluster {cluster.name!r}")
                self._cluster, self._name = cluster, cluster.name
            return self._cluster


def _asked(link: Link, op: str, options: dict[str, Any]) -> Any:
    """What the host at the end of a link answers. Not as a result, whose failure would be told if nobody waits."""
    return value_of(link, link.call("", op, request_body(link, op, (), {}), options=options, timeout=ASK_S))


def _hosts_by(link: Link) -> list[HostRow]:
    """What the host at the end of a link tells of all."""
    return cast("list[HostRow]", rows(_asked(link, Op.HOSTS, {})))


def joined_at(incarnation: str) -> int:
    """When a member has joined, as its incarnation says; the larger the later."""
    moment = incarnation.split("/")[1:2]
    return int(moment[0]) if moment and moment[0].isdecimal() else 0
