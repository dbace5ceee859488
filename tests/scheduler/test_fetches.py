"""`Fetches` alone: parked long polls, with the time in the test's hand."""

from __future__ import annotations

import math

from world import CLASSES, ok
from zmqagents.agents.options import AgentOptions
from zmqagents.config import BrokerConfig
from zmqagents.errors import HostBusy, HostStopping
from zmqagents.scheduler.effects import Answer, Effect, Lookup, Pending
from zmqagents.scheduler.fetches import STORE_PATIENCE_S, Fetches
from zmqagents.scheduler.records import AgentRecord, ParkedFetch, Peer, Ticket, Timed
from zmqagents.scheduler.shares import Shares
from zmqagents.scheduler.timers import Timers
from zmqagents.wire.link import rebuild_error
from zmqagents.wire.messages import Call

NOW = 50.0


class Poll:
    """A client, one open call ``client-1`` and the fetches of it."""

    def __init__(self, *, shares: bool = False, **settings: int) -> None:
        self.peer = Peer("client")
        call = Call(1, 0, 0, "a", "m", [], {}, (b"body",))
        record = AgentRecord("a", CLASSES["Plain"], AgentOptions(), NOW)
        self.ticket = Ticket(self.peer, call, "client-1", record, "", record.spec.methods["m"], True, None, NOW)
        self.tasks = {"client-1": self.ticket}
        self.timers: Timers[Timed] = Timers()
        config = BrokerConfig(server_id="world", **settings)  # type: ignore[arg-type]
        all_shares = Shares(config)
        self.fetches = Fetches(
            config, self.tasks, self.timers, all_shares.fetches, all_shares.early, shares=shares,
            expects=lambda task_id: False,
        )  # fmt: skip

    def fetch(self, call_id: int, task_id: str = "client-1", timeout: float = 4.0) -> list[Effect]:
        return self.fetches.on_fetch(self.peer, call_id, task_id, timeout, NOW)


def error_of(effect: Effect) -> Exception | None:
    assert isinstance(effect, Answer)
    return rebuild_error(effect.reply)


def test_a_fetch_of_an_open_call_waits_until_that_is_answered() -> None:
    poll = Poll()
    assert poll.fetch(2) == []
    assert poll.fetch(3) == []
    effects: list[Effect] = []
    reply = ok()
    poll.fetches.answer(poll.ticket, reply, effects)
    assert effects == [Answer(poll.peer, 2, reply), Answer(poll.peer, 3, reply)]
    assert (poll.peer.fetches, poll.ticket.fetches, list(poll.timers)) == ({}, {}, [])


def test_a_fetch_whose_time_is_over_is_told_to_ask_again() -> None:
    poll = Poll()
    poll.fetch(2, timeout=4)
    assert poll.timers.due == NOW + 4
    assert list(poll.timers.take_due(NOW + 3.9)) == []
    (late,) = poll.timers.take_due(NOW + 4)
    assert isinstance(late, ParkedFetch)
    effects: list[Effect] = []
    poll.fetches.expire(late, effects, NOW + 4)
    assert effects == [Pending(poll.peer, 2)]
    assert (poll.peer.fetches, poll.ticket.fetches) == ({}, {})


def test_a_fetch_that_would_not_wait_is_answered_at_once() -> None:
    poll = Poll()
    assert poll.fetch(2, timeout=0) == [Pending(poll.peer, 2)]
    assert poll.timers.due == math.inf


def test_a_fetch_of_another_task_is_a_look_into_the_store() -> None:
    poll = Poll()
    assert poll.fetch(2, "client-77") == [Lookup(poll.peer, 2, "client-77", timeout_s=4.0)]
    assert poll.peer.fetches == {}


def test_a_fetch_that_a_shared_store_answers_waits_longer_than_the_store_may_take() -> None:
    poll = Poll(shares=True)
    (effect,) = poll.fetch(64, "other-1", 4)
    assert isinstance(effect, Lookup)
    assert effect.fetch is not None
    assert effect.timeout_s == 4
    assert poll.timers.due == NOW + 4 + STORE_PATIENCE_S
    reply = ok()
    assert poll.fetches.on_found(effect.fetch, reply) == [Answer(poll.peer, 64, reply)]
    assert poll.fetches.on_found(effect.fetch, reply) == [], "the second answer comes too late"


def test_a_shared_store_that_knows_of_no_result_leaves_the_fetch_unfinished() -> None:
    poll = Poll(shares=True)
    (effect,) = poll.fetch(2, "other-1")
    assert isinstance(effect, Lookup)
    assert effect.fetch is not None
    assert poll.fetches.on_found(effect.fetch, None) == [Pending(poll.peer, 2)]


def test_a_fetch_that_comes_again_takes_the_place_of_the_first() -> None:
    poll = Poll()
    poll.fetch(2)
    poll.fetch(2)
    effects: list[Effect] = []
    poll.fetches.answer(poll.ticket, ok(), effects)
    assert len(effects) == 1


def test_a_client_with_too_many_fetches_is_refused_one_more() -> None:
    poll = Poll(max_calls_per_client=2)
    poll.fetch(2)
    poll.fetch(3)
    (effect,) = poll.fetch(4)
    assert isinstance(error_of(effect), HostBusy)


def test_questions_of_one_user_to_a_shared_store_are_bounded_and_those_of_another_go_on() -> None:
    poll = Poll(shares=True, max_calls=64)
    for call_id in range(14):
        assert isinstance(poll.fetch(call_id, f"nobody-{call_id}")[0], Lookup)
    (effect,) = poll.fetch(99, "nobody-99")
    assert "fetches wait for the shared store, 14 of them of this user" in str(error_of(effect))
    other = Peer("other")
    assert isinstance(poll.fetches.on_fetch(other, 1, "x-1", 4.0, NOW)[0], Lookup)
    poll.fetches.forget(poll.peer.fetches[0])
    poll.fetches.forget(other.fetches[1])
    assert isinstance(poll.fetch(99, "nobody-99")[0], Lookup)


def test_a_host_that_has_stopped_refuses_every_fetch() -> None:
    poll = Poll()
    poll.fetches.close([])
    (effect,) = poll.fetch(2)
    assert isinstance(error_of(effect), HostStopping)


def test_the_fetches_of_a_client_that_is_refused_all_get_its_error() -> None:
    poll = Poll()
    poll.fetch(2)
    poll.fetch(3)
    effects: list[Effect] = []
    reply = ok()
    poll.fetches.refuse(poll.peer, reply, effects)
    assert effects == [Answer(poll.peer, 2, reply), Answer(poll.peer, 3, reply)]
    assert poll.peer.fetches == {}
