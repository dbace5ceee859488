"""Reminders in a real Redis: they change with the state alone, and what is due is handed out to one at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from clocked_records import NAME, Clocked
from redis_server import RedisServer, running_redis
from zmqagents.store.cluster import Delete, Mine, Save, Saved, Verdict, bucket_of
from zmqagents.store.reminders import Change, Clear, Done, Drop, DueRow, Held, Polled, Row, Set

pytestmark = pytest.mark.program

A, B = "a/1000000000000/1", "b/1000000000000/1"
BUCKET = bucket_of(NAME)
HOLD_S = 30.0


class Reminded(Clocked):
    """The same, with the reminders of one agent, which the first host has."""

    def __init__(self, server: RedisServer) -> None:
        super().__init__(server)
        self.mine: Mine = self.claim(A)
        self.revision = 0

    def change(self, *changes: Change, owner: str = A, **more: Any) -> Saved:
        given = {"state": b"state", "reminders": changes, **more}
        saved: Saved = self.save(owner, self.mine.epoch, self.revision, **given)
        self.revision += saved.verdict is Verdict.SAVED
        return saved

    def due(self, most: int = 10) -> Polled:
        [polled] = self.records.due([BUCKET], for_s=HOLD_S, most=most)
        return polled

    def stamps(self) -> list[str]:
        """The ticks that are handed out now."""
        return [due.row.stamp for due in self.due().rows]

    def kept(self) -> dict[str, tuple[str, float]]:
        return {row.name: (row.stamp, row.left_s) for row in self.records.reminders(NAME)}


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A Redis of these tests alone: they empty it."""
    with running_redis() as server:
        yield server


@pytest.fixture
def shop(server: RedisServer) -> Iterator[Reminded]:
    with contextlib.closing(Reminded(server)) as shop:
        yield shop


def test_a_reminder_is_handed_out_when_it_is_due_to_one_at_a_time_until_it_is_done(shop: Reminded) -> None:
    shop.change(Set("tea", "s1", 5.0, 0.0, b"\x00 \xffwhat\n"))
    assert shop.due() == Polled(BUCKET, (), 5.0, 1)
    shop.tick(7)
    assert shop.due() == Polled(BUCKET, (DueRow(NAME, Row("tea", "s1", -2.0, 0.0, b"\x00 \xffwhat\n")),), HOLD_S, 1)
    assert shop.stamps() == []
    shop.tick(HOLD_S)
    assert shop.stamps() == ["s1"], "whoever had it has not said that it is done"
    shop.change(Done("tea", "s1", "s2"))
    assert (shop.due(), shop.kept()) == (Polled(BUCKET, (), None, 0), {})


def test_one_that_repeats_keeps_its_beat_and_ticks_once_for_all_that_were_missed(shop: Reminded) -> None:
    shop.change(Set("tea", "s1", 5.0, 10.0, b""))
    for stamp, following, later in (("s1", "s2", 5.0), ("s2", "s3", 10.0), ("s3", "s4", 47.0)):
        shop.tick(later)
        assert shop.stamps() == [stamp]
        shop.change(Done("tea", stamp, following))
    assert shop.kept() == {"tea": ("s4", 3.0)}, "due at 65, 75 and so on after the first"
    assert shop.due().next_s == 3.0
    shop.tick(3)
    shop.change(Done("tea", "s4", "s5"))
    assert shop.kept() == {"tea": ("s5", 10.0)}, "what is done at the time that it is due ticks again later"


def test_many_agents_share_a_bucket_and_what_is_handed_out_is_bounded(shop: Reminded) -> None:
    shop.change(*(Set(f"r{number}", f"s{number}", float(number), 0.0, b"") for number in range(10)))
    shop.tick(7.5)
    first = shop.due(5)
    assert [due.row.name for due in first.rows] == ["r0", "r1", "r2", "r3", "r4"]
    assert (first.next_s, first.held) == (-2.5, 10)
    assert [due.row.name for due in shop.due(5).rows] == ["r5", "r6", "r7"]


def test_only_the_present_activation_changes_reminders_and_each_change_is_taken_once(shop: Reminded) -> None:
    shop.change(Set("tea", "s1", 5.0, 0.0, b""))
    request = Save(NAME, A, shop.mine.epoch, 0, 1, b"state", reminders=(Set("tea", "s9", 50.0, 0.0, b""),))
    assert shop.one(request) == Saved(Verdict.TAKEN), "a late copy"
    assert shop.change(Drop("tea"), owner=B).verdict is Verdict.FENCED
    former, shop.mine = shop.mine, shop.claim(B, dead=A)
    assert shop.mine.reminders == (Row("tea", "s1", 5.0, 0.0, b""),)
    assert shop.save(A, former.epoch, 1, reminders=(Drop("tea"),)).verdict is Verdict.FENCED
    assert shop.one(Delete(NAME, A, former.epoch)).fenced
    assert shop.kept() == {"tea": ("s1", 5.0)}


def test_the_end_of_a_tick_that_is_not_the_present_one_changes_nothing(shop: Reminded) -> None:
    shop.change(Set("tea", "s1", 0.0, 0.0, b""))
    shop.change(Set("tea", "s2", 8.0, 0.0, b""))
    shop.change(Done("tea", "s1", "s3"), Done("none", "s1", "s3"))
    assert shop.kept() == {"tea": ("s2", 8.0)}
    shop.change(Drop("tea"), Done("tea", "s2", "s4"))
    assert shop.kept() == {}


def test_a_hand_out_can_be_made_longer_or_shorter_while_its_tick_is_the_present_one(shop: Reminded) -> None:
    shop.change(Set("tea", "s1", 0.0, 10.0, b""))
    assert shop.stamps() == ["s1"]
    shop.records.hold([Held(NAME, "tea", "s1", 50.0), Held(NAME, "none", "s1", 0.0)])
    shop.tick(HOLD_S)
    assert shop.stamps() == []
    shop.records.hold([Held(NAME, "tea", "s1", 1.0)])
    shop.tick(1)
    assert shop.stamps() == ["s1"]
    shop.change(Done("tea", "s1", "s2"))
    shop.records.hold([Held(NAME, "tea", "s1", 0.0)])
    assert (shop.stamps(), shop.due().held) == ([], 1)


def test_reminders_go_with_their_agent_and_keep_its_record(shop: Reminded) -> None:
    shop.change(Set("tea", "s1", 5.0, 0.0, b""), state=None)
    assert shop.release(A, shop.mine.epoch).done
    assert shop.where().cls == "Account", "an agent that has a reminder exists"
    shop.mine = shop.claim(A, 2)
    assert (shop.mine.version, shop.mine.state) == (None, None)
    last = Save(NAME, A, shop.mine.epoch, 1, 1, None, reminders=(Drop("tea"),))
    assert shop.release(A, shop.mine.epoch, "", last).done
    assert (shop.where().cls, shop.due().held) == ("", 0), "nothing is kept of it"
    shop.mine, shop.revision = shop.claim(A, 3), 0
    shop.change(Set("tea", "s1", 5.0, 0.0, b""), Set("bread", "s2", 5.0, 0.0, b""))
    shop.one(Delete(NAME, A, shop.mine.epoch))
    keys: list[Any] = list(shop.client.keys("za:*"))
    assert [key for key in keys if b":r:" in key or key.endswith(b"due")] == []


def test_an_owner_writes_again_what_redis_has_lost_and_removes_what_it_should_have(shop: Reminded) -> None:
    shop.change(Set("old", "s1", 5.0, 0.0, b""))
    shop.revision = 4
    again = (Clear(), Set("tea", "s3", -2.0, 10.0, b"what"), Done("tea", "s3", "s4"))
    assert shop.change(*again).verdict is Verdict.BEHIND
    assert shop.kept() == {"old": ("s1", 5.0)}, "a save that is refused changes no reminder"
    assert shop.change(*again, heal=True).verdict is Verdict.SAVED
    assert shop.kept() == {"tea": ("s4", 8.0)}


def test_what_something_else_has_written_into_a_bucket_harms_no_other_reminder(shop: Reminded) -> None:
    shop.change(Set("tea", "s1", 0.0, 0.0, b""), Set("odd", "s2", 0.0, 0.0, b""))
    base = f"za:{{shop/{BUCKET:02x}}}:"
    shop.client.hset(f"{base}r:{NAME}", "odd", "x")
    shop.client.zadd(f"{base}due", {"gone\nreminder": 0, "no reminder": 0})
    assert shop.stamps() == ["s1"]
    assert shop.due().held == 2
    other = (BUCKET + 1) % 256
    shop.client.set(f"za:{{shop/{other:02x}}}:due", "x")
    assert [polled.held for polled in shop.records.due([other, BUCKET], for_s=1.0, most=9)] == [0, 2]


def test_a_redis_out_of_memory_hands_out_what_is_due(shop: Reminded) -> None:
    shop.change(Set("tea", "s1", 0.0, 0.0, b""))
    shop.client.config_set("maxmemory", 1)
    try:
        assert shop.stamps() == ["s1"]
        shop.records.hold([Held(NAME, "tea", "s1", 0.0)])
        assert shop.stamps() == ["s1"]
    finally:
        shop.client.config_set("maxmemory", 0)
