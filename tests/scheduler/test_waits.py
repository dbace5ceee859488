"""`Waiting` on `Calls`, without the dispatcher: what calls wait for, with the time in the test's hand."""

from __future__ import annotations

from world import find_class as class_of
from world import ok
from zmqagents.config import BrokerConfig
from zmqagents.errors import CallError, DeadlockError, HostBusy, HostStopping, LocalProtocolError
from zmqagents.scheduler.admission import Admission
from zmqagents.scheduler.calls import Calls
from zmqagents.scheduler.effects import Answer, Drained, Effect, Lookup, Resume, Start
from zmqagents.scheduler.records import ID_BYTES, AgentRecord, Peer, State, Ticket
from zmqagents.scheduler.waiting import Waiting
from zmqagents.wire.link import rebuild_error
from zmqagents.wire.messages import Call, Reply, error_reply

NOW = 50.0


class Play:
    """Agents that are made, and calls of them that have come in."""

    def __init__(self, *agents: str, capacity: int = 2, **settings: int) -> None:
        config = BrokerConfig(capacity=capacity, server_id="world", **settings)  # type: ignore[arg-type]
        self.calls = Calls(config, shares=False, expects=lambda task_id: False)
        self.admission = Admission(config, class_of, self.calls)
        self.waiting = Waiting(self.calls, self.admission)
        self.peer = Peer("client")
        self.effects: list[Effect] = []
        for name in agents:
            spec = class_of("Plain")
            self.calls.agents[name] = record = AgentRecord(name, spec, spec.options, NOW)
            record.made = True

    def call(
        self, agent: str, method: str = "m", *, parent: Ticket | None = None, deps: tuple[str, ...] = ()
    ) -> Ticket:
        number = self.calls.counters.accepted + 1
        call = Call(number, 0, 0, agent, method, list(deps), {}, (b"body",))
        ticket = self.admission.admit(self.peer, call, f"client-{number}", NOW, parent)
        if parent is not None:
            ticket.parent, parent.spawned = parent, {**(parent.spawned or {}), ticket: None}
        if deps:
            self.calls.book(ticket)
            self.waiting.park(ticket, deps, self.effects)
        else:
            ticket.agent.try_to_seat(ticket)
            self.calls.open(ticket, NOW, self.effects)
        return ticket

    def end(self, ticket: Ticket, reply: Reply | None = None) -> list[Effect]:
        effects: list[Effect] = []
        self.calls.settle(ticket, reply or ok(), effects, NOW)
        self.waiting.spread(effects, NOW)
        self.calls.release(ticket, effects, NOW)
        return effects


def refusal(effects: list[Effect]) -> Exception | None:
    (effect,) = effects
    assert isinstance(effect, Resume)
    return effect.error


def test_a_thread_that_waits_gives_its_slot_to_the_next_call_and_takes_one_before_new_calls() -> None:
    play = Play("a", "b", "c", "d", capacity=1)
    first, second, third = play.call("a"), play.call("b"), play.call("c")
    assert (first.state, second.state) == (State.RUNNING, State.READY)
    assert play.waiting.on_wait(first, [second.task_id], NOW) == [Start(second)]
    assert (first.state, play.calls.slots.blocked) == (State.WAITING, 1)
    assert Resume(first) in play.end(second)
    assert (first.state, third.state, play.calls.slots.blocked) == (State.RUNNING, State.READY, 0)


def test_a_wait_for_what_is_there_is_over_at_once() -> None:
    play = Play("a")
    ticket = play.call("a")
    assert play.waiting.on_wait(ticket, ["client-77"], NOW) == [Resume(ticket)]
    assert ticket.state is State.RUNNING


def test_a_wait_for_any_of_two_ends_with_the_first() -> None:
    play = Play("a", "b", "c", capacity=3)
    waiter, one, other = play.call("a"), play.call("b"), play.call("c")
    play.waiting.on_wait(waiter, [one.task_id, other.task_id], NOW, any_of=True)
    assert Resume(waiter) in play.end(one)
    assert waiter.waits_for is None
    assert not other.waiters


def test_two_calls_that_wait_for_each_other_are_a_deadlock() -> None:
    play = Play("a", "b")
    one, other = play.call("a"), play.call("b")
    assert play.waiting.on_wait(one, [other.task_id], NOW) == []
    assert isinstance(refusal(play.waiting.on_wait(other, [one.task_id], NOW)), DeadlockError)
    assert (one.state, other.state) == (State.WAITING, State.RUNNING)
    assert play.calls.counters.deadlocks == 1


def test_a_call_of_ones_own_that_could_never_start_ends_with_the_wait_for_it() -> None:
    play = Play("a")
    outer = play.call("a")
    inner = play.call("a", parent=outer)
    assert inner.state is State.QUEUED
    effects: list[Effect] = []
    play.waiting.begin(outer, [inner], False, effects, NOW)
    answer, resume = effects
    assert isinstance(answer, Answer)
    assert isinstance(rebuild_error(answer.reply), DeadlockError)
    assert isinstance(refusal([resume]), DeadlockError)
    assert inner.state is State.DONE


def test_a_call_waits_for_its_arguments_and_starts_with_the_last_of_them() -> None:
    play = Play("a", "b", "c")
    one, other = play.call("a"), play.call("b")
    taker = play.call("c", deps=(one.task_id, other.task_id))
    assert (taker.state, play.calls.queued_bytes) == (State.PARKED, 4 + 2 * ID_BYTES)
    play.end(one)
    assert taker.state is State.PARKED
    assert Start(taker) in play.end(other)
    assert (taker.state, play.calls.queued_bytes) == (State.RUNNING, 0)


def test_an_argument_that_failed_fails_the_call_with_its_own_error() -> None:
    play = Play("a", "b")
    one = play.call("a")
    taker = play.call("b", deps=(one.task_id,))
    bad = error_reply(CallError("no"))
    assert Answer(play.peer, taker.call_id, bad) in play.end(one, bad)
    assert taker.state is State.DONE


def test_an_argument_that_is_not_open_is_looked_for_in_the_store() -> None:
    play = Play("a")
    taker = play.call("a", deps=("other-1",))
    assert play.effects == [Lookup(play.peer, taker.call_id, "other-1", taker)]
    assert play.waiting.on_dep(taker, "other-1", ok(), NOW) == [Start(taker)]
    assert play.waiting.on_dep(taker, "other-1", ok(), NOW) == [], "the second answer comes too late"


def test_a_coroutine_may_wait_twice_for_one_call_and_take_one_wait_back() -> None:
    play = Play("a", "b")
    coroutine, target = play.call("a", "co"), play.call("b")
    for _ in range(2):
        assert play.waiting.on_wait(coroutine, [target.task_id], NOW) == []
    play.waiting.on_unwait(coroutine, [target.task_id])
    assert coroutine.state is State.WAITING
    play.waiting.on_unwait(coroutine, [target.task_id])
    assert coroutine.state is State.RUNNING
    assert not target.waiters


def test_a_wait_outside_ends_when_its_thread_says_so() -> None:
    play = Play("a", "b", capacity=1)
    ticket, following = play.call("a"), play.call("b")
    assert play.waiting.on_wait_outside(ticket, NOW) == [Start(following)]
    assert play.waiting.on_wait_over(ticket, NOW) == [], "the slot is taken"
    assert Resume(ticket) in play.end(following)


def test_a_thread_beyond_those_that_there_may_be_is_refused_its_wait() -> None:
    play = Play("a", "b", "c", capacity=1, max_threads=2)
    one = play.call("a")
    play.call("b")
    assert play.waiting.refusal(one) is None
    play.waiting.on_wait_outside(one, NOW)
    following = next(ticket for ticket in play.calls.tasks.values() if ticket is not one)
    assert isinstance(play.waiting.refusal(following), HostBusy)


def test_code_whose_call_is_over_may_not_wait() -> None:
    play = Play("a", "b")
    gone, late = play.call("a"), play.call("b")
    play.end(gone)
    assert isinstance(refusal(play.waiting.on_wait_outside(gone, NOW)), LocalProtocolError)
    play.calls.cancel(late, [], NOW)
    assert type(refusal(play.waiting.on_wait_outside(late, NOW))) is type(late.ended)


def test_a_drain_is_over_when_the_last_call_has_returned() -> None:
    play = Play("a", "b")
    last = play.call("a")
    play.calls.drain_by(NOW + 10)
    assert play.waiting.end([], NOW) == []
    assert Drained(0) in play.waiting.end(play.end(last), NOW)
    assert play.calls.drained
    assert list(play.calls.timers) == []
    assert isinstance(play.waiting.refusal(last), HostStopping)
