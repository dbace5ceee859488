"""A member on real threads and a real Redis, which goes away, comes back, forgets, is slow and is full."""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from hosts import eventually
from redis_server import NO_SERVER, RedisServer, running_redis
from relay import Relay
from scale import linux_only, pick
from zmqagents.cluster.activations import (
    Activated,
    Cleared,
    Dropped,
    DroppedFor,
    Elsewhere,
    Gone,
    Readiness,
    Renew,
    Taken,
)
from zmqagents.cluster.lease import Admission, LeaseState, boot_time
from zmqagents.cluster.member import Died, HostEffect, Joined, Member, Unsaved, Whereabouts
from zmqagents.cluster.placement import MemberInfo
from zmqagents.cluster.steward import Answered, Beaten, Declared, Event, Identity, ServerChanged, Steward, Told, Trouble
from zmqagents.errors import ConfigError, StoreUnavailable
from zmqagents.store.cluster import ClusterRecords, Locate, Save, Verdict

pytestmark = [pytest.mark.program, linux_only("CLOCK_BOOTTIME")]

LEASE_S = 2.0
NAME = "Account/ann"


class Seat:
    """A member whose router thread is the test's."""

    def __init__(self, url: str, namespace: str, server_id: str = "a", lease_s: float = LEASE_S) -> None:
        self.inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.events: list[Event] = []
        self.effects: list[HostEffect] = []
        self.states: dict[str, bytes] = {}
        identity = Identity(server_id, secrets.token_hex(6), "key", lease_s)
        self.steward = Steward(lambda: ClusterRecords(url, namespace), identity, self.deliver)
        self.member = Member(self.steward, identity, MemberInfo("", f"{server_id}:1", classes={"Account": 1}))

    def deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            self.inbox.put(event)

    def until(self, happened: Callable[[], object], within_s: float = 30.0) -> None:
        """Do what events ask for, until something has happened."""
        end = time.monotonic() + within_s
        while not happened():
            assert time.monotonic() < end, (self.events[-5:], self.effects[-5:])
            with contextlib.suppress(queue.Empty):
                event = self.inbox.get(timeout=0.02)
                self.events.append(event)
                self.do(self.member.on_event(event))

    def do(self, effects: Sequence[HostEffect]) -> None:
        for effect in effects:
            self.effects.append(effect)
            if isinstance(effect, Activated):
                self.states[effect.name] = effect.mine.state or b""
                self.do(self.member.carry(self.member.activations.started(effect.name)))
            elif isinstance(effect, Renew):
                self.do(self.member.carry(self.member.activations.save(effect.name, self.states[effect.name], 1)))
            elif isinstance(effect, Died):
                self.do(self.member.leave_dead())

    def got(self, kind: type[Any]) -> list[Any]:
        return [each for each in [*self.effects, *self.events] if isinstance(each, kind)]

    def join(self) -> None:
        self.member.start()
        self.until(lambda: self.got(Joined))

    def ask_for(self, name: str = NAME) -> None:
        self.do(self.member.carry(self.member.activations.activate(name, "Account", 1)))

    def activate(self, name: str = NAME) -> None:
        self.ask_for(name)
        self.until(lambda: self.readiness(name) is Readiness.READY)

    def readiness(self, name: str = NAME) -> Readiness:
        return self.member.activations.readiness(name)

    def save(self, state: bytes, call: Any = None, name: str = NAME) -> None:
        self.states[name] = state
        self.do(self.member.carry(self.member.activations.save(name, state, 1, call)))

    def taken(self) -> list[Any]:
        return [call for effect in self.got(Taken) for call in effect.calls]

    def admits(self) -> Admission:
        return self.member.lease.admits(boot_time())


@contextlib.contextmanager
def seated(url: str, namespace: str, server_id: str = "a", **more: Any) -> Iterator[Seat]:
    seat = Seat(url, namespace, server_id, **more)
    try:
        seat.join()
        yield seat
    finally:
        seat.member.close()


@pytest.fixture
def server(shared_redis: RedisServer | None) -> RedisServer:
    if shared_redis is None:
        pytest.skip(NO_SERVER)
    return shared_redis


def test_a_member_joins_claims_saves_and_gives_back(server: RedisServer) -> None:
    with seated(server.url, "plain") as seat, contextlib.closing(ClusterRecords(server.url, "plain")) as records:
        assert seat.admits() is Admission.START
        seat.activate()
        for number in range(200):
            seat.save(b"%d" % number, number)
        seat.until(lambda: len(seat.taken()) == 200)
        assert seat.taken() == list(range(200))
        assert seat.member.placement.find(seat.member.incarnation) is not None
        seat.do(seat.member.carry(seat.member.activations.release(NAME)))
        seat.until(lambda: seat.got(Gone))
        assert records.names().rows[0][:2] == (NAME, "")
    with contextlib.closing(ClusterRecords(server.url, "plain")) as records:
        assert [entry.kind for entry in records.log()] == ["joined", "died"], "it has told its own end"


def test_two_members_have_an_agent_in_turn(server: RedisServer) -> None:
    with seated(server.url, "turns", "a") as one, seated(server.url, "turns", "b") as other:
        one.activate()
        one.save(b"of a", "call")
        one.until(one.taken)
        other.ask_for()
        other.until(lambda: other.got(Elsewhere))
        assert other.got(Elsewhere) == [Elsewhere(NAME, one.member.incarnation, one.member.activations.epoch(NAME))]
        other.until(lambda: other.member.placement.find(one.member.incarnation) is not None)
        one.do(one.member.carry(one.member.activations.release(NAME, other.member.incarnation, b"last of a", 1)))
        one.until(lambda: one.got(Gone))
        other.member.locate(NAME)
        other.until(lambda: other.got(Whereabouts))
        assert other.got(Whereabouts)[0][:3] == (NAME, other.member.incarnation, "b:1")
        other.activate()
        assert other.states[NAME] == b"last of a"
        other.member.inquire(lambda records: records.names(), "page")
        other.until(lambda: other.got(Told))
        assert other.got(Told)[0].token == "page"
        assert other.got(Told)[0].answer.rows[0][:2] == (NAME, other.member.incarnation)
        figures = other.member.figures()
        assert (figures["agents"], figures["members"], figures["state"]) == (1, 2, "held")


def test_a_host_that_may_not_join_says_why(server: RedisServer) -> None:
    with seated(server.url, "keys"):
        stranger = Seat(server.url, "keys", "b")
        identity = Identity("b", "start", "another key", LEASE_S)
        steward = Steward(lambda: ClusterRecords(server.url, "keys"), identity, stranger.deliver)
        with pytest.raises(ConfigError, match="another key"):
            steward.join()
        steward.close()
        stranger.steward.close()


def test_without_a_redis_a_host_does_not_join() -> None:
    seat = Seat("unix:///nowhere/redis.sock", "none")
    with pytest.raises(StoreUnavailable):
        seat.member.start()
    seat.steward.close()


# ---------------------------------------------------------------- death


def test_a_member_that_is_declared_dead_is_another_one_soon(server: RedisServer) -> None:
    """Somebody buries it by mistake; what it has is saved and released under its old name, and it joins anew."""
    with seated(server.url, "buried") as seat, contextlib.closing(ClusterRecords(server.url, "buried")) as records:
        seat.activate()
        seat.save(b"one", "call")
        former = seat.member.incarnation
        [row] = records.beat("x/9999999999999999/1", 1, lease_s=9, draining=False, start="x", record=b"").members[:1]
        assert row.incarnation == former
        records.obituary(row.start)
        seat.until(lambda: seat.got(Died))
        seat.until(lambda: seat.got(Gone))
        assert seat.taken() == ["call"], "nobody had claimed the agent yet"
        assert seat.admits() is Admission.ELSEWHERE
        # Its start is dead, for that is what an obituary says: so is each incarnation of it.
        assert not records.beat(former, 99, lease_s=9, draining=False, start="y", record=b"").alive


def test_the_death_of_a_member_is_known_to_the_others_with_their_next_beat(server: RedisServer) -> None:
    with seated(server.url, "news", "b") as other:
        with seated(server.url, "news", "a") as seat:
            seat.activate()
            other.until(lambda: other.member.placement.find(seat.member.incarnation) is not None)
            other.member.homes.note(NAME, "a:1", 1)
            gone = seat.member.incarnation
        other.until(lambda: other.member.observers.is_dead(gone))
        assert other.member.homes.find(NAME) is None
        other.ask_for()
        other.until(lambda: other.readiness() is Readiness.READY, 1 + pick(4.0, 8.0))
        assert other.got(Elsewhere) == []


def test_the_agents_of_a_frozen_member_go_to_another_within_a_lease_and_a_second(server: RedisServer) -> None:
    with seated(server.url, "frozen", "b") as other, Relay(server.port) as relay:
        seat = Seat(f"redis://127.0.0.1:{relay.port}", "frozen", "a")
        seat.join()
        seat.activate()
        other.until(lambda: other.member.placement.find(seat.member.incarnation) is not None)
        relay.hold()
        start = time.monotonic()
        while other.readiness() is not Readiness.READY:
            other.ask_for()
            other.until(lambda: other.readiness() in (Readiness.READY, Readiness.ABSENT))
            assert time.monotonic() - start < 10 * LEASE_S
        took_s = time.monotonic() - start
        assert seat.member.lease.state(boot_time()) is LeaseState.LAPSED
        relay.let_go()
        seat.save(b"too late", "call")
        seat.until(lambda: seat.got(Dropped))
        assert seat.got(Dropped)[0].why is DroppedFor.FENCED
        assert seat.got(Dropped)[0].lost == ("call",)
        first = seat.member.incarnation
        seat.until(lambda: len(seat.got(Joined)) == 2)
        assert seat.member.incarnation != first
        seat.member.close()
    assert took_s > LEASE_S * 0.7, "its last beat was up to a quarter of a lease before"
    assert took_s < LEASE_S + 1 + pick(4.0, 8.0), "the machine is shared"


# ---------------------------------------------------------------- trouble


def test_a_redis_that_was_away_comes_back_and_every_save_gets_its_one_answer() -> None:
    with running_redis(appendonly="yes", appendfsync="always") as own, seated(own.url, "away") as seat:
        seat.activate()
        seat.save(b"before", "before")
        seat.until(seat.taken)
        own.kill()
        for number in range(100):
            seat.save(b"%d" % number, number)
        seat.until(lambda: seat.got(Trouble))
        seat.until(lambda: seat.got(Unsaved))
        assert {call for effect in seat.got(Unsaved) for _, call in effect.calls} <= set(range(100))
        seat.until(lambda: seat.admits() is Admission.WAIT)
        seat.member.inquire(lambda records: records.count(), "count")
        seat.until(lambda: seat.got(Told))
        assert isinstance(seat.got(Told)[0].answer, StoreUnavailable)
        own.start()
        seat.until(lambda: seat.got(Cleared))
        seat.until(lambda: len([each for each in seat.got(Answered) if isinstance(each.request, Save)]) >= 101)
        answers = [each for each in seat.got(Answered) if isinstance(each.request, Save)]
        assert [each.request.revision for each in answers] == list(range(101))
        verdicts = {each.answer.verdict for each in answers}
        assert verdicts <= {Verdict.SAVED, Verdict.TAKEN}, "taken: its first answer was too late on a busy machine"
        seat.until(lambda: seat.admits() is Admission.START and seat.readiness() is Readiness.READY)
        assert not seat.got(Died)


def test_a_redis_that_has_lost_its_last_writes_gets_them_again() -> None:
    with running_redis() as own, seated(own.url, "lost") as seat:
        seat.activate()
        seat.save(b"one", "one")
        seat.until(seat.taken)
        with own.client as client:
            key = ClusterRecords(own.url, "lost").key_of(NAME)
            kept = {key: client.dump(key) for key in client.keys("za:*")}
            seat.save(b"two", "two")
            seat.until(lambda: "two" in seat.taken())
        own.kill()
        own.start()  # it has saved nothing
        with own.client as client:
            for each, value in kept.items():
                client.restore(each, 0, value, replace=True)
        seat.until(lambda: seat.got(Renew))
        seat.until(lambda: seat.member.activations.counters.saves == 3)
        with own.client as client:
            assert client.hmget(key, ["rev", "st"]) == [b"3", b"two"]


def test_a_member_follows_a_failover_of_sentinel_and_looks_before_it_serves() -> None:
    with running_redis() as first, running_redis() as second:
        with second.client as client:
            client.replicaof("127.0.0.1", first.port)
            assert eventually(lambda: client.info("replication")["master_link_status"] == "up", 20)
        with running_redis(watched=first) as sentinel:
            with sentinel.client as client:
                for name, value in (("down-after-milliseconds", 500), ("failover-timeout", 3000)):
                    client.execute_command("SENTINEL", "SET", "service", name, value)
                assert eventually(lambda: len(client.execute_command("SENTINEL", "REPLICAS", "service")) == 1, 30)
            url = f"redis+sentinel://127.0.0.1:{sentinel.port}/service/0"
            with seated(url, "failover", lease_s=20) as seat:
                seat.activate()
                seat.save(b"one", "one")
                seat.until(seat.taken)
                with second.client as client:
                    key = ClusterRecords(second.url, "failover").key_of(NAME)
                    assert eventually(lambda: client.hget(key, "st") == b"one", 20)
                first.kill()
                seat.save(b"two", "two")
                seat.until(lambda: seat.got(ServerChanged), 60)
                assert seat.readiness() is Readiness.SUSPECT
                seat.until(lambda: seat.readiness() is Readiness.READY)
                seat.until(lambda: seat.member.activations.counters.saves == 2)
                with second.client as client:
                    assert client.hmget(key, ["rev", "st"]) == [b"2", b"two"]
                assert not seat.got(Died)
                assert not seat.got(Dropped)


@pytest.mark.parametrize("seed", range(pick(2, 20)))
def test_answers_that_are_lost_with_their_connection_change_nothing(server: RedisServer, seed: int) -> None:
    with Relay(server.port) as relay, seated(f"redis://127.0.0.1:{relay.port}", f"cut{seed}", lease_s=30) as seat:
        seat.activate()
        calls = pick(600, 6000)
        with relay.trouble(seed, 0.03, "cut", "reset", "cut within", "cut, the host does not notice"):
            for number in range(calls):
                seat.until(lambda: seat.readiness() is Readiness.READY)
                seat.save(b"%d" % number, number)
            seat.until(lambda: len(seat.taken()) + len(seat.got(Unsaved)) >= calls, 60)
        with server.client as client:
            key = ClusterRecords(server.url, f"cut{seed}").key_of(NAME)
            assert client.hmget(key, ["rev", "st"]) == [b"%d" % calls, b"%d" % (calls - 1)]
        verdicts = [each.answer.verdict for each in seat.got(Answered) if isinstance(each.request, Save)]
        assert set(verdicts) <= {Verdict.SAVED, Verdict.TAKEN}
        assert not seat.got(Dropped)


def test_beats_go_on_beside_saves_of_a_megabyte(server: RedisServer) -> None:
    with seated(server.url, "large", lease_s=1.0) as seat:
        names = [f"Account/{number}" for number in range(8)]
        for name in names:
            seat.activate(name)
        start, sent = time.monotonic(), 0
        while time.monotonic() - start < 3:
            for name in names:
                if seat.readiness(name) is Readiness.READY:
                    sent += 1
                    seat.save(bytes([sent % 251]) * 1_000_000, sent, name)
            seat.until(lambda: seat.inbox.empty())
        beats = seat.got(Beaten)
        gaps = [later.came_at - earlier.came_at for earlier, later in itertools.pairwise(beats)]
        assert max(gaps) < 0.8 + pick(1.0, 0.0), "the machine is shared"
        seat.until(lambda: len(seat.taken()) == sent)


def test_a_full_redis_keeps_saves_waiting_and_takes_them_when_it_has_room() -> None:
    with running_redis() as own, seated(own.url, "full") as seat, own.client as client:
        seat.activate()
        client.config_set("maxmemory", 1)
        seat.save(b"one", "one")
        seat.until(lambda: any(event.full for event in seat.got(Trouble)))
        seat.until(lambda: seat.got(Unsaved))
        assert seat.admits() is Admission.START, "beats get through"
        client.config_set("maxmemory", 0)
        seat.until(lambda: seat.got(Trouble)[-1].reason == "")
        seat.save(b"two", "two")
        seat.until(lambda: seat.taken() == ["two"])


def test_trouble_is_over_when_a_question_gets_through_although_there_is_nothing_to_save(server: RedisServer) -> None:
    """Else the next trouble would seem to have lasted since then, and all calls that wait would be lost at once."""
    with Relay(server.port) as relay, seated(f"redis://127.0.0.1:{relay.port}", "quiet", lease_s=30) as seat:
        relay.refuse()
        relay.cut()
        seat.steward.ask("b/1/1", None, watched=False)
        seat.until(lambda: seat.got(Trouble))
        relay.accept()
        seat.until(lambda: seat.got(Declared))
        seat.until(lambda: seat.got(Trouble)[-1].reason == "", 10)


def test_a_slow_redis_costs_time_and_nothing_else(server: RedisServer) -> None:
    with Relay(server.port) as relay:
        relay.delay_s = 0.1
        with seated(f"redis://127.0.0.1:{relay.port}", "slow", lease_s=5) as seat:
            seat.activate()
            for number in range(200):
                seat.until(lambda: seat.readiness() is Readiness.READY)
                seat.save(b"%d" % number, number)
            seat.until(lambda: len(seat.taken()) == 200)
            assert not seat.got(Unsaved)
            assert seat.steward.exchanges < 30, "many in one exchange"


# ---------------------------------------------------------------- the end


def test_what_is_left_is_sent_before_the_end(server: RedisServer) -> None:
    with seated(server.url, "end") as seat:
        seat.activate()
        for number in range(64):
            seat.save(b"%d" % number)
    with contextlib.closing(ClusterRecords(server.url, "end")) as records:
        [located] = records.exchange([Locate(NAME)])
        assert getattr(located, "revision", None) == 64


def test_the_end_comes_without_a_redis_too_and_names_what_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    with running_redis() as own, caplog.at_level(logging.WARNING):
        with seated(own.url, "gone") as seat:
            seat.activate()
            own.kill()
            seat.save(b"lost")
            start = time.monotonic()
        assert time.monotonic() - start < 8
    assert f"could not be sent: {NAME}" in caplog.text
