"""The state of agents, which a host hands to its keeper: real hosts in this process, one after the other.

The second host stands for the first one started again: it has the same keeper, and its agents are made from the same
arguments.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from actors import CALL_TIMEOUT_S, within
from memory_keeper import MemoryKeeper
from zmqagents import AgentBase, RpcClient, agent, codec, concurrent, current_call
from zmqagents.agents.state import MAX_STATE_BYTES, Snapshot
from zmqagents.config import BrokerConfig
from zmqagents.errors import ConfigError, MessageTooLarge, SerializationError, UnknownMethod
from zmqagents.server import serve


class Account(AgentBase):
    """Its state is saved after each call: the default for such a class."""

    state_version = 2

    def __init__(self, currency: str = "EUR") -> None:
        super().__init__()
        self.currency, self.cents, self.read = currency, 0, 0

    def save_state(self) -> Any:
        return {"currency": self.currency, "cents": self.cents}

    def load_state(self, state: Any, version: int) -> None:
        self.currency, self.cents, self.read = state["currency"], state["cents"], version

    def add(self, cents: int) -> int:
        self.cents += cents
        return self.cents

    def seen(self) -> Any:
        return [self.currency, self.cents, self.read]

    async def add_soon(self, cents: int) -> int:
        await asyncio.sleep(0)
        return self.add(cents)

    def add_each(self, *cents: int) -> Iterator[int]:
        for each in cents:
            yield self.add(each)

    async def add_each_soon(self, *cents: int) -> AsyncIterator[int]:
        for each in cents:
            yield self.add(each)

    def add_and_fail(self, cents: int) -> None:
        self.add(cents)
        raise KeyError("failed")

    def become(self, cents: Any) -> None:
        self.cents = cents

    def lock_up(self) -> None:
        self.cents = threading.Lock()  # type: ignore[assignment]

    def lock_up_and_fail(self) -> None:
        self.lock_up()
        raise KeyError("failed")

    @concurrent
    def peek(self) -> int:
        self.cents += 1_000  # which such a method should not do
        return self.cents


class Softly(Account, persist="call"):
    """The same with async hooks for its state, and for its life."""

    async def on_start(self) -> None:
        self.started_with = self.cents

    async def save_state(self) -> Any:
        await asyncio.sleep(0)
        return super().save_state()

    async def load_state(self, state: Any, version: int) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().load_state(state, version)

    def start(self) -> int:
        return self.started_with


class Idle(Account, persist="idle"):
    """Its state is saved when it ends, or when it says so."""

    def save_now(self, cents: int) -> None:
        self.add(cents)
        self.save()
        self.add(1)

    async def save_soon(self, cents: int) -> None:
        self.add(cents)
        call = current_call()
        assert call is not None
        await call.save()
        self.add(1)

    def save(self) -> None:
        call = current_call()
        assert call is not None
        call.save()


class Never(Idle, persist=None):
    """Has all that is needed, and does not want it."""


@dataclass
class Stroke:
    x: int
    y: int


class Board(AgentBase):
    """Keeps objects of a class that only its annotations name, and gets the state alone."""

    def __init__(self) -> None:
        super().__init__()
        self.strokes: list[Stroke] = []

    def save_state(self) -> list[Stroke]:
        return self.strokes

    def load_state(self, state: list[Stroke]) -> None:
        self.strokes = state

    def draw(self, x: int, y: int) -> None:
        self.strokes.append(Stroke(x, y))

    def last(self) -> list[int]:
        return [self.strokes[-1].x, self.strokes[-1].y]


@agent(persist="call")
class Marked:
    """No `AgentBase`: the hooks count because ``persist`` is given."""

    def __init__(self) -> None:
        self.count = 0

    def save_state(self) -> int:
        return self.count

    def load_state(self, state: int) -> None:
        self.count = state

    def bump(self) -> int:
        self.count += 1
        return self.count


@agent
class Unmarked(Marked):
    """The same without: here they are methods like all others."""


CLASSES: list[type[Any]] = [Account, Softly, Idle, Never, Board, Marked, Unmarked]
KEEPING: list[type[Any]] = [Account, Softly]


@contextmanager
def host(keeper: MemoryKeeper | None) -> Iterator[RpcClient]:
    """A client of a host that hands states to ``keeper``. Its end is in order."""
    broker = serve.build(BrokerConfig(local_mode=True, capacity=2, grace_s=2.0), CLASSES, keeper=keeper)
    bound = broker.bind()
    router = threading.Thread(target=broker.run)
    router.start()
    try:
        with RpcClient("localhost", bound.port, timeout=CALL_TIMEOUT_S) as client:
            yield client
    finally:
        broker.request_stop()
        router.join()


def kept(keeper: MemoryKeeper, agent_id: str = "ann") -> Any:
    snapshot = keeper.last(agent_id)
    assert snapshot is not None
    return codec.decode(snapshot.frames[0])


@pytest.mark.parametrize("cls", KEEPING)
def test_an_agent_that_is_made_again_has_the_state_after_its_last_call(cls: type[Any]) -> None:
    keeper = MemoryKeeper()
    with host(keeper) as client:
        ann = client.create_agent(cls, "CHF", agent_id="ann")
        assert kept(keeper) == {"currency": "CHF", "cents": 0}
        ann.add(5)
        assert kept(keeper)["cents"] == 5, "it is kept before the call is answered"
        assert ann.add_soon(6).result() == 11
        assert kept(keeper)["cents"] == 11
        assert list(ann.add_each(1, 2)) == [12, 14]
        assert kept(keeper)["cents"] == 14
        assert list(ann.add_each_soon(1, 2)) == [15, 17]
        assert kept(keeper)["cents"] == 17
    with host(keeper) as client:
        ann = client.create_agent(cls, "CHF", agent_id="ann")
        assert ann.seen() == ["CHF", 17, 2]
        if cls is Softly:
            assert ann.start() == 17, "the state is there when on_start is called"
        assert client.create_agent(cls, agent_id="bob").seen() == ["EUR", 0, 0]


@pytest.mark.parametrize("cls", KEEPING)
def test_a_call_that_fails_leaves_what_it_has_changed(cls: type[Any]) -> None:
    keeper = MemoryKeeper()
    with host(keeper) as client:
        ann = client.create_agent(cls, agent_id="ann")
        with pytest.raises(KeyError, match="failed"):
            ann.add_and_fail(3)
        assert kept(keeper)["cents"] == 3


@pytest.mark.parametrize("cls", KEEPING)
def test_a_state_that_cannot_be_kept_is_the_error_of_the_call(cls: type[Any], caplog: pytest.LogCaptureFixture) -> None:
    keeper = MemoryKeeper()
    with host(keeper) as client:
        ann = client.create_agent(cls, agent_id="ann")
        ann.add(1)
        with pytest.raises(SerializationError, match=r"the state of ann: cannot send state\['cents'\].*lock"):
            ann.lock_up()
        assert kept(keeper)["cents"] == 1
        with pytest.raises(KeyError, match="failed"):
            ann.lock_up_and_fail()
    assert "ann.lock_up_and_fail: its state was not saved: SerializationError: the state of ann" in caplog.text


@pytest.mark.parametrize("cls", KEEPING)
def test_a_state_that_is_too_large_is_the_error_of_the_call(cls: type[Any]) -> None:
    keeper = MemoryKeeper()
    with host(keeper) as client:
        ann = client.create_agent(cls, agent_id="ann")
        ann.become("x" * (MAX_STATE_BYTES - 1_000))
        with pytest.raises(MessageTooLarge, match="the state of ann"):
            ann.become("x" * MAX_STATE_BYTES)
        assert len(kept(keeper)["cents"]) == MAX_STATE_BYTES - 1_000
        ann.become(7)
        assert kept(keeper)["cents"] == 7


def test_what_runs_beside_the_turn_saves_nothing() -> None:
    keeper = MemoryKeeper()
    with host(keeper) as client:
        ann = client.create_agent(Account, agent_id="ann")
        assert ann.peek() == 1_000
        assert ann.currency == "EUR"
        assert kept(keeper)["cents"] == 0


def test_an_idle_agent_is_saved_when_it_says_so_and_when_it_ends() -> None:
    keeper = MemoryKeeper()
    with host(keeper) as client:
        ann: Any = client.create_agent(Idle, agent_id="ann")
        ann.add(5)
        assert keeper.last("ann") is None
        ann.save_now(5)
        assert kept(keeper)["cents"] == 10
        ann.save_soon(5).result()
        assert kept(keeper)["cents"] == 16
    assert kept(keeper)["cents"] == 17
    with host(keeper) as client:
        assert client.create_agent(Idle, agent_id="ann").seen() == ["EUR", 17, 2]


def test_one_agent_may_keep_its_state_otherwise_than_its_class() -> None:
    keeper = MemoryKeeper()
    with host(keeper) as client:
        client.options(agent_id="ann", persist="call").create_agent(Idle).add(5)
        assert kept(keeper)["cents"] == 5
        client.create_agent(Account, agent_id="bob", agent_options={"persist": None}).add(5)
        client.create_agent(Account, agent_id="cid", agent_options={"persist": "auto"}).add(5)
        assert (keeper.last("bob"), kept(keeper, "cid")["cents"]) == (None, 5)


def test_what_persists_not_says_so_when_it_is_to_be_saved() -> None:
    keeper = MemoryKeeper()
    with host(keeper) as client:
        ann = client.create_agent(Never, agent_id="ann")
        with pytest.raises(ConfigError, match=r"ann \(Never\) has no state to save"):
            ann.save_now(5)
    assert keeper.last("ann") is None


def test_without_a_keeper_no_agent_is_asked_for_its_state() -> None:
    """The state cannot be sent, and nobody notices."""
    with host(None) as client:
        for cls in (Account, Softly, Idle):
            ann: Any = client.create_agent(cls, agent_id="ann")
            ann.lock_up()
            if cls is Idle:
                ann.become(0)
                ann.save_now(5)
                ann.save_soon(5).result()
            with within(5):
                client.delete_agent("ann")


def test_classes_in_the_annotations_of_the_hook_come_back_as_themselves() -> None:
    keeper = MemoryKeeper()
    with host(keeper) as client:
        client.create_agent(Board, agent_id="ann").draw(1, 2)
    with host(keeper) as client:
        assert client.create_agent(Board, agent_id="ann").last() == [1, 2]


def test_the_hooks_of_any_class_count_where_persist_is_given() -> None:
    keeper = MemoryKeeper()
    with host(keeper) as client:
        ann: Any = client.create_agent(Marked, agent_id="ann")
        ann.bump()
        with pytest.raises(UnknownMethod):
            ann.save_state()
        bob: Any = client.create_agent(Unmarked, agent_id="bob")
        assert (bob.bump(), bob.save_state()) == (1, 1)
        with pytest.raises(ConfigError, match="Unmarked lacks"):
            client.options(persist="call").create_agent(Unmarked)
    assert keeper.last("bob") is None
    with host(keeper) as client:
        again: Any = client.create_agent(Marked, agent_id="ann")
        assert again.bump() == 2


def test_the_hooks_for_the_state_are_not_for_callers() -> None:
    with host(None) as client:
        ann = client.create_agent(Account, agent_id="ann")
        for name in ("save_state", "load_state"):
            assert name not in dir(ann)
            with pytest.raises(UnknownMethod, match=name):
                getattr(ann, name)


def test_persist_needs_both_hooks_and_hooks_that_can_be_called() -> None:
    class Half(AgentBase, persist="call"):
        """Lacks one."""

        def save_state(self) -> int:
            return 1

    class Wanting(AgentBase):
        """Wants too much."""

        def save_state(self) -> int:
            return 1

        def load_state(self, state: int, version: int, more: int) -> None: ...

    class Odd(Account):
        """Its version is none."""

        state_version = "two"  # type: ignore[assignment]

    from zmqagents.agents.spec import spec_of

    for cls, text in ((Half, "Half has no load_state"), (Wanting, r"calls \(state, version\)"), (Odd, "state_version")):
        with pytest.raises(ConfigError, match=text):
            spec_of(cls)


def test_a_snapshot_that_comes_late_is_dropped() -> None:
    keeper = MemoryKeeper()
    keeper.keep("ann", Snapshot(2, 1, (b"new",)))
    keeper.keep("ann", Snapshot(1, 1, (b"old", b"er")))
    assert keeper.last("ann") == Snapshot(2, 1, (b"new",))
    assert repr(keeper) == "<MemoryKeeper [1 snapshots, 3 bytes]>"
    keeper.forget("ann")
    assert keeper.last("ann") is None
