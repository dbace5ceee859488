"""The shares of users: what a greedy one may take, and what is always left for the others."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from world import Sent, World
from zmqagents import errors
from zmqagents.config import BrokerConfig
from zmqagents.scheduler.records import ID_BYTES, Peer, State
from zmqagents.scheduler.shares import Account, FairQueue, Share, Shares


class Hosts(World):
    """A host with two users: ann, who takes what she can get, and bob."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._connections = itertools.count(1)
        self.ann, self.bob = self.peer("ann"), self.peer("bob")

    def peer(self, user: str) -> Peer:
        """One more connection of a user."""
        account = self.dispatcher.shares.account(user)
        return Peer(f"{user}{next(self._connections)}", user=user, account=account)

    def taken(self, sends: Iterator[Sent]) -> list[Sent]:
        """What is accepted of ``sends`` before the first refusal."""
        accepted: list[Sent] = []
        for sent in sends:
            if isinstance(sent.error, errors.HostBusy):
                return accepted
            accepted.append(sent)
        raise AssertionError("nothing was refused")

    def turns(self) -> int:
        """In how many turns of the router thread all is done that is due by now."""
        count = 0
        while self.dispatcher.timers.due <= self.now:
            self.see(self.dispatcher.on_tick(self.now))
            count += 1
        return count


def calls(world: World, peer: Peer, agent: str = "a") -> Iterator[Sent]:
    while True:
        yield world.send(agent, peer=peer)


# ---------------------------------------------------------------- the rule


def share(limit: int, *users: str) -> tuple[Share, list[Account]]:
    shares = Shares(BrokerConfig(max_calls=limit))
    return shares.calls, [shares.account(user) for user in users]


def test_one_user_alone_takes_all_but_an_eighth() -> None:
    calls, _users = share(64, "ann")
    assert not calls.refuses(held=55, taken=55)
    assert calls.refuses(held=56, taken=56)


def test_the_last_eighth_is_divided_evenly_among_the_users_that_are_there() -> None:
    calls, _users = share(64, "ann", "bob", "carl", "dora")
    assert [calls.refuses(held, taken=60) for held in (0, 1, 2, 3)] == [False, False, True, True]


def test_nothing_is_given_beyond_the_limit() -> None:
    calls, _users = share(64, "ann", "bob")
    assert calls.refuses(held=0, taken=64)


def test_a_limit_below_eight_keeps_nothing_back() -> None:
    calls, _users = share(7, "ann", "bob")
    assert not calls.refuses(held=6, taken=6)
    assert calls.refuses(held=0, taken=7)


def test_an_account_is_the_same_one_while_anything_counts_for_it() -> None:
    shares = Shares(BrokerConfig())
    account = shares.account("ann")
    assert shares.account("ann") is account
    account.calls += 1
    del account
    assert shares.account("ann").calls == 0  # nothing has kept it


# ---------------------------------------------------------------- turns of users


def test_users_have_their_turns_one_after_the_other_however_much_of_each_waits() -> None:
    queue: FairQueue[str] = FairQueue()
    ann, bob, carl = (Account(name) for name in ("ann", "bob", "carl"))
    for user, count in ((ann, 4), (bob, 1), (carl, 2)):
        for number in range(count):
            queue.add(user, f"{user.key}{number}")
    order = ["ann0", "bob0", "carl0", "ann1", "carl1", "ann2", "ann3"]
    assert list(queue) == order
    assert [queue.pop() for _ in order] == order
    assert (len(queue), list(queue.users)) == (0, [])


def test_what_leaves_a_queue_is_neither_counted_nor_given_out() -> None:
    queue: FairQueue[str] = FairQueue()
    ann, bob = Account("ann"), Account("bob")
    for thing in ("first", "second"):
        queue.add(ann, thing)
    queue.remove(ann, "first")
    queue.remove(ann, "first")
    queue.remove(bob, "second")
    assert (len(queue), queue.held(ann), queue.held(bob)) == (1, 1, 0)
    assert queue.pop(ann) == "second"
    with pytest.raises(KeyError):
        queue.pop()


def test_a_user_whose_calls_never_end_leaves_worker_slots_for_another() -> None:
    world = Hosts(capacity=8)
    world.agents("inner", *(f"a{number}" for number in range(20)))
    sent = [world.send(f"a{number}", peer=world.ann) for number in range(12)]
    assert [call.state for call in sent] == [State.RUNNING] * 8 + [State.READY] * 4
    theirs = world.send("a12", peer=world.bob)
    assert theirs.started
    nested = world.nested(theirs, "inner")
    assert nested.started
    assert world.send("a13", peer=world.bob).state is State.READY
    world.done(nested)
    assert world.resumes(theirs) == [None]
    world.done(theirs)
    assert world.bob.account.slots == 1  # of the call that was ready
    assert world.ann.account.slots == 8
    world.finish()
    world.assert_idle()


def test_a_lone_user_has_all_worker_slots_and_none_beside_them() -> None:
    world = Hosts(capacity=1)
    world.agents("a", "b")
    assert world.send("a", peer=world.ann).started
    assert world.send("b", peer=world.ann).state is State.READY


def test_calls_of_one_user_do_not_queue_behind_all_those_of_another() -> None:
    world = Hosts(capacity=2)
    world.agent("a")
    running = world.send("a", peer=world.ann)
    flood = [world.send("a", peer=world.ann) for _ in range(100)]
    theirs = [world.send("a", peer=world.bob) for _ in range(2)]
    order = []
    while running.state is not State.DONE:
        world.done(running)
        running = next((call for call in flood + theirs if call.state is State.RUNNING), running)
        order.append(running)
    assert [order.index(call) for call in theirs] == [1, 3]


# ---------------------------------------------------------------- calls, mailboxes, bytes


def test_many_connections_of_one_key_share_what_the_key_may_take() -> None:
    world = Hosts(max_calls=64, max_calls_per_client=20)
    world.agents("a", "b")
    accepted: list[Sent] = []
    for _ in range(4):
        accepted += world.taken(calls(world, world.peer("ann")))
    assert len(accepted) == 56
    assert world.send("b", peer=world.bob).started


def test_a_refusal_names_the_share_and_is_tried_again_by_clients() -> None:
    world = Hosts(max_calls=16)
    world.agents("a", "b")
    world.taken(calls(world, world.ann))
    refused = world.send("b", peer=world.ann).error
    assert isinstance(refused, errors.HostBusy)
    assert str(refused) == (
        "14 calls of the host are open, 14 of them of this user: its share is used up, limit 16 (max_calls)"
    )
    assert world.send("b", peer=world.ann).is_busy


def test_one_user_cannot_fill_the_mailbox_of_an_agent() -> None:
    world = Hosts(max_mailbox=16)
    world.agent("a")
    assert len(world.taken(calls(world, world.ann))) == 1 + 14
    assert world.send("a", peer=world.bob).error is None
    world.finish()
    world.assert_idle()
    assert world.send("a", peer=world.ann).started


def test_a_place_in_the_mailbox_is_free_again_when_its_call_is_cancelled() -> None:
    world = Hosts(max_mailbox=16)
    world.agent("a")
    accepted = world.taken(calls(world, world.ann))
    world.cancel(accepted[-1])
    assert len(world.taken(calls(world, world.ann))) == 1


def test_the_arguments_of_one_user_leave_room_for_those_of_another() -> None:
    world = Hosts(max_queued_bytes=160)
    world.agent("a")
    sends = (world.send("a", peer=world.ann, body=bytes(20)) for _ in range(100))
    assert len(world.taken(sends)) == 1 + 7
    assert world.send("a", peer=world.bob, body=bytes(20)).error is None


@pytest.mark.parametrize("name", ["chain", "deps"])
def test_the_task_ids_that_a_call_brings_count_among_its_arguments(name: str) -> None:
    """Of the calls that it was made in, to its end, and of the results that it needs, until they are there."""
    world = Hosts(max_queued_bytes=16 * 200 * ID_BYTES, capacity=1000)
    world.agent("a", max_concurrency=1000)
    world.running("a", peer=world.ann)
    ids = [f"elsewhere-{number}" for number in range(100 if name == "chain" else 200)]
    brings: dict[str, Any] = {name: ids}
    accepted = world.taken(world.send("a", peer=world.ann, **brings) for _ in range(1000))
    assert len(accepted) == 13, "seven eighths, less the arguments"
    assert {sent.started for sent in accepted} == {name == "chain"}
    assert world.send("a", peer=world.bob, **brings).error is None
    for sent in accepted:
        world.cancel(sent)
    world.finish()
    assert world.ann.account.queued_bytes == 0


def test_a_call_through_a_few_hosts_starts_at_once_although_the_queue_is_full() -> None:
    """What is queued may wait for it."""
    world = Hosts(max_queued_bytes=160)
    world.agents("a", "b", "c")
    world.taken(world.send("a", peer=world.ann, body=bytes(20)) for _ in range(100))
    hosts = [f"elsewhere-{number}" for number in range(17)]
    assert world.send("b", peer=world.ann, chain=hosts[:16]).started
    assert isinstance(world.send("c", peer=world.ann, chain=hosts).error, errors.HostBusy)


# ---------------------------------------------------------------- nested calls


def test_a_nested_call_counts_for_the_key_that_began_the_chain() -> None:
    world = Hosts(max_calls=16)
    world.agents("a", "b", "c")
    outer = world.running("a", peer=world.ann)
    world.nested(outer, "b")
    assert (world.ann.account.calls, world.inside.account.calls) == (2, 0)


def test_waits_of_one_user_leave_stand_ins_for_the_nested_calls_of_another() -> None:
    world = Hosts(capacity=64, max_threads=64 + 16)
    names = [f"a{number}" for number in range(40)]
    world.agents("inner", *names)
    outer = [world.running(name, peer=world.ann) for name in names[:20]]
    nested = world.taken(world.nested(call, "inner") for call in outer)
    assert len(nested) == 14
    other = world.nested(world.running("a30", peer=world.bob), "inner")
    assert other.error is None
    assert world.bob.account.waits == 1


def test_a_user_gets_back_what_its_calls_have_given_back() -> None:
    world = Hosts(capacity=8, max_threads=8 + 16, max_calls=64)
    world.agents("a", "b")
    outer = world.running("a", peer=world.ann)
    world.nested(outer, "b")
    world.finish()
    world.assert_idle()
    assert repr(world.ann.account) == "<Account ann [0 calls, 0 waits, 0 streams, 0 agents]>"


# ---------------------------------------------------------------- agents


def test_one_user_cannot_make_all_the_agents() -> None:
    world = Hosts(max_agents=16)
    made = world.taken(world.create(None, peer=world.ann) for _ in range(100))
    assert len(made) == 14
    refused = world.create(None, peer=world.ann)
    assert isinstance(refused.error, errors.HostBusy)
    assert "14 agents are on this host" in str(refused.error)
    assert "(max_agents)" in str(refused.error)
    assert not refused.is_busy  # no time makes room, so no client tries it again
    assert world.create(None, peer=world.bob).error is None


def test_an_agent_that_is_deleted_or_could_not_be_made_counts_no_more() -> None:
    world = Hosts(max_agents=16)
    world.agent("a", peer=world.ann)
    failed = world.create("b", peer=world.ann)
    assert world.ann.account.agents == 2
    world.remove("a")
    world.cancel(failed)
    world.finish()
    assert world.ann.account.agents == 0


def test_a_made_up_id_that_is_taken_is_made_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    ids = iter(["plain-1", "plain-1", "plain-2"])
    monkeypatch.setattr("zmqagents.scheduler.admission.new_agent_id", lambda _: next(ids))
    assert world.create(None).error is None
    assert world.create(None).error is None
    assert set(world.dispatcher.agents) == {"plain-1", "plain-2"}


def test_made_up_ids_have_64_bits() -> None:
    world = World()
    world.create(None)
    (agent_id,) = world.dispatcher.agents
    assert len(agent_id.rpartition("-")[2]) == 16


# ---------------------------------------------------------------- many ends at once


def test_the_calls_of_a_client_that_is_gone_are_ended_in_several_turns() -> None:
    world = Hosts()
    world.agent("a")
    running, *queued = [world.send("a", peer=world.ann) for _ in range(1000)]
    theirs = world.send("a", peer=world.bob)
    world.detach(world.ann)
    assert sum(call.state is State.DONE for call in queued) < 100
    assert 10 < world.turns() < 100
    assert all(call.state is State.DONE for call in queued)
    world.done(running)
    assert theirs.started
    world.finish()
    world.assert_idle()


def test_the_calls_that_queue_for_a_deleted_agent_are_ended_in_several_turns() -> None:
    world = Hosts()
    world.agent("a")
    running, *queued = [world.send("a", peer=world.ann) for _ in range(1000)]
    world.remove("a")
    assert sum(call.answered for call in queued) < 100
    world.done(running)
    assert 10 < world.turns() < 100
    assert all(isinstance(call.error, errors.AgentDeleted) for call in queued)
    world.assert_idle()
