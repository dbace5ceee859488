"""The agents that this host runs for the cluster: claimed, saved, given back. Pure: no thread, no socket, no clock.

`Activations` is told what the host wants and what Redis has answered, and gives a list of *effects*: requests to be
sent, and what the host has to do. Requests are carried out in their order, and one without an answer is sent again, as
it was and before anything newer of the agent, until it has one (`cluster.steward` sees to that).

::

            activate          Mine            started            release, delete
    (none) ──────────► CLAIMING ──► STARTING ────────► ACTIVE ───────────────────► LEAVING ──► (none): Gone, Removed
      ▲  more than 64: QUEUED first    │                 │                            │
      └── Elsewhere, NotActivated ◄────┘ (of CLAIMING)   └──── Dropped ◄──────────────┘

*A claim belongs to the name*, not to the call that began it. Its number rises with each new activation of this
incarnation, so that no copy of an earlier claim, save or release fits a later activation.

*Saves.* Each turn that has changed the state is a save on top of the one before, and none waits for another. The answer
of a call leaves when all saves that were begun before it are taken (`Taken`), also if its own turn changed nothing. At
most `MAX_SAVES` or `MAX_SAVE_BYTES` of an agent are under way; then its turn waits (`Readiness.FULL`, then `Room`).

*Fenced.* The record names another activation. This one is dropped at once and the calls whose saves were not taken are
lost: they get CallLost, never their value.

*Redis has lost its last writes* (it is another server, or the same with another history). Until the record of an
activation has been looked at, no call starts on it (`Readiness.SUSPECT`, then `Cleared`). What is another's is dropped.
If the record is ours with an earlier revision, the state is written again (`Renew`), along with the outcomes that are
still held. A save that finds an earlier revision is refused until it is the oldest without an answer; then it heals the
record. So a save that is late for another reason never skips one that must come before.

*@once.* The outcome of a call is written in one step with its state, under its task id. Held outcomes come with the
claim; `outcome_of` tells what a repeated call has ended in. If the record has an outcome that this activation did not
know (`Had`), the state here has the effect twice: nothing is written, the caller gets the recorded outcome, and the
activation is dropped.
"""

from __future__ import annotations

import enum
import hashlib
import itertools
import math
import sys
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import MessageTooLarge
from ..store.cluster import (
    Answer,
    Claim,
    Delete,
    Deleted,
    Locate,
    Located,
    Mine,
    Other,
    Outcome,
    Refusal,
    Release,
    Released,
    Request,
    Save,
    Saved,
    Unclaimed,
    Verdict,
)
from ..store.forms import FORMS
from ..store.reminders import Change, Clear, Done, Set
from ..telemetry.meters import Histogram
from .observers import Observers
from .outcomes import Held, Senders
from .reminders import Reminders, Standing

__all__ = [
    "MAX_OUTCOMES", "MAX_OUTCOME_BYTES", "MAX_SAVES", "MAX_SAVE_BYTES", "MAX_STARTING", "MAX_STATE_BYTES", "Activated",
    "Activations", "Ask", "Cleared", "Counters", "Dropped", "DroppedFor", "Effect", "Elsewhere", "Gone", "Made",
    "NotActivated", "Note", "OnceOutcome", "Phase", "Readiness", "Removed", "Renew", "Room", "Send", "Soon", "Taken",
]  # fmt: skip

MAX_STATE_BYTES = 1 << 20
MAX_SAVES = 64
MAX_SAVE_BYTES = 4 << 20
MAX_STARTING = 64  # activations at once: each is a constructor and a load
MAX_OUTCOMES = 4096  # of an agent
MAX_OUTCOME_BYTES = 4 << 20
SOON_S = 5.0  # a reminder that is due so soon may be before whoever looks after it has looked again
MAX_CLAIMS = 4  # of one activation; each but the first because the owner was found to be dead

Call = Hashable  # whatever the host knows a call by

_LOOKS = itertools.count(1)


# ---------------------------------------------------------------- what it gives


class Send(NamedTuple):
    """Send a request to Redis, behind those that were given before."""

    request: Request


class Ask(NamedTuple):
    """Ask Redis whether an incarnation is dead, and declare it so if it may be; tell `Activations.declared`."""

    incarnation: str


class Note(NamedTuple):
    """Write into the cluster's log."""

    kind: str
    what: str


class Activated(NamedTuple):
    """Make the agent, and give it its state; then tell `Activations.started`, or `release` if that failed."""

    name: str
    mine: Mine


class Elsewhere(NamedTuple):
    """The agent is not here: send on what waits for it. ``owner``: the incarnation that has it, "" if not known."""

    name: str
    owner: str
    epoch: int


class NotActivated(NamedTuple):
    """The agent cannot be had: what waits for it fails. ``why`` None: its record in Redis is not understood."""

    name: str
    why: Refusal | None
    detail: str


class Taken(NamedTuple):
    """All saves begun before the ends of these calls are in Redis: their answers may leave."""

    name: str
    calls: tuple[Call, ...]


class DroppedFor(enum.Enum):
    """Why an activation is no more."""

    FENCED = "fenced"  # the record names another one
    REPEATED = "repeated"  # it has executed a call whose effect was in the record
    RECORD = "record"  # Redis has something else in place of the record
    DEAD = "dead"  # this incarnation is dead


class Dropped(NamedTuple):
    """The activation is no more: forget the object, cancel what runs, send on what is queued.

    ``lost``: calls that have run and whose saves were not taken. ``had``: for REPEATED, the call that had been executed
    before, and its outcome.
    """

    name: str
    why: DroppedFor
    lost: tuple[Call, ...]
    had: tuple[Call, bytes] | None = None


class Gone(NamedTuple):
    """The agent is given back: forget the object, send on what is queued. ``following``: to whom, "" for nobody."""

    name: str
    following: str
    epoch: int


class Removed(NamedTuple):
    """The agent is deleted; ``done`` False: another activation has replaced this one, and nothing was deleted."""

    name: str
    done: bool


class Renew(NamedTuple):
    """Redis has lost what was written of the agent: take its turn and `Activations.save` it, changed or not."""

    name: str


class Cleared(NamedTuple):
    """The record was looked at, and is this activation's: calls may start again."""

    name: str


class Room(NamedTuple):
    """Fewer saves are under way than may be: calls may start again."""

    name: str


class Soon(NamedTuple):
    """A reminder of the agent is due in ``after_s``, as Redis has it now."""

    name: str
    after_s: float


Effect = (
    Send | Ask | Note | Activated | Elsewhere | NotActivated | Taken | Dropped | Gone | Removed | Renew | Cleared | Room
    | Soon
)  # fmt: skip


# ---------------------------------------------------------------- what it is told


class Made(NamedTuple):
    """What an agent is made with, if there is none of its name. ``new``: there must be none."""

    arguments: bytes = b""
    options: bytes = b""
    new: bool = False


class OnceOutcome(NamedTuple):
    """What an ``@once`` call has ended in: it is kept for ``left_s``."""

    task_id: str
    value: bytes
    left_s: float


class Phase(enum.Enum):
    """See the module's drawing."""

    QUEUED = "queued"
    CLAIMING = "claiming"
    STARTING = "starting"
    ACTIVE = "active"
    LEAVING = "leaving"


class Readiness(enum.Enum):
    """Whether a call of an agent may start."""

    READY = "ready"
    ABSENT = "absent"  # no activation: `activate` first
    COMING = "coming"  # it waits for the claim, or for the constructor
    SUSPECT = "suspect"  # it waits for a look at the record
    FULL = "full"  # it waits for saves
    LEAVING = "leaving"  # it will be sent on


@dataclass
class Counters:
    """What has happened since the start."""

    claims: int = 0
    activations: int = 0
    saves: int = 0
    fenced: int = 0
    healed: int = 0
    repeated: int = 0
    saves_refused: int = 0  # for good: the agent has another home, or a record that is not understood


class _Pending:
    """A save that has no answer; it was begun by ``call``, if that is not None."""

    __slots__ = ("call", "calls", "request", "size", "taken")

    def __init__(self, request: Save, call: Call | None, now: float) -> None:
        self.request = request
        self.size = request.size
        self.call = call
        self.calls: dict[Call, float] = {call: now} if call is not None else {}  # that wait for it, and since when
        self.taken = False


@dataclass(slots=True)
class _Activation:
    name: str
    claim: Claim
    phase: Phase
    has_place: bool = False
    tries: int = 0
    since: float = 0.0  # when it was asked for
    epoch: int = 0  # 0: not claimed yet
    others_epoch: int = 0
    revision: int = 0  # that the next save starts from
    digest: bytes = b""  # of the state as last given to be saved
    saves: list[_Pending] = field(default_factory=list)  # at most 64; an empty deque takes 600 bytes
    save_bytes: int = 0
    outcomes: Held = field(default_factory=dict)  # in Redis
    senders: Senders | None = None  # of these; None: there was none
    forget: list[str] = field(default_factory=list)
    suspect: bool = False
    behind: bool = False  # Redis has an earlier revision, and no save is under way
    ending: Release | Delete | None = None
    reminders: Reminders | None = None  # of an agent that has or had some

    def hold(self, outcome: Outcome, now: float) -> None:
        """Redis has it."""
        self.outcomes[outcome.task_id] = (now + outcome.left_s, outcome.value)
        if self.senders is None:
            self.senders = Senders()
        self.senders.hold(outcome.task_id, outcome.value)

    def told_over(self, now: float) -> tuple[Outcome, ...]:
        """What goes with the next save: below which numbers the calls of programs are over."""
        return () if self.senders is None else self.senders.to_be_told(self.outcomes, now)

    @property
    def is_asking(self) -> bool:
        """Whether a request is under way that writes."""
        return bool(self.saves) or self.phase is not Phase.ACTIVE

    @property
    def oldest_form(self) -> int:
        """Of the requests that may be under way."""
        forms = [pending.request.form for pending in self.saves]
        if self.phase in (Phase.QUEUED, Phase.CLAIMING):
            forms.append(self.claim.form)
        if isinstance(self.ending, Release) and self.ending.last is not None:
            forms.append(self.ending.last.form)
        return min(forms, default=sys.maxsize)

    @property
    def is_full(self) -> bool:
        return len(self.saves) >= MAX_SAVES or self.save_bytes >= MAX_SAVE_BYTES


# ---------------------------------------------------------------- the machine


class Activations:
    """The activations of one incarnation, ``me``; see the module's docstring. For one thread.

    ``observers`` tells which owners are dead. ``clock`` gives seconds, for the ages of outcomes. What was counted goes
    on from ``former``, those of the incarnation before. A method that needs an activation raises LookupError if there
    is none.
    """

    def __init__(
        self, me: str, observers: Observers, clock: Callable[[], float], *, former: Activations | None = None
    ) -> None:
        self.me = me
        self.form: int = FORMS.oldest if former is None else former.form  # that requests are made in
        self.counters: Counters = Counters() if former is None else former.counters
        self.durations: Histogram = Histogram() if former is None else former.durations  # of activations
        self._observers = observers
        self._clock = clock
        self._all: dict[str, _Activation] = {}
        self._queued: deque[str] = deque()
        self._places = 0  # taken
        self._number = 0
        self._look = 0
        self._stopped = False
        self._asked: dict[str, list[_Activation]] = {}  # owner -> claims that wait for word of it

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._all))

    def __repr__(self) -> str:
        saves = sum(len(each.saves) for each in self._all.values())
        return f"<Activations of {self.me} [{len(self)}] {saves} saves under way, {self._places} starting>"

    # ------------------------------------------------------------ what is known

    @property
    def waiting(self) -> int:
        """How many agents wait for one of the `MAX_STARTING` places."""
        return len(self._queued)

    def phase(self, name: str) -> Phase | None:
        """Where the activation of an agent is; None: there is none."""
        found = self._all.get(name)
        return found.phase if found is not None else None

    def epoch(self, name: str) -> int:
        """The epoch of the activation: the fence that an agent's code shows to other systems."""
        return self._all[name].epoch

    def readiness(self, name: str) -> Readiness:
        """Whether a call may start; the lease is another matter (`cluster.lease`)."""
        found = self._all.get(name)
        if found is None:
            return Readiness.ABSENT
        if found.phase is Phase.LEAVING:
            return Readiness.LEAVING
        if found.phase is not Phase.ACTIVE:
            return Readiness.COMING
        if found.suspect:
            return Readiness.SUSPECT
        return Readiness.FULL if found.is_full else Readiness.READY

    def outcome_of(self, name: str, task_id: str) -> bytes | None:
        """What an ``@once`` call has ended in, if that is in Redis."""
        kept = self._all[name].outcomes.get(task_id)
        return kept[1] if kept is not None else None

    def has_room_for_outcome(self, name: str) -> bool:
        """Whether one more ``@once`` call may start: outcomes are never dropped for room."""
        found = self._all[name]
        self._expire(found)
        size = sum(len(value) for _, value in found.outcomes.values())
        return len(found.outcomes) + len(found.saves) < MAX_OUTCOMES and size < MAX_OUTCOME_BYTES

    def reminder(self, name: str, reminder: str) -> Standing | None:
        """A reminder of the agent, as it is when all saves under way are taken."""
        found = self._all[name]
        changed = [pending.request.reminders for pending in found.saves if pending.request.reminders]
        if found.reminders is None and not changed:
            return None
        return self.reminders_of(name).find(reminder, changed, self._clock())

    def reminders_of(self, name: str) -> Reminders:
        """Those of the agent, as Redis has them when the saves under way are not looked at."""
        found = self._all[name]
        if found.reminders is None:
            found.reminders = Reminders(found.epoch, (), 0.0)
        return found.reminders

    def count_reminders(self, name: str) -> int:
        """How many reminders the agent has; any thread may ask."""
        found = self._all.get(name)
        return len(found.reminders) if found is not None and found.reminders is not None else 0

    # ------------------------------------------------------------ what the host wants

    def write(self, form: int) -> bool:
        """Requests that are made from now on have this form. True if none of a former one is without an answer."""
        self.form = max(self.form, form)
        return all(found.oldest_form >= form for found in self._all.values() if found.is_asking)

    def activate(
        self, name: str, cls: str, version: int, made: Made | None = None, *, unseen: bool = False
    ) -> list[Effect]:
        """Claim the agent for this host, if that is not done yet. ``version``: the newest state that it reads.

        ``unseen``: see `Claim`. Then one that another host has is left to that without a question whether it lives.
        """
        if name in self._all:
            return []
        if self._stopped:
            return [Elsewhere(name, "", 0)]
        self._number += 1
        made = made or Made()
        claim = Claim(
            name, self.me, self._number, cls, version, new=made.new, arguments=made.arguments, options=made.options,
            form=self.form, unseen=unseen,
        )  # fmt: skip
        self._all[name] = _Activation(name, claim, Phase.QUEUED, since=self._clock())
        self._queued.append(name)
        return self._admit()

    def started(self, name: str) -> list[Effect]:
        """The agent is made, and its state loaded; nothing if the activation was dropped meanwhile."""
        found = self._all.get(name)
        if found is None or found.phase is not Phase.STARTING:
            return []
        found.phase = Phase.ACTIVE
        self.counters.activations += 1
        self.durations.add(self._clock() - found.since)
        return [*self._give_place_back(found), *_renewal(found)]

    def waits(self, name: str) -> list[Effect]:
        """The code that makes the agent waits for another call: it gives its place to another activation."""
        found = self._all.get(name)
        return self._give_place_back(found) if found is not None else []

    def save(
        self, name: str, state: bytes | None, version: int, call: Call | None = None, once: OnceOutcome | None = None,
        reminders: Sequence[Change] = (),
    ) -> list[Effect]:  # fmt: skip
        """A turn has ended with this state; ``call`` is answered when it is saved. An unchanged one is not written.

        ``state`` None: the agent has none. Raises `MessageTooLarge` for a state of more than `MAX_STATE_BYTES`:
        `release` the agent, and the next call has it as it was last saved.
        """
        _check_size(name, state or b"")
        found = self._all[name]
        if found.phase is Phase.LEAVING:
            raise LookupError(f"{name} is on its way to another host")
        digest = found.digest if state is None else _digest(state, version)
        if digest == found.digest and once is None and not found.behind and not reminders:
            return self.settle(name, call) if call is not None else []
        found.digest = digest
        self._expire(found)
        outcomes = found.told_over(self._clock())
        if once is not None:
            outcomes += (Outcome(once.task_id, once.left_s, once.value),)
        request = Save(
            name, self.me, found.epoch, found.revision, version, state, once.task_id if once is not None else "",
            outcomes, tuple(found.forget), reminders=tuple(reminders), form=self.form,
        )  # fmt: skip
        found.forget.clear()
        if found.behind:
            found.behind = False
            request = self._healing(found, request)
        found.revision += 1
        found.saves.append(_Pending(request, call, self._clock()))
        found.save_bytes += request.size
        return [Send(request)]

    def settle(self, name: str, call: Call) -> list[Effect]:
        """``call`` has changed nothing: it is answered when all saves begun before are taken."""
        saves = self._all[name].saves
        if saves:
            saves[-1].calls[call] = self._clock()
            return []
        return [Taken(name, (call,))]

    def give_up(self, name: str, call: Call) -> bool:
        """``call`` waits no more, because its deadline has passed, say; its save goes on. True if it had waited."""
        for pending in self._all[name].saves if name in self._all else ():
            if call in pending.calls:
                del pending.calls[call]
                return True
        return False

    def give_up_all(self, before: float = math.inf) -> list[tuple[str, Call]]:
        """Calls that wait for saves since ``before`` or longer wait no more: Redis has not answered for too long."""
        lost = []
        for found in self._all.values():
            for pending in found.saves:
                late = [call for call, since in pending.calls.items() if since <= before]
                lost += [(found.name, call) for call in late]
                for call in late:
                    del pending.calls[call]
        return lost

    def is_over(self, name: str, task_id: str) -> bool:
        """Whether this is a late copy of an ``@once`` call whose sender has had the outcome."""
        senders = self._all[name].senders
        return senders is not None and senders.is_over(task_id)

    def confirm(self, name: str, task_id: str) -> None:
        """An ``@once`` call has come: outcomes that are over, as its id says, are dropped with the next save."""
        found = self._all[name]
        if found.senders is not None:
            found.forget += found.senders.confirm(task_id, found.outcomes)

    def release(
        self, name: str, following: str = "", state: bytes | None = None, version: int = 0,
        reminders: Sequence[Change] = (),
    ) -> list[Effect]:  # fmt: skip
        """Give the agent to the incarnation ``following``, or to nobody, when its saves are taken.

        The host holds its turn. ``state``: as it is now, to be saved in the same step if it has changed, or if Redis
        may have lost it; the same holds for reminders of an agent without a state.
        """
        found = self._all[name]
        if found.phase is Phase.LEAVING:
            return []
        if found.phase in (Phase.QUEUED, Phase.CLAIMING):
            raise LookupError(f"{name} is not claimed yet")
        _check_size(name, state or b"")
        last = None
        may_be_behind = found.behind or found.suspect
        has_changed = state is not None and found.digest != _digest(state, version)
        to_keep = state is not None or (found.reminders is not None and not found.digest)
        if has_changed or (to_keep and (may_be_behind or reminders)):
            last = Save(
                name, self.me, found.epoch, found.revision, version, state, outcomes=found.told_over(self._clock()),
                forget=tuple(found.forget), reminders=tuple(reminders), form=self.form,
            )  # fmt: skip
            if found.behind:
                last = self._healing(found, last)
        return self._leave(found, Release(name, self.me, found.epoch, following, last))

    def delete(self, name: str) -> list[Effect]:
        """Remove the agent, its state and the outcomes of its calls. The host holds its turn."""
        found = self._all[name]
        if found.phase in (Phase.QUEUED, Phase.CLAIMING):
            raise LookupError(f"{name} is not claimed yet")
        return self._leave(found, Delete(name, self.me, found.epoch))

    def stop_claiming(self) -> list[Effect]:
        """Claim nothing from now on; what is claimed nevertheless is released."""
        self._stopped = True
        self._queued.clear()
        effects: list[Effect] = []
        for found in list(self._all.values()):
            if found.phase in (Phase.QUEUED, Phase.CLAIMING):
                self._forget(found)
                effects.append(Elsewhere(found.name, "", 0))
        return effects

    def drop_all(self) -> list[Effect]:
        """This incarnation is dead, and what it could still save and release is done."""
        effects = self.stop_claiming()
        for found in list(self._all.values()):
            effects += self._drop(found, DroppedFor.DEAD)
        return effects

    def look_again(self) -> list[Effect]:
        """Redis is another server, or has another history: look at each record before a call starts on it."""
        self._look = next(_LOOKS)
        effects: list[Effect] = []
        for found in self._all.values():
            if found.phase in (Phase.STARTING, Phase.ACTIVE):
                found.suspect = True
                effects.append(Send(Locate(found.name, self._look)))
        return effects

    # ------------------------------------------------------------ what Redis has answered

    def answered(self, request: Request, answer: Answer) -> list[Effect]:
        """Redis has answered ``request``. It may be one of a former incarnation of this host."""
        found = self._all.get(request.name)
        if isinstance(request, Claim):
            return self._claimed(found, request, answer)
        if found is None or (
            not isinstance(request, Locate) and (request.owner, request.epoch) != (self.me, found.epoch)
        ):
            return []
        if isinstance(request, Save):
            return self._saved(found, request, answer)
        if isinstance(request, Locate):
            return self._looked(found, request, answer)
        return self._left(found, request, answer)

    def declared(self, incarnation: str, dead: bool) -> list[Effect]:
        """Redis has said whether an owner is dead. The observers know of it."""
        effects: list[Effect] = []
        for found in self._asked.pop(incarnation, ()):
            if self._all.get(found.name) is not found:
                continue
            if dead:
                effects += self._claim_again(found, incarnation)
            else:
                self._forget(found)
                effects += [Elsewhere(found.name, incarnation, found.others_epoch), *self._admit()]
        return effects

    # ------------------------------------------------------------ claims

    def _admit(self) -> list[Effect]:
        effects: list[Effect] = []
        while self._queued and self._places < MAX_STARTING:
            found = self._all.get(self._queued.popleft())
            if found is None or found.phase is not Phase.QUEUED:
                continue
            self._places += 1
            self.counters.claims += not found.claim.unseen
            found.has_place, found.phase = True, Phase.CLAIMING
            effects.append(Send(found.claim))
        return effects

    def _give_place_back(self, found: _Activation) -> list[Effect]:
        if not found.has_place:
            return []
        found.has_place = False
        self._places -= 1
        return self._admit()

    def _forget(self, found: _Activation) -> None:
        del self._all[found.name]
        if found.has_place:
            found.has_place = False
            self._places -= 1

    def _claimed(self, found: _Activation | None, request: Claim, answer: Answer) -> list[Effect]:
        if found is None or found.phase is not Phase.CLAIMING or found.claim != request:
            # Nobody waits for it. If it is this host's now it must not seem to be served.
            return [Send(Release(request.name, request.owner, answer.epoch))] if isinstance(answer, Mine) else []
        if isinstance(answer, Mine):
            self.counters.claims += found.claim.unseen
            return self._begin(found, answer)
        if isinstance(answer, Other):
            return self._is_others(found, answer)
        self._forget(found)
        if isinstance(answer, Unclaimed):
            if answer.why is Refusal.STALE:
                return [Elsewhere(found.name, self.me, 0), *self._admit()]
            return [NotActivated(found.name, answer.why, answer.detail), *self._admit()]
        return [NotActivated(found.name, None, str(answer)), *self._admit()]

    def _begin(self, found: _Activation, mine: Mine) -> list[Effect]:
        now = self._clock()
        found.phase, found.epoch, found.revision = Phase.STARTING, mine.epoch, mine.revision
        if mine.state is not None:
            found.digest = _digest(mine.state, mine.version or 0)
        for each in mine.outcomes:
            found.hold(each, now)
        if mine.reminders:
            found.reminders = Reminders(mine.epoch, mine.reminders, now)
        return [Activated(found.name, mine)]

    def _is_others(self, found: _Activation, other: Other) -> list[Effect]:
        found.others_epoch = other.epoch
        found.tries += 1
        if found.tries >= MAX_CLAIMS or found.claim.unseen:
            self._forget(found)
            return [Elsewhere(found.name, other.owner, other.epoch), *self._admit()]
        if self._observers.is_dead(other.owner):
            return self._claim_again(found, other.owner)
        waiting = self._asked.setdefault(other.owner, [])
        waiting.append(found)
        return [Ask(other.owner)] if len(waiting) == 1 else []

    def _claim_again(self, found: _Activation, dead: str) -> list[Effect]:
        found.claim = found.claim._replace(dead=dead)
        return [Send(found.claim)]

    # ------------------------------------------------------------ saves

    def _saved(self, found: _Activation, request: Save, answer: Answer) -> list[Effect]:
        pending = next((each for each in found.saves if each.request.revision == request.revision), None)
        if pending is None or pending.taken:
            return []
        if not isinstance(answer, Saved) or answer.verdict in (Verdict.FENCED, Verdict.HAD):
            self.counters.saves_refused += 1
        if not isinstance(answer, Saved):
            return self._drop(found, DroppedFor.RECORD)
        if answer.verdict is Verdict.FENCED:
            return self._drop(found, DroppedFor.FENCED)
        if answer.verdict is Verdict.HAD:
            return self._drop(found, DroppedFor.REPEATED, pending, answer.outcome)
        if answer.verdict is Verdict.BEHIND:
            if pending is found.saves[0]:
                self.counters.healed += 1
                pending.request = self._healing(found, pending.request)
            return [Send(pending.request)]
        pending.taken = True
        return self._take(found)

    def _take(self, found: _Activation) -> list[Effect]:
        was_full = found.is_full
        calls: list[Call] = []
        soon: list[Effect] = []
        while found.saves and found.saves[0].taken:
            pending = found.saves.pop(0)
            found.save_bytes -= pending.size
            self.counters.saves += 1
            calls += pending.calls
            now = self._clock()
            if pending.request.reminders:
                soon += _soon(found.name, self.reminders_of(found.name), pending.request.reminders, now)
            for outcome in pending.request.outcomes[-1:] if pending.request.call else ():
                found.hold(outcome, now)
        effects: list[Effect] = [*soon, Taken(found.name, tuple(calls))] if calls else soon
        if was_full and not found.is_full and found.phase is Phase.ACTIVE:
            effects.append(Room(found.name))
        if found.ending is not None and not found.saves:
            effects.append(Send(found.ending))
        return effects

    def _healing(self, found: _Activation, request: Save) -> Save:
        """``request`` so that it is taken over an earlier revision, with all outcomes and reminders that are held."""
        now = self._clock()
        held = tuple(
            Outcome(task_id, until - now, value)
            for task_id, (until, value) in found.outcomes.items()
            if until > now and task_id != request.call
        )
        own = tuple(outcome for outcome in request.outcomes if outcome.task_id == request.call)
        reminders = request.reminders
        if found.reminders is not None and not any(isinstance(change, Clear) for change in reminders):
            reminders = (*found.reminders.again(now), *reminders)
        return request._replace(heal=True, outcomes=held + own, reminders=reminders)

    def _expire(self, found: _Activation) -> None:
        now = self._clock()
        for task_id in [task_id for task_id, (until, _) in found.outcomes.items() if until <= now]:
            del found.outcomes[task_id]
            found.forget.append(task_id)

    def _drop(
        self, found: _Activation, why: DroppedFor, repeated: _Pending | None = None, outcome: bytes = b""
    ) -> list[Effect]:
        lost = [call for pending in found.saves for call in pending.calls]
        had = None
        if repeated is not None and repeated.call in repeated.calls:  # it was not given up
            had = (repeated.call, outcome)
            lost.remove(repeated.call)
        self._forget(found)
        effects: list[Effect] = [Dropped(found.name, why, tuple(lost), had)]
        if why is DroppedFor.FENCED:
            self.counters.fenced += 1
            effects.append(Note("fenced", f"{found.name} {found.epoch} {self.me}"))
        elif why is DroppedFor.REPEATED:
            self.counters.repeated += 1
        return effects + self._admit()

    # ------------------------------------------------------------ looks and ends

    def _looked(self, found: _Activation, request: Locate, answer: Answer) -> list[Effect]:
        if request.mark != self._look or not found.suspect:
            return []
        if not isinstance(answer, Located):
            return self._drop(found, DroppedFor.RECORD)
        if (answer.owner, answer.epoch) != (self.me, found.epoch):
            return [] if found.phase is Phase.LEAVING else self._drop(found, DroppedFor.FENCED)
        found.suspect = False
        # With a save under way its answer tells, and the save heals the record.
        found.behind = not found.saves and answer.revision < found.revision
        effects: list[Effect] = [Cleared(found.name)] if found.phase is Phase.ACTIVE else []
        return effects + _renewal(found)

    def _leave(self, found: _Activation, ending: Release | Delete) -> list[Effect]:
        effects = self._give_place_back(found)
        found.phase, found.ending = Phase.LEAVING, ending
        if not found.saves:
            effects.append(Send(ending))
        return effects

    def _left(self, found: _Activation, request: Release | Delete, answer: Answer) -> list[Effect]:
        if found.ending != request:
            return []
        if isinstance(answer, Released) and answer.behind and isinstance(request, Release) and request.last is not None:
            self.counters.healed += 1
            found.ending = request._replace(last=self._healing(found, request.last))
            return [Send(found.ending)]
        done = isinstance(answer, Released) and answer.done
        if isinstance(request, Release) and request.last is not None and not done:
            self.counters.saves_refused += 1
        if not isinstance(answer, (Released, Deleted)):
            return self._drop(found, DroppedFor.RECORD)
        self._forget(found)
        if isinstance(answer, Deleted):
            return [Removed(found.name, not answer.fenced), *self._admit()]
        following = request.following if isinstance(request, Release) else ""
        moved: list[Effect] = [Note("moved", f"{found.name} {following}")] if following and answer.done else []
        return [Gone(found.name, following, answer.epoch), *moved, *self._admit()]


def _renewal(found: _Activation) -> list[Effect]:
    return [Renew(found.name)] if found.behind and found.phase is Phase.ACTIVE else []


def _check_size(name: str, state: bytes) -> None:
    if len(state) > MAX_STATE_BYTES:
        text = f"the state of {name} has {len(state)} bytes, at most {MAX_STATE_BYTES} can be kept"
        raise MessageTooLarge(text, len(state), MAX_STATE_BYTES)


def _soon(name: str, reminders: Reminders, changes: Sequence[Change], now: float) -> Iterator[Effect]:
    """Redis has taken ``changes``."""
    reminders.take(changes, now)
    for change in changes:
        standing = reminders.find(change.name, (), now) if isinstance(change, (Set, Done)) else None
        if standing is not None and standing.due - now < SOON_S:
            yield Soon(name, standing.due - now)


def _digest(state: bytes, version: int) -> bytes:
    return hashlib.blake2b(state, digest_size=16, salt=version.to_bytes(8, "little", signed=True)).digest()
