"""One host as a member of a cluster: what the router thread has of it.

`Member` puts the parts together: events of the steward go in (`on_event`), and what the host has to do comes out. The
router asks two things before a call of a cluster's agent starts, and both again before an answer leaves:

    member.lease.admits(now, waiting_s)        may this host start calls at all?    (`cluster.lease`)
    member.activations.readiness(name)         may this agent's?                    (`cluster.activations`)

What it wants of an agent it asks of `Member.activations`, and gives the effects to `carry`, which sends what is for
Redis and returns the rest::

    for effect in member.carry(member.activations.activate("Account/ann", "Account", 2)):
        ...

*Told dead.* The others believe that this host has stopped, and may take its agents. `Died` comes out; the host marks
running calls of cluster agents cancelled, releases each agent that has more to save with its state, and calls
`leave_dead`, which releases the rest. All of it is sent under the old name, and the fence takes it wherever nobody has
claimed the agent yet. When every release is answered, or after `PATIENCE_S`, what is left is dropped and the host joins
as a new incarnation.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from ..store.cluster import ClusterRecords, Locate, Located
from ..telemetry.meters import EDGES_S
from ..telemetry.metrics import percentile
from .activations import (
    Activated,
    Activations,
    Ask,
    Cleared,
    Dropped,
    Effect,
    Elsewhere,
    Gone,
    NotActivated,
    Note,
    Phase,
    Removed,
    Renew,
    Room,
    Send,
    Soon,
    Taken,
)
from .cache import Homes
from .lease import PATIENCE_S, Lease, LeaseState, boot_time
from .observers import Observers
from .placement import MemberInfo, Placement, info_of, record_of
from .steward import (
    Answered,
    Barred,
    Beaten,
    Declared,
    Event,
    Identity,
    MissedBeat,
    Rejoined,
    ServerChanged,
    Steward,
    Told,
    ToldDead,
    Trouble,
)

__all__ = ["Died", "HostEffect", "Joined", "Member", "Unsaved", "Whereabouts"]

LOOK_AROUND_S = 0.2  # between two questions which members there are, beside those of the beats


class Died(NamedTuple):
    """This incarnation is dead; see the module's docstring."""

    incarnation: str


class Joined(NamedTuple):
    """This host has a lease as this incarnation: it may start calls."""

    incarnation: str


class Unsaved(NamedTuple):
    """These calls have run, and Redis has not taken their saves for `PATIENCE_S`: CallLost. The saves go on."""

    calls: tuple[tuple[str, object], ...]  # the agent and the call


class Whereabouts(NamedTuple):
    """Where an agent is, after `Member.locate`. ``address``: "" if nobody has it, or nobody knows its owner.

    ``options``: those that it was made with, in the bytes of its host; None if there is no such agent.
    """

    name: str
    owner: str
    address: str
    epoch: int
    options: bytes | None = None


HostEffect = (
    Activated | Elsewhere | NotActivated | Taken | Dropped | Gone | Removed | Renew | Cleared | Room | Died | Joined
    | Unsaved | Whereabouts | Told | Soon
)  # fmt: skip


class Member:
    """A member of a cluster, for the router thread; see the module's docstring.

    ``info``: what the host says of itself; its incarnation is set here. ``clock``: seconds, `boot_time` but in tests.
    """

    def __init__(
        self, steward: Steward, identity: Identity, info: MemberInfo, *, clock: Callable[[], float] = boot_time,
        chance: random.Random | None = None,
    ) -> None:  # fmt: skip
        self.homes = Homes()
        self.placement = Placement(chance)
        self.observers = Observers(identity.lease_s)
        self.lease = Lease(identity.lease_s)
        self._steward = steward
        self._identity = identity
        self._info = info
        self._clock = clock
        self._has_joined = False
        self._writes = 0  # no request of a lower form of records is without an answer; 0: no form is known
        self._looked = float("-inf")
        self._leaving_since: float | None = None
        self._is_full = False
        self.barred = ""  # why Redis does not let this host join again
        self._troubled_since: float | None = None  # nothing gets through to Redis
        self.activations = Activations(info.incarnation, self.observers, clock)

    def __repr__(self) -> str:
        return f"<Member {self.incarnation} {self.activations!r}>"

    @property
    def incarnation(self) -> str:
        """The name of this incarnation."""
        return self.activations.me

    @property
    def is_stuck(self) -> bool:
        """Whether Redis takes no claim and no save: it does not answer, or is at its ``maxmemory``."""
        return self._is_full or self.lease.is_away

    # ------------------------------------------------------------ a host's life

    def start(self) -> None:
        """Join. Raises `ConfigError` if this host may not, `StoreUnavailable` without a Redis."""
        incarnation = self._steward.join()
        self.activations = Activations(incarnation, self.observers, self._clock)
        self.describe(self._info)
        self._steward.start()

    def describe(self, info: MemberInfo) -> None:
        """What this host says of itself from the next beat on."""
        self._info = replace(info, incarnation=self.incarnation)
        self._steward.describe(record_of(self._info), draining=info.draining, writes=self._writes)

    def leave_dead(self) -> list[HostEffect]:
        """After `Died`: release what is left, and join anew when that is done."""
        self._leaving_since = self._clock()
        effects = self.activations.stop_claiming()
        for name in self.activations:
            if self.activations.phase(name) in (Phase.STARTING, Phase.ACTIVE):
                effects += self.activations.release(name)
        return self.carry(effects) + self._rejoin_when_done()

    def close(self, left_s: float = 0.0) -> None:
        """The host is empty: tell that it ends, and end the threads. ``left_s``: see `Steward.close`."""
        self._steward.close(left_s, obituary=True)

    # ------------------------------------------------------------ questions

    def look_around(self) -> None:
        """A member is not as it was known: ask which there are, unless that was just done."""
        now = self._clock()
        if now - self._looked >= LOOK_AROUND_S:
            self._looked = now
            self._steward.beat_soon()

    def give_up(self) -> list[HostEffect]:
        """What has waited for Redis for `PATIENCE_S` waits no more, if nothing has got through for so long."""
        since, before = self._troubled_since, self._clock() - PATIENCE_S
        if since is None or since > before:
            return []
        lost = self.activations.give_up_all(before)
        return [Unsaved(tuple(lost))] if lost else []

    def locate(self, name: str) -> None:
        """Ask Redis where an agent is; `Whereabouts` comes out."""
        self._steward.send(Locate(name))

    def address_of(self, incarnation: str) -> str:
        """The address of a member, "" for one that is not known."""
        info = self.placement.find(incarnation)
        return info.address if info is not None else ""

    def inquire(self, look: Callable[[ClusterRecords], object], token: Hashable) -> None:
        """Look something up in the records, pages of names, say; `Told` comes out."""
        self._steward.inquire(look, token)

    def figures(self) -> dict[str, Any]:
        """For `status`."""
        now, durations = self._clock(), self.activations.durations
        counts = tuple(durations.counts)
        return {
            **asdict(self.activations.counters), "incarnation": self.incarnation, "state": self.lease.state(now).value,
            "lease_left": round(self.lease.left(now), 3), "agents": len(self.activations),
            "activations_waiting": self.activations.waiting,
            "activation_p50_s": percentile(EDGES_S, counts, 0.5), "activation_p99_s": percentile(EDGES_S, counts, 0.99),
            "members": len(self.placement.members), "homes": len(self.homes), "home_hits": self.homes.hits,
            "home_misses": self.homes.misses, "round_trip_ms": round(self._steward.round_trip_s * 1000, 3),
            "exchanges": self._steward.exchanges,
        }  # fmt: skip

    # ------------------------------------------------------------ what goes in and out

    def carry(self, effects: Iterable[Effect]) -> list[HostEffect]:
        """Send what is for Redis; what is for the host."""
        for_host: list[HostEffect] = []
        for effect in effects:
            if isinstance(effect, Send):
                self._steward.send(effect.request)
            elif isinstance(effect, Ask):
                sight = self.observers.judge(effect.incarnation, self._clock())
                self._steward.ask(effect.incarnation, sight.number, watched=sight.watched)
            elif isinstance(effect, Note):
                self._steward.note(effect.kind, effect.what)
            else:
                for_host.append(effect)
        return for_host

    def on_event(self, event: Event) -> list[HostEffect]:
        """What the host has to do after an event of the steward, before it gives the next one."""
        return self._on_event(event) + self._rejoin_when_done()

    def _on_event(self, event: Event) -> list[HostEffect]:
        if isinstance(event, Told):
            return [event]
        if isinstance(event, Answered):
            if isinstance(event.request, Locate) and not event.request.mark:
                return self._on_located(event)
            return self.carry(self.activations.answered(event.request, event.answer))
        if isinstance(event, Beaten):
            return self._on_beat(event)
        if isinstance(event, MissedBeat):
            self.lease.unanswered(event.sent_at)
            return []
        if isinstance(event, Declared):
            return self._on_declared(event)
        if isinstance(event, ServerChanged):
            for incarnation, number in self.observers.doubt():
                self._steward.ask(incarnation, number, watched=True)
            return self.carry(self.activations.look_again())
        if isinstance(event, Trouble):
            return self._on_trouble(event)
        if isinstance(event, ToldDead):
            return self._on_told_dead(event)
        if isinstance(event, Barred):
            self.barred = event.reason
            return []
        return self._on_rejoined(event)

    def _on_beat(self, event: Beaten) -> list[HostEffect]:
        rows = [row for row in event.beat.members if row.incarnation != self.incarnation]
        had_lapsed = self.lease.state(self._clock()) is LeaseState.LAPSED
        self.lease.taken(event.sent_at)
        self._write(event.beat.form)
        self.observers.saw(rows, event.beat.now_us, event.sent_at, event.came_at)
        before = self.placement.members
        infos = map(info_of, event.beat.members)
        self.placement.saw(info for info in infos if info is not None)
        there = {row.incarnation for row in event.beat.members}
        for info in before:
            if info.incarnation not in there:  # somebody has declared it dead
                self.homes.drop_all_at(info.address)
                self.carry([Ask(info.incarnation)])
        for incarnation in self.observers.stopped(event.came_at):
            self.carry([Ask(incarnation)])
        if self._has_joined:
            # It may have been declared dead meanwhile, and Redis have lost that.
            return self.carry(self.activations.look_again()) if had_lapsed else []
        self._has_joined = True
        return [Joined(self.incarnation)]

    def _write(self, form: int) -> None:
        """Records are to be written in this form. A lower one than before: Redis has lost that it was raised."""
        if form > self._writes and self.activations.write(form):
            self._writes = form
            self.describe(self._info)
            if self._has_joined:
                self._steward.beat_soon()  # whoever has raised it waits for the word of all

    def _on_located(self, event: Answered) -> list[HostEffect]:
        found = event.answer
        if not isinstance(found, Located):
            return [Whereabouts(event.request.name, "", "", 0)]
        address = self.address_of(found.owner)
        if address:
            self.homes.note(event.request.name, address, found.epoch)
        options = found.options if found.cls else None
        return [Whereabouts(event.request.name, found.owner, address, found.epoch, options)]

    def _on_declared(self, event: Declared) -> list[HostEffect]:
        if event.dead:
            self.observers.bury(event.incarnation, event.number)
            info = self.placement.find(event.incarnation)
            if info is not None:
                self.homes.drop_all_at(info.address)
            self.placement.drop(event.incarnation)
        return self.carry(self.activations.declared(event.incarnation, event.dead))

    def _on_trouble(self, event: Trouble) -> list[HostEffect]:
        self._is_full = event.full
        self._troubled_since = event.since if event.reason else None
        if not event.reason:
            self.lease.answered()
            return []
        if not event.full:
            self.lease.unanswered(event.since)
        return self.give_up()

    # ------------------------------------------------------------ a new incarnation

    def _on_told_dead(self, event: ToldDead) -> list[HostEffect]:
        if event.incarnation != self.incarnation or self.lease.state(self._clock()) is LeaseState.DEAD:
            return []
        self.lease.told_dead()
        self.observers.bury(event.incarnation, None)
        return [Died(event.incarnation)]

    def _rejoin_when_done(self) -> list[HostEffect]:
        since = self._leaving_since
        if since is None or (len(self.activations) and self._clock() - since < PATIENCE_S):
            return []
        self._leaving_since = None
        effects = self.carry(self.activations.drop_all())
        self._steward.rejoin()
        return effects

    def _on_rejoined(self, event: Rejoined) -> list[HostEffect]:
        self._has_joined, self.barred = False, ""
        self.lease = Lease(self._identity.lease_s)
        self.activations = Activations(event.incarnation, self.observers, self._clock, former=self.activations)
        self.describe(self._info)
        return []
