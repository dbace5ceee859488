"""What the hosts of a cluster do, each and all together: a `House` of many hosts.

While somebody reads the live stream each host is asked once a second, all at once, and so is one of them which hosts
there are. A reader gets a line for each host, and all figures of the one that the page is about. A host that was there
and is no more is shown as gone for `GONE_S`, for its lease may be over before somebody looks; one that has drained is
not.
"""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.exceptions import HTTPException

from ... import errors
from ...client.rpc import RpcClient
from ...cluster.protocol import HostRow
from ...security.roles import ActsFor
from .doors import Doors
from .house import Place
from .live import EVERY_S, SILENT_S, Live, Reader
from .roster import Roster, joined_at
from .series import OUTCOMES, short
from .watcher import Watcher

__all__ = ["Fleet"]

GONE_S = 600.0
MAX_ASKING = 64  # threads, each of which waits for a host


class Member:
    """One host: what the others tell of it, and what it tells itself."""

    def __init__(self, roster: Roster, row: HostRow, pool: ThreadPoolExecutor) -> None:
        self.row = row
        self.gone_at: float | None = None  # since when no host knows it any more
        self.id = row["server_id"]
        address = row["address"]
        self.watcher = Watcher(lambda: roster.client(address), name=self.id)
        self.doors = Doors(functools.partial(roster.client, address))
        self.live = Live(self.watcher, functools.partial(_run_in, pool))

    @property
    def drains(self) -> bool:
        """Whether it was about to end when it was last seen."""
        return self.row["state"] == "draining" or bool((self.live.figures or {}).get("draining"))

    def told(self) -> dict[str, Any]:
        """What the map shows of it."""
        row, figures = self.row, self.live.figures or {}
        own: Mapping[str, Any] = figures.get("cluster") or {}
        point = self.live.point
        per_s = sum(point[f"{outcome}_per_s"] for outcome in OUTCOMES) if point else None
        now = {"agents": own.get("agents", row["agents"]), "running": _busy(figures, row["running"])}
        return {
            "id": self.id, "up": self.live.up, "seen": self.live.seen, "gone": self.gone_at is not None,
            "draining": self.drains,
            **{name: row[name] for name in ("address", "state", "version", "labels", "capacity", "lease_left")}, **now,
            **{name: own.get(name) for name in ("claims", "fenced", "relayed", "activations_waiting")},
            "calls_per_s": short(per_s), "p99_s": short(point.get("p99_s")),
        }  # fmt: skip

    def close(self) -> None:
        """Close the connections."""
        self.watcher.close()
        self.doors.close()


class Fleet:
    """A `House`, see the module's docstring."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._pool = ThreadPoolExecutor(MAX_ASKING, "zmqagents-hosts")
        self._members: dict[str, Member] = {}  # by address
        self._readers: dict[Reader, str] = {}
        self._asking: asyncio.Task[None] | None = None
        self._rows: asyncio.Task[list[HostRow]] | None = None  # that are waited for
        self._problem = ""  # why nobody tells which hosts there are
        self._closing: set[asyncio.Task[None]] = set()
        self.doors = Doors(self._connect)

    def __repr__(self) -> str:
        return f"<Fleet {self.name} [{len(self._members)} hosts]>"

    @property
    def name(self) -> str:
        """The name of the cluster."""
        return self._roster.name

    @property
    def cluster(self) -> str:
        """The name of the cluster."""
        return self._roster.name

    # ------------------------------------------------------------ hosts

    async def place(self, host: str) -> Place:
        """The host of this id or address, "": the first one. HTTPException if there is none."""
        await self.get_ready()
        member = self._find(host)
        if member is None:
            text = f"the cluster {self.name} has no host {host!r}"
            raise HTTPException(404 if self._members else 503, text if self._members else self._nobody())
        return Place(member.live, member.doors)

    def _find(self, host: str) -> Member | None:
        members = self._sorted()
        if not host:
            return next((each for each in members if each.gone_at is None), None)
        return next((each for each in members if host in (each.id, each.row["address"])), None)

    def address_of(self, host: str) -> str:
        """The address of the host of this id. HTTPException if there is none."""
        member = self._find(host)
        if member is None or not host:
            raise HTTPException(404, f"the cluster {self.name} has no host {host!r}")
        return member.row["address"]

    def _sorted(self) -> list[Member]:
        return sorted(self._members.values(), key=lambda each: (each.id, each.row["address"]))

    def told(self) -> list[dict[str, Any]]:
        """All hosts, as they were last seen."""
        return [member.told() for member in self._sorted()]

    def _nobody(self) -> str:
        return self._problem or f"no host of the cluster {self.name} is known yet"

    def _connect(self, acts_for: ActsFor | None) -> RpcClient:
        """To a host that answers."""
        members = sorted(self._members.values(), key=lambda each: (not each.live.up, each.gone_at is not None))
        if not members:
            if self._rows is None:  # for the next request
                self._rows = asyncio.ensure_future(_run_in(self._pool, self._roster.rows))
            raise errors.HostUnreachable(self._nobody())
        return self._roster.client(members[0].row["address"], acts_for)

    # ------------------------------------------------------------ asking

    async def look(self, host: str) -> None:
        """Ask all hosts now, unless somebody reads the stream."""
        if not self._readers:
            await self._take()

    async def get_ready(self) -> None:
        """Find out which hosts there are, unless some are known."""
        if not self._members:
            await self._take()

    async def _take(self) -> None:
        await self._take_rows()
        await asyncio.gather(*(member.live.take() for member in self._members.values()))

    async def _take_rows(self) -> None:
        """Ask which hosts there are; what comes too late is taken the next time."""
        answer = self._rows = self._rows or asyncio.ensure_future(_run_in(self._pool, self._roster.rows))
        done, _ = await asyncio.wait([answer], timeout=SILENT_S if not self._members else EVERY_S / 4)
        if not done or self._rows is not answer:
            return
        self._rows = None
        try:
            rows, self._problem = answer.result(), ""
        except (errors.ZmqAgentsError, OSError, TimeoutError) as exc:
            self._problem = str(exc)
            return
        self._update(rows)

    def _update(self, rows: Iterable[HostRow]) -> None:
        latest: dict[str, HostRow] = {}
        for row in sorted(rows, key=lambda row: joined_at(row["incarnation"])):
            latest[row["address"]] = row
        now = time.monotonic()
        for address, row in latest.items():
            member = self._members.get(address)
            if member is None or member.row["server_id"] != row["server_id"]:
                self._drop(address)
                member = self._members[address] = Member(self._roster, row, self._pool)
            member.row, member.gone_at = row, None
        for address, member in list(self._members.items()):
            if address not in latest:
                member.gone_at = now if member.gone_at is None else member.gone_at
                back = any(row["server_id"] == member.row["server_id"] for row in latest.values())
                ended = member.drains or self._roster.has_ended(member.row["incarnation"])
                if back or ended or now - member.gone_at > GONE_S:
                    self._drop(address)
        shared = Counter(member.row["server_id"] for member in self._members.values())
        for address, member in self._members.items():
            server_id = member.row["server_id"]
            member.id = server_id if shared[server_id] == 1 else f"{server_id}@{address}"

    def _drop(self, address: str) -> None:
        member = self._members.pop(address, None)
        if member is not None:
            task = asyncio.ensure_future(asyncio.to_thread(member.close))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    # ------------------------------------------------------------ the stream

    async def stream(self, may_read: Callable[[], bool], host: str) -> AsyncIterator[str]:
        """Server-sent events for one reader, with all figures of one host."""
        reader = Reader()
        self._readers[reader] = host
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        elif self._members:
            reader.put(self._tick(host, self.told()))
        try:
            async for text in reader.events(may_read):
                yield text
        finally:
            del self._readers[reader]

    async def _ask(self) -> None:
        while self._readers:
            began = time.monotonic()
            await self._take()
            told, texts = self.told(), dict[str, str]()
            for reader, host in self._readers.items():
                reader.put(texts.get(host) or texts.setdefault(host, self._tick(host, told)))
            await asyncio.sleep(max(0.0, EVERY_S - (time.monotonic() - began)))

    def _tick(self, host: str, hosts: list[dict[str, Any]]) -> str:
        member = self._find(host)
        full = [] if member is None else [{**member.live.host(), "id": member.id}]
        told = {"name": self.name, "problem": self._problem, "hosts": hosts}
        return json.dumps({"at": round(time.time(), 3), "hosts": full, "cluster": told}, separators=(",", ":"))

    # ------------------------------------------------------------ for machines

    async def figures(self) -> list[tuple[str, Mapping[str, Any] | None]]:
        """The figures of each host, None for one that does not answer, or has died of late."""
        await self.look("")
        found = [(each.id, each.live.figures if each.live.up else None) for each in self._sorted()]
        return found or [(self.name, None)]

    async def not_live(self) -> list[str]:
        """Why no host has answered of late."""
        return await self._all(lambda member: member.watcher.not_live())

    async def not_ready(self) -> list[str]:
        """Why no host can take calls; empty if one can."""
        return await self._all(lambda member: member.watcher.not_ready())

    async def _all(self, ask: Callable[[Member], list[str]]) -> list[str]:
        """What speaks against each host; empty if nothing does against one of them."""
        await self._take_rows()
        members = [member for member in self._sorted() if member.gone_at is None]
        asked = [asyncio.ensure_future(_run_in(self._pool, functools.partial(ask, member))) for member in members]
        reasons = []
        for member, answer in zip(members, asked, strict=True):
            found = await answer
            if not found:
                return []
            reasons += [f"{member.id}: {reason}" for reason in found]
        return reasons or [self._nobody()]

    def close(self) -> None:
        """Close the connections."""
        for member in self._members.values():
            member.close()
        self.doors.close()
        self._roster.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _busy(figures: Mapping[str, Any], known: int) -> int:
    return int(figures["workers"]["busy"]) if "workers" in figures else known


async def _run_in(pool: ThreadPoolExecutor, function: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(pool, function)
