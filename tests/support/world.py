"""A host without threads, sockets and clock: a `Dispatcher`, and a record of what it said.

A test plays every part: it sends calls, says when a method's code returns, waits or gives up, and sets the time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from zmqagents import errors
from zmqagents.agents.base import AgentBase
from zmqagents.agents.marks import concurrent
from zmqagents.agents.spec import ClassSpec, spec_of
from zmqagents.codec import pack, unpack
from zmqagents.config import BrokerConfig
from zmqagents.scheduler.dispatcher import (
    AgentRecord,
    Answer,
    Begin,
    Dispatcher,
    Drained,
    Effect,
    Ended,
    GoOn,
    Interrupt,
    Keep,
    Lookup,
    Peer,
    Pending,
    Removed,
    Report,
    Resume,
    Start,
    State,
    Ticket,
)  # fmt: skip
from zmqagents.scheduler.waiting import EndWaits
from zmqagents.wire.link import rebuild_error
from zmqagents.wire.messages import Call, Code, Flag, Op, Reply, error_reply, task_id_of


class Plain(AgentBase):
    def m(self) -> None: ...

    def n(self) -> None: ...

    @concurrent
    def progress(self) -> None: ...

    async def co(self) -> None: ...

    def _secret(self) -> None: ...


class Pair(Plain, max_concurrency=2):
    pass


class Wide(Plain, max_concurrency=100_000):
    pass


class Again(Plain, reentrant=True):
    pass


class PairAgain(Plain, reentrant=True, max_concurrency=2):
    pass


class Picky(Plain, on_busy="reject"):
    pass


class PickyAgain(Plain, on_busy="reject", reentrant=True):
    pass


class Ending(Plain):
    def on_stop(self) -> None: ...


class PairEnding(Pair):
    async def on_stop(self) -> None: ...


CLASSES = {
    cls.__name__: spec_of(cls) for cls in (Plain, Pair, Wide, Again, PairAgain, Picky, PickyAgain, Ending, PairEnding)
}


def find_class(name: str) -> ClassSpec:
    if name not in CLASSES:
        raise errors.UnknownClass(f"no class {name}")
    return CLASSES[name]


def ok(value: Any = "ok") -> Reply:
    return Reply(Code.NONE, (pack(value),))


def failed(exc: Exception, call_id: str = "") -> Reply:
    return Reply(Code.AGENT_ERROR, (pack(errors.describe(exc, call_id=call_id)),))


@dataclass(eq=False)
class Sent:
    """A call as its caller knows it."""

    world: World
    peer: Peer
    call_id: int
    ticket: Ticket | None  # None: refused

    @property
    def task_id(self) -> str:
        return task_id_of(self.peer.prefix, self.call_id)

    @property
    def t(self) -> Ticket:
        assert self.ticket is not None, self.error
        return self.ticket

    @property
    def state(self) -> State:
        return self.t.state

    @property
    def started(self) -> bool:
        return self.ticket in self.world.ever_started

    @property
    def replies(self) -> list[Reply]:
        return self.world.answers[self.peer, self.call_id]

    @property
    def answered(self) -> bool:
        assert len(self.replies) < 2
        return bool(self.replies)

    @property
    def error(self) -> Exception | None:
        """What the call ended in; None for a value and for nothing yet."""
        return rebuild_error(self.replies[0]) if self.answered and self.replies[0].code else None

    @property
    def is_busy(self) -> bool:
        """Refused so that clients try again."""
        return self.answered and self.replies[0].code == Code.BUSY

    @property
    def value(self) -> Any:
        (reply,) = self.replies
        assert reply.code == Code.NONE, self.error
        return unpack(reply.body[0])


UNKNOWN = error_reply(errors.UnknownTask("no such task"))


class World:
    """``capacity`` and every other setting of the host may be given."""

    def __init__(
        self, *, capacity: int = 4, end_waits: EndWaits | None = None, observer: Any = None, traces: Any = None,
        **settings: Any,
    ) -> None:  # fmt: skip
        self.config = BrokerConfig(capacity=capacity, server_id="world", **settings)
        self.expected: set[str] = set()  # task ids of calls that may be on their way
        self.dispatcher = Dispatcher(
            self.config, find_class, shares_results=self.config.pool_type == "redis",
            expects=self.expected.__contains__, end_waits=end_waits, observer=observer,
            traces=traces,
        )  # fmt: skip
        self.now = 1000.0
        self.client = Peer("client")
        self.inside = Peer("inside", local=True)
        self.ids: defaultdict[Peer, int] = defaultdict(int)
        self.started: list[Ticket] = []
        self.ever_started: set[Ticket] = set()
        self.answers: defaultdict[tuple[Peer, int], list[Reply]] = defaultdict(list)
        self.pendings: list[tuple[Peer, int]] = []
        self.begun: list[str] = []
        self.kept: dict[str, Reply] = {}
        self.lookups: list[Lookup] = []
        self.resumed: list[Resume] = []
        self.interrupted: list[Ticket] = []
        self.removed: list[AgentRecord] = []
        self.reports: list[Report] = []
        self.drained: list[int] = []
        self.unended: list[int] = []
        self.ended: list[Ended] = []
        self.gone_on: list[Ticket] = []  # on the event loop
        self._record: dict[type, Callable[[Any], object]] = {
            Start: self._start,
            Answer: lambda e: self.answers[e.peer, e.call_id].append(e.reply),
            Pending: lambda e: self.pendings.append((e.peer, e.call_id)),
            Begin: lambda e: self.begun.append(e.task_id),
            Keep: lambda e: self.kept.__setitem__(e.task_id, e.reply),
            Lookup: lambda e: self.lookups.append(e),
            Resume: lambda e: self.resumed.append(e),
            Interrupt: lambda e: self.interrupted.append(e.ticket),
            Removed: lambda e: self.removed.append(e.agent),
            Report: self.reports.append,
            Ended: self.ended.append,
            GoOn: lambda e: self.gone_on.append(e.ticket),
            Drained: self._drained,
        }

    def see(self, effects: list[Effect]) -> list[Effect]:
        """Take down what the dispatcher said."""
        for effect in effects:
            self._record[type(effect)](effect)
        return effects

    def _start(self, effect: Start) -> None:
        assert effect.ticket not in self.ever_started, "nothing runs twice"
        self.ever_started.add(effect.ticket)
        self.started.append(effect.ticket)

    def _drained(self, effect: Drained) -> None:
        self.drained.append(effect.cut)
        self.unended.append(effect.unended)

    # ---------------------------------------------------------------- calls

    def send(
        self, agent: str, method: str = "m", *, peer: Peer | None = None, call_id: int | None = None,
        timeout: float | None = None, flags: int = 0, deps: Iterable[Sent | str] = (), parent: Sent | None = None,
        wait: bool = False, body: bytes = b"body", **options: Any,
    ) -> Sent:  # fmt: skip
        """A call arrives; with ``parent``, from the code of that call."""
        peer = peer or (self.client if parent is None else self.inside)
        if call_id is None:
            self.ids[peer] += 1
            call_id = self.ids[peer]
        task_ids = [dep if isinstance(dep, str) else dep.task_id for dep in deps]
        if "chain" in options:
            options["chain"] = self.dispatcher.seals.seal(options["chain"])
        time_ms = 0 if timeout is None else int(timeout * 1000)
        call = Call(call_id, flags, time_ms, agent, method, task_ids, options, (body,))
        before = self.dispatcher.tasks.get(task_id_of(peer.prefix, call_id))
        effects = self.dispatcher.on_call(
            peer, call, self.now, parent=parent.t if parent is not None else None, wait=wait
        )
        ticket = self.dispatcher.tasks.get(task_id_of(peer.prefix, call_id))
        if ticket is None:  # begun and ended in one go, or refused
            ticket = next((e.ticket for e in effects if isinstance(e, Start | Lookup) and e.ticket is not None
                           and e.ticket.peer is peer and e.ticket.call_id == call_id), None)  # fmt: skip
        assert before is None or before is ticket
        self.see(effects)
        return Sent(self, peer, call_id, ticket)

    def create(self, agent_id: str | None, cls: str = "Plain", **options: Any) -> Sent:
        """A request to make an agent arrives."""
        kwargs = {key: options.pop(key) for key in ("peer", "timeout", "deps", "flags") if key in options}
        if agent_id is not None:
            options["id"] = agent_id
        options["class"] = cls
        return self.send("", Op.CREATE, **options, **kwargs)

    def agent(self, agent_id: str, cls: str = "Plain", **options: Any) -> AgentRecord:
        """An agent that is there."""
        made = self.create(agent_id, cls, **options)
        self.done(made)
        return self.dispatcher.agents[agent_id]

    def agents(self, *agent_ids: str, cls: str = "Plain") -> None:
        for agent_id in agent_ids:
            self.agent(agent_id, cls)

    def running(self, agent: str, method: str = "m", **kwargs: Any) -> Sent:
        """A call that has started."""
        sent = self.send(agent, method, **kwargs)
        assert sent.started, sent.error
        return sent

    def nested(self, parent: Sent, agent: str, method: str = "m", **kwargs: Any) -> Sent:
        """The code of ``parent`` calls ``agent`` and waits for it."""
        return self.send(agent, method, parent=parent, wait=True, **kwargs)

    def later(self, parent: Sent, agent: str, method: str = "m", **kwargs: Any) -> Sent:
        """The code of ``parent`` calls ``agent`` and goes on: an AsyncResult."""
        return self.send(agent, method, parent=parent, flags=Flag.DETACHED, **kwargs)

    def done(self, sent: Sent | Ticket, reply: Reply | None = None) -> list[Effect]:
        """The code of a call returns."""
        ticket = sent if isinstance(sent, Ticket) else sent.t
        assert ticket in self.ever_started, "only code that has started can return"
        if ticket.op == Op.CREATE and (reply is None or not reply.code):
            ticket.agent.hold(object())
        return self.see(self.dispatcher.on_done(ticket, reply or ok(), self.now))

    # ---------------------------------------------------------------- waiting, time, the end

    def wait(self, ticket: Sent, *targets: Sent | str, any_of: bool = False) -> list[Effect]:
        task_ids = [target if isinstance(target, str) else target.task_id for target in targets]
        return self.see(self.dispatcher.on_wait(ticket.t, task_ids, self.now, any_of=any_of))

    def wait_outside(self, ticket: Sent, *task_ids: str) -> list[Effect]:
        return self.see(self.dispatcher.on_wait_outside(ticket.t, self.now, task_ids=task_ids))

    def await_outside(self, coroutine: Sent, task_id: str) -> list[Effect]:
        return self.see(self.dispatcher.on_await_outside(coroutine.t, task_id, self.now))

    def wait_over(self, ticket: Sent) -> list[Effect]:
        return self.see(self.dispatcher.on_wait_over(ticket.t, self.now))

    def cancel(self, sent: Sent, *, by_task_id: bool = False, peer: Peer | None = None) -> list[Effect]:
        call_id, task_id = (0, sent.task_id) if by_task_id else (sent.call_id, "")
        return self.see(self.dispatcher.on_cancel(peer or sent.peer, call_id, task_id, self.now))

    def fetch(self, task_id: str, timeout: float = 60.0, *, peer: Peer | None = None) -> Sent:
        peer = peer or self.client
        self.ids[peer] += 1
        self.see(self.dispatcher.on_fetch(peer, self.ids[peer], task_id, timeout, self.now))
        return Sent(self, peer, self.ids[peer], None)

    def fetch_early(self, task_id: str, timeout: float = 60.0, *, peer: Peer | None = None) -> Sent:
        """A fetch of a task that the store does not know."""
        asked = self.fetch(task_id, timeout, peer=peer)
        self.not_in_store(self.lookups.pop())
        return asked

    def not_in_store(self, lookup: Lookup) -> None:
        effects = self.dispatcher.on_unknown(lookup, self.now)
        self.see([Answer(lookup.peer, lookup.call_id, UNKNOWN)] if effects is None else effects)

    def dep(self, lookup: Lookup, reply: Reply) -> list[Effect]:
        """The store answers."""
        assert lookup.ticket is not None
        return self.see(self.dispatcher.on_dep(lookup.ticket, lookup.task_id, reply, self.now))

    def detach(self, peer: Peer) -> list[Effect]:
        return self.see(self.dispatcher.on_detach(peer, self.now))

    def remove(self, agent_id: str) -> list[Effect]:
        return self.see(self.dispatcher.remove_agent(agent_id, self.now))

    def drain(self, grace: float = 10.0) -> list[Effect]:
        return self.see(self.dispatcher.on_drain(self.now + grace, self.now))

    def sleep(self, seconds: float) -> list[Effect]:
        """Time passes; the broker looks at the clock when it promised to, and at the end."""
        end = self.now + seconds
        effects: list[Effect] = []
        while (due := self.dispatcher.timers.due) <= end:
            self.now = max(self.now, due)
            effects += self.see(self.dispatcher.on_tick(self.now))
            assert self.dispatcher.timers.due != due, "a timer that is due for ever"
        self.now = end
        effects += self.see(self.dispatcher.on_tick(self.now))
        return effects

    # ---------------------------------------------------------------- looking back

    def resumes(self, sent: Sent) -> list[errors.ZmqAgentsError | None]:
        """What each finished wait of a call ended in."""
        return [resume.error for resume in self.resumed if resume.ticket is sent.ticket]

    def finish(self) -> None:
        """Everything that runs returns, until nothing does."""
        while going := [ticket for ticket in self.started if ticket.state is State.RUNNING and not ticket.owed]:
            for ticket in going:
                self.done(ticket)

    def assert_idle(self) -> None:
        """Nothing is open, and nothing of what was is kept."""
        dispatcher = self.dispatcher
        assert dispatcher.tasks == {}
        assert (dispatcher.running, dispatcher.blocked, dispatcher.calls.lingering) == (0, 0, 0)
        assert dispatcher.calls.slots.ready == dispatcher.queued_bytes == 0
        assert not dispatcher.calls.news
        assert not dispatcher.calls.ending
        assert list(dispatcher.timers) == []
        assert dispatcher.counters.accepted == dispatcher.counters.answered
        for peer in (self.client, self.inside):
            assert (peer.calls, peer.fetches) == ({}, {})
            account = peer.account
            assert (account.calls, account.slots, account.waits, account.queued_bytes) == (0, 0, 0, 0)
        for record in dispatcher.agents.values():
            assert (record.holders, record.beside or [], record.queued) == ([], [], 0)
        for ticket in self.started:
            assert ticket.state is State.DONE
            left = (ticket.waits_for, ticket.waiters, ticket.dependents, ticket.spawned, ticket.fetches, ticket.returns)
            assert not any(left)
            assert (ticket.parent, ticket.context, ticket.dep_replies, ticket.body) == (None, None, None, ())
