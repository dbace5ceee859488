"""Calls that begin and end in one go: what the dispatcher leaves to its general way, and what becomes of the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

import pytest

from world import Plain, World, ok
from zmqagents import errors
from zmqagents.agents.spec import spec_of
from zmqagents.broker.leader import Leader, Relieved
from zmqagents.scheduler.dispatcher import AgentRecord, Answer, Effect, Peer, State, Ticket
from zmqagents.wire.messages import MAX_FRAMES, Call, Flag, Reply, call_frames, parse_client, parse_short_call


@pytest.fixture
def world() -> Iterator[World]:
    """One with an idle agent ``a`` whose methods are quick."""
    paces = [method.pace for method in spec_of(Plain).methods.values()]
    for pace in paces:
        pace.quick = True
    world = World(capacity=2, max_calls_per_client=3)
    world.agent("a")
    yield world
    for pace in paces:
        pace.quick = False


def short(world: World, call_id: int = 100, *, flags: int = 0, method: str = "m", agent: str = "a") -> Ticket | None:
    call = Call(call_id, flags, 5000, agent, method, (), {}, (b"body",))
    return world.dispatcher.start_short(world.client, call, world.now)


def test_a_short_call_leaves_nothing_but_its_count(world: World) -> None:
    ticket = short(world)
    assert ticket is not None
    world.assert_idle()
    before = world.dispatcher.agents["a"].calls
    world.dispatcher.end_short(ticket, ok(7), world.now)
    assert (ticket.state, ticket.settled) == (State.DONE, True)
    assert world.dispatcher.agents["a"].calls == before + 1
    world.assert_idle()


def test_a_short_call_that_a_question_waits_for_is_a_call_like_any_other(world: World) -> None:
    world.expected.add("client-100")
    asked = world.fetch_early("client-100", peer=Peer("other"))
    assert short(world) is None
    called = world.running("a", call_id=100)
    world.done(called)
    assert asked.replies == called.replies
    assert short(world, 101) is not None


def test_a_short_call_that_is_entered_is_a_call_like_any_other(world: World) -> None:
    ticket = short(world)
    assert ticket is not None
    world.dispatcher.enter(ticket)
    queued = world.send("a")
    assert not queued.started, "it has the turn"
    assert world.dispatcher.running == 1
    assert short(world, 101) is None
    effects = world.dispatcher.on_done(ticket, ok(7), world.now)
    assert Answer(world.client, 100, ok(7)) in effects
    world.see(effects)
    assert queued.started
    world.done(queued)
    world.assert_idle()


def test_a_short_call_that_is_entered_has_its_deadline(world: World) -> None:
    ticket = short(world)
    assert ticket is not None
    world.dispatcher.enter(ticket)
    world.sleep(6)
    assert isinstance(ticket.ended, errors.CallTimeout)
    world.see(world.dispatcher.on_done(ticket, ok(), world.now))
    world.assert_idle()


def _its_agent_is_busy(world: World) -> None:
    world.running("a")


def _all_slots_are_taken(world: World) -> None:
    world.agents("b", "c")
    world.running("b")
    world.running("c")


def _the_client_has_its_share(world: World) -> None:
    world.agent("b")
    for _ in range(3):
        world.send("b")


def _it_was_cancelled_before_it_came(world: World) -> None:
    world.see(world.dispatcher.on_cancel(world.client, 100, "", world.now))


def _the_host_stops(world: World) -> None:
    world.agent("b")
    world.running("b")
    world.drain()


def _the_agent_is_gone(world: World) -> None:
    world.remove("a")


def _it_is_open(world: World) -> None:
    world.agent("b")
    world.send("b", call_id=100)


def _it_is_not_quick(world: World) -> None:
    spec_of(Plain).methods["m"].pace.quick = False


@pytest.mark.parametrize(
    "state",
    [
        _its_agent_is_busy, _all_slots_are_taken, _the_client_has_its_share, _it_was_cancelled_before_it_came,
        _the_host_stops, _the_agent_is_gone, _it_is_open, _it_is_not_quick,
    ],
)  # fmt: skip
def test_what_needs_more_than_a_turn_that_is_free_takes_the_general_way(
    world: World, state: Callable[[World], None]
) -> None:
    assert short(world) is not None
    state(world)
    assert short(world) is None


class Far:
    """Where an agent lives that is not in threads of the host: as far as the dispatcher knows."""

    pid = 7

    def start(self, ticket: Ticket) -> None: ...

    def interrupt(self, ticket: Ticket, *, alone: bool) -> None: ...

    def retire(self, records: Iterable[AgentRecord]) -> None: ...

    def returned(self, ticket: Ticket, reply: Reply) -> list[Effect]:
        return []

    def saw(self, call_id: int) -> None: ...


def far_world() -> World:
    """One with an idle agent ``a`` that lives elsewhere."""
    world = World(capacity=2, max_calls_per_client=3)
    world.agent("a")
    world.dispatcher.agents["a"].live_at(Far())
    return world


def passed_by(
    world: World, call_id: int = 100, *, flags: int = 0, method: str = "m", body: bytes = b"body"
) -> Ticket | None:
    call = Call(call_id, flags, 5000, "a", method, (), {}, (body,))
    record = world.dispatcher.agents.get("a")
    if record is None or not world.dispatcher.may_pass_by(call):
        return None
    return world.dispatcher.start_elsewhere(world.client, call, record, world.now)


@pytest.mark.parametrize("method", ["m", "progress", "co"])
@pytest.mark.parametrize("flags", [0, Flag.DETACHED])
def test_a_call_that_is_passed_by_is_booked_as_by_the_general_way_and_ends_like_it(method: str, flags: int) -> None:
    short_way, general = far_world(), far_world()
    passed = passed_by(short_way, method=method, flags=flags)
    assert passed is not None
    general.see(
        general.dispatcher.on_call(general.client, Call(100, flags, 5000, "a", method, (), {}, (b"body",)), general.now)
    )
    (started,) = [ticket for ticket in general.started if ticket.call_id == 100]
    own = {"peer", "account", "agent", "method", "pace"}  # each world has its own
    for name in set(Ticket.__slots__) - own:
        assert getattr(passed, name) == getattr(started, name), name
    for world, ticket in ((short_way, passed), (general, started)):
        world.see(world.dispatcher.on_done(ticket, ok(7), world.now))
        assert world.answers[world.client, 100] == [ok(7)]
        world.assert_idle()
    totals = [world.dispatcher.totals for world in (short_way, general)]
    assert totals[0] == totals[1]


@pytest.mark.parametrize(
    "state",
    [
        _its_agent_is_busy, _the_client_has_its_share, _it_was_cancelled_before_it_came, _the_host_stops,
        _the_agent_is_gone, _it_is_open,
    ],
)  # fmt: skip
def test_what_queues_or_is_refused_is_not_passed_by(state: Callable[[World], None]) -> None:
    world = far_world()
    state(world)
    assert passed_by(world) is None
    assert passed_by(far_world(), method="none") is None
    assert passed_by(far_world(), flags=Flag.STREAM) is None
    assert passed_by(far_world(), body=bytes(1_000_000)) is None


def test_a_call_that_is_passed_by_has_its_deadline() -> None:
    world = far_world()
    ticket = passed_by(world)
    assert ticket is not None
    world.sleep(6)
    assert isinstance(ticket.ended, errors.CallTimeout)
    world.see(world.dispatcher.on_done(ticket, ok(), world.now))
    world.assert_idle()


@pytest.mark.parametrize("flag", [Flag.ATTRIBUTE, Flag.STREAM, Flag.RESENT])
def test_what_is_more_than_a_call_takes_the_general_way(world: World, flag: int) -> None:
    assert short(world, flags=flag) is None
    assert short(world, flags=Flag.DETACHED) is not None
    assert short(world, method="progress") is None, "which runs beside the turn"
    assert short(world, method="none") is None
    assert short(world, agent="") is None


def test_a_message_whose_payload_is_in_its_first_frame_is_read_as_by_the_general_way_or_not_at_all() -> None:
    (frame,) = call_frames(9, 77, "agent", "method", (b"payload",), flags=1, timeout_s=3.0, needed=4)
    assert isinstance(frame, bytes)
    for parts in ([frame], [frame, b"buffer", b"buffer"]):
        read = parse_client(parts)
        assert parse_short_call(parts) == (77, read, True)
    assert parse_short_call([frame] * MAX_FRAMES) is None
    assert parse_short_call([memoryview(bytearray(frame))]) is None, "a long frame, which has no hash"
    (other,) = call_frames(9, 77, "agent", "method", (b"payload",), options={"id": "x"})
    assert isinstance(other, bytes)
    assert parse_short_call([other]) == (77, parse_client([other]), False)
    said_more_fully: list[dict[str, object]] = [{"chain": ["t"]}, {"far": {}}, {"id": "x", "chain": 1}]
    for options in said_more_fully:
        (rest,) = call_frames(9, 77, "agent", "method", (b"payload",), options=options)
        assert parse_short_call([rest]) is None
    end = len(frame) - len(b"payload")
    assert all(parse_short_call([frame[:length]]) is None for length in range(end)), "cut short in the list"
    assert all(parse_short_call([frame[:i] + b"?" + frame[i + 1 :]]) is None for i in range(4)), "another header"


def test_a_former_leader_cannot_take_the_token_of_its_successor() -> None:
    leader = Leader(lambda: None)
    leader.thread = threading.get_ident()
    leader.begin()
    assert leader.take()  # as the standby does
    ended: list[bool] = []
    begun, back = threading.Event(), threading.Event()

    def succeed() -> None:
        leader.thread = threading.get_ident()
        leader.begin()
        begun.set()
        back.wait(5)
        ended.append(leader.end())

    successor = threading.Thread(target=succeed)
    successor.start()
    assert begun.wait(5)
    assert not leader.end()
    back.set()
    successor.join(5)
    assert ended == [True]


def test_a_relieved_thread_does_not_lead_although_its_successor_has_not_said_so_yet() -> None:
    leader = Leader(lambda: None)
    leader.thread = threading.get_ident()
    assert leader.leads()
    leader.begin()
    assert leader.take()  # the standby's first step
    assert not leader.leads()
    assert not leader.end()


def test_a_leader_whose_code_has_come_back_leads_again() -> None:
    leader = Leader(lambda: None)
    leader.thread = threading.get_ident()
    for _ in range(2):
        leader.begin()
        assert leader.end()
        assert leader.leads()


class OneAheadLock:
    """A lock that lets the thread "former" in, and out again, before it lets the thread "asking" in."""

    def __init__(self) -> None:
        self.go_ahead, self.been_there = threading.Event(), threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if threading.current_thread().name == "asking":
            self.go_ahead.set()
            assert self.been_there.wait(5)
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if threading.current_thread().name == "former":
            self.been_there.set()


def test_there_is_one_standby_and_never_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """A former leader becomes the standby just after the leader has seen that there is none."""
    lock = OneAheadLock()

    def loop() -> None:
        assert lock.go_ahead.wait(5)
        raise Relieved

    with monkeypatch.context() as patch:
        patch.setattr(threading, "Lock", lambda: lock)
        leader = Leader(loop)
    seen: list[bool] = []
    former = threading.Thread(target=leader.run, name="former")
    asking = threading.Thread(target=lambda: seen.append(leader.can_watch()), name="asking")
    for thread in (former, asking):
        thread.start()
    asking.join(10)
    assert seen == [True]
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("zmqagents-standby")]
    assert leader.close(5)
    former.join(5)
    assert not former.is_alive()
