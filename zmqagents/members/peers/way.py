"""The calls of this host for one agent of the cluster that does not live here, as far as is known.

::

                 +-------------------- word of another home, or none ---------------------+
                 v                                                                        |
    OPEN --> LOOKING --> CLAIMING (here: then its calls become calls of the `Resident`)   |
      |         |            |                                                            |
      |         +---> AWAY <-+  calls are passed on ---- ELSEWHERE, not reached ---> GATHERING
      +-- known --^                                                                       |
    PAUSED <------------------------------------------------------------------------------+

Where this host is to take an agent that nobody has, it is CLAIMING at once: if another has it, the answer says so.
While it is LOOKING, CLAIMING or PAUSED, calls are held. GATHERING waits until all that were passed on are answered or
have come back, so that those which have come back are passed on again in the order in which they came.

A call that another member has passed on (``hop``) is not passed on again: it is answered with the code ELSEWHERE.

*Order.* Calls have numbers, as they came, and are passed on in the order of these. Each time it is AWAY anew is a *leg*
of its own. A host that has turned one call of a leg away does so with all that come behind, wherever the agent is by
then (`Peer.turn_away`); for the next leg this host waits until it knows of all of them.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ... import errors
from ...agents.context import RunningCall
from ...agents.options import AgentOptions
from ...agents.spec import ClassSpec, MethodSpec
from ...cluster.activations import Made
from ...cluster.member import Whereabouts
from ...cluster.naming import AgentName
from ...codec import pack, unpack
from ...errors import ZmqAgentsError
from ...scheduler.effects import Effect
from ...scheduler.records import AgentRecord, Alarm, Ticket
from ...telemetry.meters import Uncounted
from ...wire.link import rebuild_error
from ...wire.messages import Code, Flag, Home, Reply, elsewhere_reply, error_reply, home_in
from ..forwarder import Credits, forwarded

if TYPE_CHECKING:
    from ...cluster.placement import MemberInfo
    from .neighbour import Neighbour
    from .quarters import Quarters

__all__ = ["MAKE", "TRUE", "UNMAKE", "Passage", "Way", "WayState", "options_in"]

MAKE, UNMAKE = "make_agent", "unmake_agent"  # the ops of create_agent and delete_agent for agents of a cluster
MAX_OPTIONS_BYTES = 65_536  # of an agent, with its arguments
MAX_METHODS = 1024  # names of methods that are kept
PAUSES_S = (0.005, 0.25)  # before a host is asked again: the first, and the longest


@functools.lru_cache(MAX_METHODS)
def _method_elsewhere(name: str) -> MethodSpec:
    return MethodSpec(name, "value", True, True, "", "")


class _AnyMethod(Mapping[str, MethodSpec]):
    """The methods of an agent elsewhere: its home knows which there are."""

    def __getitem__(self, name: str) -> MethodSpec:
        return _method_elsewhere(name)

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0


_UNCOUNTED = Uncounted()
_ELSEWHERE = ClassSpec("", "", "", AgentOptions(persist=None), _AnyMethod(), None)


class WayState(enum.Enum):
    """See the module's drawing."""

    OPEN = "open"
    LOOKING = "looking"
    CLAIMING = "claiming"
    AWAY = "away"
    GATHERING = "gathering"
    PAUSED = "paused"


class Passage:
    """One call on its way: the `Home` of its ticket, and the `Sink` of its answer when it is passed on."""

    def __init__(self, way: Way, number: int, now: float) -> None:
        self.way = way
        self.number = number  # 0: it gets one when it is taken along
        self.hop = self.activate = False
        self.made: Made | None = None  # for `create_agent`
        self.options: dict[str, Any] = {}  # of the same
        self.came = now
        self.ticket: Ticket | None = None  # when it is under way
        self.neighbour: Neighbour | None = None
        self.sent = 0  # the number that it has there
        self.record = AgentRecord(way.agent_id, _ELSEWHERE, _ELSEWHERE.options, now, meters=_UNCOUNTED)
        self.record.be_elsewhere(self)

    pid = 0

    @property
    def is_end(self) -> bool:
        """Whether the agent is to be deleted."""
        return self.ticket is not None and self.ticket.op == UNMAKE

    @property
    def has_begun(self) -> bool:
        """Whether items of the stream have come."""
        context = self.ticket.context if self.ticket is not None else None
        return context is not None and context.sender is not None and context.sender.items > 0

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.ticket is None or self.ticket.settled

    # ------------------------------------------------------------ as a home

    def start(self, ticket: Ticket) -> None:
        """Take the call along."""
        self.ticket = ticket
        self.way = self.way.room.way(self.way.name)  # another one if it has waited for its arguments
        self.way.take(self)

    def interrupt(self, ticket: Ticket, *, alone: bool) -> None:
        """No caller waits for it any more."""
        if self.neighbour is not None:
            self.neighbour.cancel(self.sent, alone=alone)
        else:
            self.way.let_go(self)

    def retire(self, records: Iterable[AgentRecord]) -> None:
        """Nothing of the agent is here."""

    def returned(self, ticket: Ticket, reply: Reply) -> list[Effect]:
        """Its code never runs here."""
        return []

    def saw(self, call_id: int) -> None:
        """No code of the agent is here."""

    # ------------------------------------------------------------ passed on

    def send(self, neighbour: Neighbour, leg: int, *, activate: bool) -> None:
        """Pass the call on. Raises HostBusy if too many are on their way to that host."""
        ticket, room = self.ticket, self.way.room
        assert ticket is not None
        sender = Credits(self, ticket) if ticket.flags & Flag.STREAM else None
        ticket.begin(
            RunningCall(
                room.services, ticket.task_id, ticket.agent.agent_id, ticket.name, ticket.deadline, (), ticket, sender
            )
        )
        options = {"task": ticket.task_id, "user": ticket.account.key, "hop": 1, "leg": leg, **self.options}
        if activate:
            options["activate"] = True
        ticket.go_outside(True)
        agent = "" if ticket.op in (MAKE, UNMAKE) else ticket.agent.agent_id
        self.sent = neighbour.ask(forwarded(ticket, agent, ticket.name, options, room.dispatcher), _Answers(self))
        self.neighbour = neighbour

    def grant(self, ticket: Ticket, items: int) -> None:
        """The reader of a stream has taken some."""
        if self.neighbour is not None:
            self.neighbour.grant(self.sent, items)

    def on_reply(self, reply: Reply) -> list[Effect]:
        """It is answered."""
        neighbour, self.neighbour = self.neighbour, None
        if neighbour is not None:
            self.way.answered(self, neighbour, reply)
        return []

    def on_fail(self, error: Exception) -> list[Effect]:
        """It gets no answer."""
        neighbour, self.neighbour = self.neighbour, None
        if neighbour is not None:
            self.way.failed(self, neighbour, error)
        return []

    def on_item(self, body: Any) -> list[Effect]:
        """One item of a stream has come."""
        ticket, room = self.ticket, self.way.room
        sender: Credits | None = ticket.context.sender if ticket is not None and ticket.context is not None else None
        if ticket is None or sender is None:
            return []
        effects = room.pass_on(ticket, sender.items, tuple(body))
        if sender.spend():
            effects += room.starve(ticket, lambda error: self._starved(ticket, error), lambda: False)
        return effects

    def _starved(self, ticket: Ticket, error: ZmqAgentsError) -> None:
        room = self.way.room
        room.later(lambda: room.carry_out(room.dispatcher.on_lost(ticket, error, room.clock())))


class _Answers:
    """Takes what comes of a call that is passed on."""

    def __init__(self, passage: Passage) -> None:
        self._passage = passage
        self._room = passage.way.room

    def deliver(self, reply: Reply | None) -> None:
        if reply is not None:
            self._room.carry_out(self._passage.on_reply(reply))

    def fail(self, error: Exception) -> None:  # later: the way may be in the middle of something
        self._room.post(self._passage.on_fail, error)

    def chunk(self, item: Reply) -> None:
        self._room.carry_out(self._passage.on_item(item.body))


class Way:
    """See the module's docstring. Belongs to the router thread."""

    def __init__(self, room: Quarters, name: AgentName, agent_id: str) -> None:
        self.room = room
        self.name = name
        self.agent_id = agent_id
        self.state = WayState.OPEN
        self._address = ""  # where it is AWAY
        self._leg = 0
        self._activates = False  # whoever is there is to claim it
        self._held: list[Passage] = []
        self._sent: dict[Passage, None] = {}
        self.maker: Made | None = None  # that of the call for whose sake the agent is claimed here
        self._chosen: Mapping[str, Any] | None = None  # the options it was made with; None: nobody has made it yet
        self._unable: dict[str, ZmqAgentsError] = {}  # incarnations that cannot run it, and why
        self._choice: MemberInfo | None = None  # the member that is to have the agent, if nobody has it
        self._denied: set[str] = set()  # addresses where it was sought in vain since the last pause
        self._pause_s = PAUSES_S[0]
        self._numbers = 0
        self._told: list[Callable[[], None]] = []  # when a claim that `have` has begun has come to something

    def __repr__(self) -> str:
        return f"<Way to {self.name} [{self.state.value}, {len(self._held)} held, {len(self._sent)} passed on]>"

    @property
    def is_empty(self) -> bool:
        """Whether nothing depends on it."""
        return not self._held and not self._sent and self.state is not WayState.CLAIMING

    @property
    def held(self) -> list[Passage]:
        """The calls that wait here."""
        return list(self._held)

    def passage(self, *, ahead: bool = False) -> Passage:
        """For one more call; ``ahead``: it was to begin here, and comes before all that waited behind it."""
        return Passage(self, -1 if ahead else 0, self.room.clock())

    # ------------------------------------------------------------ calls come and go

    def take(self, passage: Passage) -> None:
        """A call has come."""
        if not passage.number:
            self._numbers += 1
            passage.number = self._numbers
        self._held.append(passage)
        self.step()

    @property
    def passes_on(self) -> bool:
        """Whether one more call may be passed on at once, behind those that are on their way."""
        return self.state is WayState.AWAY and not self._held

    def pass_on(self, passage: Passage, ticket: Ticket) -> None:
        """Pass a call on that has just come, while it `passes_on`."""
        self._numbers += 1
        passage.number, passage.ticket = self._numbers, ticket
        self._send(passage)
        if not self._sent:
            self.room.forget(self)

    def let_go(self, passage: Passage) -> None:
        """A call that was held is over."""
        if passage in self._held:
            self._held.remove(passage)
        self._finish(passage, _NOTHING)

    def refuse(self, error: ZmqAgentsError, *, only: Iterable[Passage] | None = None) -> None:
        """All that are held end in this error, or ``only`` these."""
        for passage in list(self._held if only is None else only):
            self._held.remove(passage)
            self._refuse(passage, error)

    def step(self) -> None:
        """Do what can be done for those that are held."""
        room = self.room
        resident = room.resident(self.name)
        if resident is not None and not resident.is_leaving:
            self.state = WayState.OPEN
            held, self._held = sorted(self._held, key=lambda passage: passage.number), []
            for passage in held:
                resident.welcome(passage)
        elif self.state is WayState.AWAY:
            self._send_all()
        elif self.state is WayState.OPEN and self._held:
            self._begin()
        elif self.state is WayState.LOOKING and any(passage.activate for passage in self._held):
            self._claim()
        elif self.state in (WayState.GATHERING, WayState.PAUSED) and not room.is_leaving(self.name):
            self._answer_members()
        if self._held:
            room.watch()
        room.forget(self)

    def _begin(self) -> None:
        room = self.room
        if room.is_leaving(self.name):
            self._pause()
            return
        home = room.member.homes.find(self.name.text)
        if any(passage.activate for passage in self._held):
            self._claim()
        elif home is not None and home.address != room.address and not any(passage.hop for passage in self._held):
            self._go(home.address)
        elif self._claims_unseen():
            self._claim(unseen=True)
        else:
            self._look()

    def _claims_unseen(self) -> bool:
        """Whether a claim tells all that a look would: most agents that nobody here knows have no home yet.

        It does where this host would take the agent, unless the calls ask for more than its code.
        """
        room = self.room
        if room.drains or self._unable or self._denied:
            return False
        if any(passage.hop or passage.is_end or passage.made is not None for passage in self._held):
            return False
        if not room.takes_local(self.name.cls, {}):
            self._choice = room.member.placement.choose(self.name.cls, 0)
            return self._choice is not None and self._choice.incarnation == room.member.incarnation
        return True

    def look_first(self) -> None:
        """It was claimed unseen, and has options."""
        self._choice = None
        self._tell_claimed()
        self._look()

    def _answer_members(self) -> None:
        """What another member has passed on does not wait here."""
        for passage in [passage for passage in self._held if passage.hop]:
            self._held.remove(passage)
            self._tell_elsewhere(passage)

    def _tell_elsewhere(self, passage: Passage) -> None:
        """Another member takes the agent for one of this host's, which may be news."""
        self.room.count_elsewhere("told")
        known = self.room.member.homes.find(self.name.text) if self.state is not WayState.AWAY else None
        home = Home(self.agent_id, known.address if known is not None else "", known.epoch if known is not None else 0)
        self._turn_away(passage)
        self._finish(passage, elsewhere_reply(home))

    def _turn_away(self, passage: Passage) -> None:
        """A member learns that a call was not executed here: those that it has sent by then come back to it as well."""
        if passage.ticket is not None:
            passage.ticket.peer.turn_away(self.agent_id)

    # ------------------------------------------------------------ looking, claiming

    def _look(self) -> None:
        self.state = WayState.LOOKING
        self.room.member.locate(self.name.text)

    def found(self, found: Whereabouts) -> None:
        """Redis has said who has the agent."""
        if self.state is not WayState.LOOKING:
            return
        self._chosen = None if found.options is None else options_in(found.options)
        if not found.epoch:  # there is no such agent
            for passage in [passage for passage in self._held if passage.is_end]:
                self._held.remove(passage)
                self._finish(passage, TRUE)
        if found.owner == self.room.member.incarnation and self._held:  # it was given to this host
            self._claim(given=True)
            return
        self.state = WayState.OPEN
        self._answer_members()
        if not self._held:
            self.room.forget(self)
        elif found.address and found.address not in (*self._denied, self.room.address):
            self._go(found.address)
        else:  # to claim it tells whether its owner is dead
            self._place()

    def _place(self) -> None:
        """Nobody has the agent, or one who may be dead."""
        room, cls, placement, asked = self.room, self.name.cls, self.room.member.placement, self._asked
        if room.takes_local(cls, asked) and room.member.incarnation not in self._unable:
            self._claim()
            return
        without = [*self._unable, room.member.incarnation] if room.drains else list(self._unable)
        chosen, self._choice = self._choice, None
        if chosen is None or asked or without or placement.find(chosen.incarnation) is not chosen:
            chosen = placement.choose(cls, 0, asked.get("labels"), but=without)
        if chosen is None:
            why = placement.why_none(cls, 0, asked.get("labels"))
            last = next(reversed(self._unable.values()), None)
            self._unable.clear()
            self.state = WayState.OPEN
            self.refuse(last if isinstance(last, errors.TooOld) else errors.NoHost(f"{self.agent_id}: {last or why}"))
            room.forget(self)
        elif chosen.address == room.address:  # also by a former incarnation of this host
            self._claim()
        else:
            self._go(chosen.address, activates=True)

    @property
    def _asked(self) -> Mapping[str, Any]:
        """What was said of the agent where it was made, or is by the call that is to make it."""
        if self._chosen is not None:
            return self._chosen
        return next((passage.options for passage in self._held if passage.made is not None), {})

    def _claim(self, *, given: bool = False, unseen: bool = False) -> None:
        self.state = WayState.CLAIMING
        self.maker = next((passage.made for passage in self._held if passage.made is not None), None)
        try:
            self.room.activate(self.name, self.maker, given=given, unseen=unseen)
        except (errors.UnknownClass, errors.CannotServe) as exc:
            self.cannot(errors.CannotServe(str(exc)))

    def have(self, tell: Callable[[], None]) -> None:
        """Claim the agent although no call asks for it. ``tell`` is called when that has come to something."""
        self._told.append(tell)
        if self.state is WayState.OPEN:
            self._claim()
        elif self.state is not WayState.CLAIMING:  # its calls are on their way to another host
            self._tell_claimed()

    def _tell_claimed(self) -> None:
        told, self._told = self._told, []
        for tell in told:
            tell()

    def claimed(self) -> None:
        """The agent is this host's, and is being made."""
        self.state = WayState.OPEN
        self._pause_s = PAUSES_S[0]
        self.step()
        self._tell_claimed()

    def left(self) -> None:
        """The agent was here, and is not any more."""
        if self.state is WayState.PAUSED:
            self.state = WayState.OPEN
        self.step()

    def not_claimable(self, error: ZmqAgentsError) -> None:
        """No host can claim the agent as it was asked for."""
        self.state = WayState.OPEN
        self._tell_claimed()
        makers = [passage for passage in self._held if passage.made is not None]
        if isinstance(error, errors.AgentExists) and makers:  # the others may have what is there
            self.refuse(error, only=makers)
            self.step()
        else:
            self.refuse(error)
            self.room.forget(self)

    def cannot(self, error: ZmqAgentsError) -> None:
        """This host cannot run the agent; others may."""
        self._unable[self.room.member.incarnation] = error
        self._tell_claimed()
        for passage in [passage for passage in self._held if passage.hop]:
            self._held.remove(passage)
            self._turn_away(passage)
            self._refuse(passage, error)
        self.state = WayState.OPEN
        if self._held:
            self._place()
        self.room.forget(self)

    def not_claimed(self, address: str) -> None:
        """Another host has the agent; "": or will soon."""
        self.state = WayState.OPEN
        self._tell_claimed()
        self._answer_members()
        if address and address != self.room.address and address not in self._denied:
            self._go(address)
        elif self._held:
            self._pause()
        self.room.forget(self)

    # ------------------------------------------------------------ passing on

    def _go(self, address: str, *, activates: bool = False) -> None:
        self.set_out(address, activates=activates)
        self._send_all()

    def set_out(self, address: str, *, activates: bool = False) -> None:
        """The agent is at this address, or (``activates``) is to be."""
        self.state = WayState.AWAY
        self._address, self._activates, self._leg = address, activates, self.room.next_leg()

    def _send(self, passage: Passage) -> None:
        self._sent[passage] = None
        self.room.count_relay()
        try:
            passage.send(self.room.neighbour(self._address), self._leg, activate=self._activates)
        except ZmqAgentsError as exc:
            del self._sent[passage]
            self._refuse(passage, errors.HostBusy.of_host(str(exc)) if isinstance(exc, errors.HostBusy) else exc)

    def _send_all(self) -> None:
        self._answer_members()
        if self.room.is_closed:
            self.refuse(errors.HostStopping("the host has stopped"))
            return
        held, self._held = sorted(self._held, key=lambda passage: passage.number), []
        for passage in held:
            if passage.is_over:
                self._finish(passage, _NOTHING)
            else:
                self._send(passage)

    def answered(self, passage: Passage, neighbour: Neighbour, reply: Reply) -> None:
        """The host that a call was passed on to has answered."""
        self._sent.pop(passage, None)
        room, name = self.room, self.name.text
        if reply.code == Code.ELSEWHERE:
            room.count_elsewhere("met")
            room.member.homes.drop(name, neighbour.address)
            self._deny(neighbour.address)
            home = home_in(reply)
            if home.address not in ("", neighbour.address, room.address):
                room.member.homes.note(name, home.address, home.epoch)
            self._come_back(passage)
            return
        if reply.code == Code.HOST_ERROR:
            error = rebuild_error(reply)
            if isinstance(error, (errors.CannotServe, errors.TooOld, errors.HostStopping)):
                room.member.homes.drop(name, neighbour.address)
                incarnation = room.incarnation_at(neighbour.address)
                if incarnation:
                    self._unable[incarnation] = error
                self._come_back(passage)
                return
        else:
            self._pause_s = PAUSES_S[0]
            room.met(name, neighbour.address)
            if passage.ticket is not None and not passage.hop:
                room.hint(passage.ticket, name)
        self._finish(passage, reply)
        self._gathered()

    def failed(self, passage: Passage, neighbour: Neighbour, error: Exception) -> None:
        """There is no answer from there."""
        self._sent.pop(passage, None)
        ticket = passage.ticket
        assert ticket is not None
        self.room.member.homes.drop_all_at(neighbour.address)
        self._deny(neighbour.address)
        # A host that ends in order answers all that it has taken before it says so.
        never_sent = isinstance(error, (errors.HostUnreachable, errors.AuthenticationError, errors.HostStopping))
        repeatable = ticket.flags & (Flag.IDEMPOTENT | Flag.STREAM) == Flag.IDEMPOTENT
        if not passage.is_over and not passage.has_begun and (never_sent or repeatable):
            self._come_back(passage)
            return
        lost = error if isinstance(error, errors.CallLost) else errors.CallLost(str(error))
        self._refuse(passage, lost)
        if self.state is WayState.AWAY:
            self.state = WayState.GATHERING
        self._gathered()

    def _deny(self, address: str) -> None:
        """The agent is not there, or nobody is."""
        self._denied.add(address)
        self.room.member.look_around()

    def _come_back(self, passage: Passage) -> None:
        """A call was not executed there."""
        if passage.ticket is not None and not passage.ticket.settled:
            passage.ticket.go_outside(False)
        self._held.append(passage)
        self.state = WayState.GATHERING
        self._gathered()

    def _gathered(self) -> None:
        if self.state is WayState.GATHERING and not self._sent:
            known = self.room.member.homes.find(self.name.text)
            if not self._held:
                self.state = WayState.OPEN
            elif known is not None and known.address not in (self._address, self.room.address):
                self._go(known.address)
            elif len(self._denied) == 1 and self._pause_s == PAUSES_S[0]:
                self._pause_s *= 2
                self._look()
            else:
                self._pause()
        self.room.forget(self)

    def _pause(self) -> None:
        self.state = WayState.PAUSED
        self.room.alarm(self._pause_s, Alarm(self._resume))
        self._pause_s = min(2 * self._pause_s, PAUSES_S[1])
        self.room.watch()

    def _resume(self, now: float) -> list[Effect]:
        if self.state is WayState.PAUSED:
            self.state = WayState.OPEN
            self._denied.clear()
            for passage in [passage for passage in self._held if passage.is_over]:
                self.let_go(passage)
            if self._held and not self.room.is_leaving(self.name):
                resident = self.room.resident(self.name)
                if resident is None:
                    self._look()
            self.step()
        return []

    # ------------------------------------------------------------ ends

    def _finish(self, passage: Passage, reply: Reply) -> None:
        ticket, room = passage.ticket, self.room
        if ticket is not None:
            room.carry_out(room.dispatcher.on_done(ticket, reply, room.clock()))

    def _refuse(self, passage: Passage, error: ZmqAgentsError) -> None:
        ticket = passage.ticket
        assert ticket is not None
        where = {"agent": self.agent_id, "method": ticket.name, "call_id": ticket.task_id}
        self._finish(passage, error_reply(error, **where))


def options_in(record: bytes) -> Mapping[str, Any]:
    """The options of an agent's record; none if they are not understood: who makes it will say so."""
    try:
        found = unpack(record, max_bytes=MAX_OPTIONS_BYTES) if record else {}
    except ZmqAgentsError:
        return {}
    return found if isinstance(found, dict) else {}


TRUE = Reply(Code.NONE, (pack(True),))
_NOTHING = Reply(Code.NONE, ())
