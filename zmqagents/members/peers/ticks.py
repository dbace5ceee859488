"""Reminders that are due: this host's share of looking after them, and the calls that they make.

Each bucket of the cluster's agents is looked at every `SWEEP_S`, and when its next reminder is due as far as is known.
What Redis hands out becomes a call of its agent, by this host, to wherever the agent is: a *tick*. Its task id names
the reminder and the stamp, so that nobody who has it queued or running takes a second one, and its home knows whether
it was done before. The home writes the end of it with the state of its turn; nothing is left to do here then.

A tick that is under way is held on to. One that has failed is handed out again after a pause: it was not done, or its
error is that of the agent's code, and then it is done and Redis has another stamp by now.

A host that drains, or whose lease is over, hands nothing out.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from ... import codec, errors
from ...agents.state import Reminder
from ...cluster.reminders import Shares
from ...scheduler.effects import Effect
from ...scheduler.records import TICKS, Alarm, Peer
from ...store.cluster import BUCKETS, ClusterRecords, bucket_of
from ...store.reminders import DueRow, Held, Polled
from ...wire.link import rebuild_error
from ...wire.messages import Call, Flag, Reply
from .quarters import Quarters

__all__ = ["Tick", "Ticks", "packed_what", "tick_of", "what_of"]

log = logging.getLogger(__name__)

STEP_S = 0.05  # between two looks at what is due
SWEEP_S = 2.0  # at the latest a bucket of this host is looked at again
MOST = 64  # of one bucket at a time
MAX_OPEN = 2048  # ticks of this host that are under way
LEASES = 2  # how long a tick is handed out for: nobody else gets it until whoever had it is known to be dead
LATE_S = 1.0  # what is handed out later than that is counted as late
PAUSES_S = (1.0, 60.0)  # before a tick that has failed is handed out again: the first, and the longest
MAX_FAILED = 4096  # ticks that have failed, of which that is remembered
MAX_WHAT_BYTES = 65_536


class Tick(NamedTuple):
    """A tick, as its task id names it."""

    agent: str
    reminder: str
    stamp: str

    @property
    def task_id(self) -> str:
        """The task id of its call."""
        return f"{TICKS}{self.stamp}/{self.reminder}/{self.agent}"


class _Open(NamedTuple):
    """A tick that is under way, and when Redis was last told so."""

    tick: Tick
    since: float


class Ticks:
    """See the module's docstring. Belongs to the router thread."""

    def __init__(self, room: Quarters) -> None:
        self._room = room
        dispatcher = room.dispatcher
        user = f"cluster:{dispatcher.config.cluster}"
        self._peer = Peer(TICKS[:-1], key=self, local=True, user=user, account=dispatcher.shares.account(user))
        self._peer.trust(is_admin=True, is_member=True)
        self._shares = Shares()
        self._next = [math.inf] * BUCKETS  # when each bucket is looked at, on the host's clock
        self._counts = [0] * BUCKETS  # of reminders, in buckets of this host's own
        self._hold_s = LEASES * dispatcher.config.lease_s
        self._open: dict[str, _Open] = {}  # by task id
        self._calls: dict[int, Tick] = {}  # by the number of the call
        self._number = 0
        self._held: list[Held] = []  # to be told to Redis
        self._is_looking = False  # one look at a time: behind a slow Redis they would pile up before all else
        self._pauses: OrderedDict[str, float] = OrderedDict()
        self._renew_at = 0.0
        self._fired = self._late = self._failed = 0

    def __repr__(self) -> str:
        return f"<Ticks [{len(self._open)} under way, {sum(self._counts)} reminders]>"

    def figures(self) -> dict[str, int]:
        """For `status`."""
        return {
            "reminders": sum(self._counts), "reminders_due": len(self._open), "reminders_fired": self._fired,
            "reminders_late": self._late, "reminders_failed": self._failed,
        }  # fmt: skip

    # ------------------------------------------------------------ what is due

    def begin(self) -> None:
        """This host has joined its cluster."""
        self._room.alarm(STEP_S, Alarm(self._step))

    def settle(self) -> None:
        """Look at which members there are."""
        member = self._room.member
        living = [info.incarnation for info in member.placement.members if info.lease_left_s > 0 and not info.draining]
        if not self._shares.settle(member.incarnation, living):
            return
        now = self._room.clock()
        for bucket, late_s in enumerate(self._shares.late_s):
            # Spread over a sweep, so that no look takes long.
            self._next[bucket] = math.inf if late_s is None else now + late_s + SWEEP_S * bucket / BUCKETS
            if late_s != 0.0:
                self._counts[bucket] = 0

    def soon(self, name: str, after_s: float) -> None:
        """A reminder of an agent that is here is due in so long, which those who look after it need not know yet."""
        bucket = bucket_of(name)
        self._next[bucket] = min(self._next[bucket], self._room.clock() + max(0.0, after_s))

    def _step(self, now: float) -> list[Effect]:
        room = self._room
        if room.is_closed:
            return []
        room.alarm(STEP_S, Alarm(self._step))
        if now >= self._renew_at:
            self._renew_at = now + self._hold_s / 6
            self._renew(now)
        self._tell()
        if self._is_looking or room.drains or room.dispatcher.draining or not room.may_answer:
            return []
        if len(self._open) >= MAX_OPEN:
            return []
        buckets = [bucket for bucket, at in enumerate(self._next) if at <= now]
        if buckets:
            for bucket in buckets:
                self._next[bucket] = now + SWEEP_S
            self._look(buckets)
        return []

    def close(self) -> None:
        """This host ends: others may have at once what it has in hand."""
        for tick, _ in self._open.values():
            self._hold(tick, 0.0)
        self._tell()

    def _tell(self) -> None:
        """Tell Redis what is to be handed out later, or sooner."""
        held, self._held = self._held, []
        if held:
            self._room.member.inquire(lambda records: records.hold(held), _ignore)

    def _look(self, buckets: list[int]) -> None:
        hold_s = self._hold_s

        def look(records: ClusterRecords) -> list[Polled]:
            return records.due(buckets, for_s=hold_s, most=MOST)

        self._is_looking = True
        self._room.member.inquire(look, self._on_polled)

    def _on_polled(self, found: Any) -> None:
        self._is_looking = False
        if not isinstance(found, list):  # Redis is away
            return
        now, late_s = self._room.clock(), self._shares.late_s
        for bucket, rows, next_s, held in found:
            for row in rows:
                self._fire(row, now)
            late = late_s[bucket]
            at = math.inf if next_s is None else now + max(0.0, next_s) + (late or 0.0)
            # Another member's bucket is looked at for what is due at once, which that one need not know.
            self._next[bucket] = min(at, now + SWEEP_S) if late is not None else at if at < now + SWEEP_S else math.inf
            if late == 0.0:
                self._counts[bucket] = held

    # ------------------------------------------------------------ ticks

    def _fire(self, due: DueRow, now: float) -> None:
        agent, row = due
        tick = Tick(agent, row.name, row.stamp)
        known = self._open.get(tick.task_id)
        self._open[tick.task_id] = _Open(tick, now)
        if known is not None:
            return
        self._fired += 1
        self._late += row.left_s < -LATE_S
        try:
            method, frames = what_of(row.what)
        except (errors.ZmqAgentsError, ValueError, TypeError):  # something else has written there
            self._end(tick, errors.RemoteProtocolError("what is to be done is not understood"))
            return
        self._number += 1
        self._calls[self._number] = tick
        room, options = self._room, {"task": tick.task_id}
        call = Call(self._number, Flag.IDEMPOTENT, 0, room.agent_id(agent), method, (), options, frames)
        room.carry_out(room.dispatcher.on_call(self._peer, call, now))

    def deliver(self, number: int, reply: Reply | None) -> None:
        """A call of `_fire` is answered; `Peer.key` of a peer that is this host itself."""
        tick = self._calls.pop(number, None)
        if tick is not None and reply is not None:
            self._end(tick, rebuild_error(reply) if reply.code else None)

    def _end(self, tick: Tick, error: Exception | None) -> None:
        del self._open[tick.task_id]
        if error is None:
            self._pauses.pop(tick.task_id, None)
            return
        if isinstance(error, errors.HostStopping):  # nothing ran: another member may have it at once
            self._hold(tick, 0.0)
            return
        self._failed += 1
        text = str(error).partition("\n")[0]
        log.warning("the reminder %s of %s: %s: %s", tick.reminder, tick.agent, type(error).__name__, text)
        pause_s = self._pauses.pop(tick.task_id, PAUSES_S[0])
        self._pauses[tick.task_id] = min(2 * pause_s, PAUSES_S[1])
        if len(self._pauses) > MAX_FAILED:
            self._pauses.popitem(last=False)
        self._hold(tick, pause_s)

    def _renew(self, now: float) -> None:
        """Redis is told of all ticks that are under way for long."""
        before = now - self._hold_s / 3
        for task_id, (tick, since) in self._open.items():
            if since < before:
                self._open[task_id] = _Open(tick, now)
                self._hold(tick, self._hold_s)

    def _hold(self, tick: Tick, for_s: float) -> None:
        self._held.append(Held(tick.agent, tick.reminder, tick.stamp, for_s))


def tick_of(task_id: str) -> Tick:
    """The tick whose call has this id."""
    stamp, _, rest = task_id.removeprefix(TICKS).partition("/")
    reminder, _, agent = rest.partition("/")
    return Tick(agent, reminder, stamp)


def packed_what(reminder: Reminder) -> bytes:
    """What is to be done, for Redis."""
    return codec.pack([reminder.method, *reminder.frames])


def what_of(packed: bytes) -> tuple[str, Sequence[bytes]]:
    """The reverse: a method, and the frames of its arguments. Raises what speaks against it."""
    method, *frames = codec.unpack(packed, max_bytes=MAX_WHAT_BYTES)
    return str(method), frames


def _ignore(answer: object) -> None:
    """Nothing depends on it."""
