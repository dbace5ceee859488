"""The form of a cluster's records, in a real Redis: who may join, how it is raised, and what becomes of the records.

The package knows one form; the hosts of these tests say that they know others. What a record of form 2 has in it is
what one of form 1 has, and its number tells them apart.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from clocked_records import LEASE_S, NAME, Clocked
from cluster_world import CLOCK
from redis_server import RedisServer, running_redis
from zmqagents.errors import ConfigError
from zmqagents.store.cluster import (
    Beat,
    Claim,
    ClusterRecords,
    Mine,
    Refusal,
    Release,
    Released,
    Save,
    Unclaimed,
    Verdict,
)
from zmqagents.store.cluster_scripts import cluster_scripts
from zmqagents.store.forms import Forms

pytestmark = pytest.mark.program

OLD, BOTH, NEW = Forms(1, 1), Forms(1, 2), Forms(2, 3)
A, B = "a/1000000000000/1", "b/1000000000000/1"
LATE, ELSEWHERE = "Account/late", "Account/elsewhere"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


class Shop(Clocked):
    """The records of one cluster, as hosts that know different forms have them."""

    def __init__(self, server: RedisServer) -> None:
        super().__init__(server)
        self.old, self.both, self.new = (
            ClusterRecords(server.url, "shop", scripts=cluster_scripts(CLOCK), forms=forms)
            for forms in (OLD, BOTH, NEW)
        )
        self.beats = itertools.count(1)

    def lives(self, records: ClusterRecords, who: str, writes: int = 0, start: str = "s") -> Beat:
        return records.beat(
            who, next(self.beats), lease_s=LEASE_S, draining=False, start=start, record=b"{}", writes=writes
        )

    def make(self, name: str, form: int = 1) -> Mine:
        [mine] = self.both.exchange([Claim(name, A, 1, "Account", 1, form=form)])
        assert isinstance(mine, Mine)
        return mine

    def put(self, name: str, mine: Mine, form: int, revision: int = 0) -> Verdict:
        [saved] = self.both.exchange([Save(name, A, mine.epoch, revision, 1, b"state", form=form)])
        verdict: Verdict = saved.verdict  # type: ignore[union-attr]
        return verdict

    def form_of(self, name: str) -> bytes | None:
        found: Any = self.client.hget(self.records.key_of(name), "fm")
        return None if found is None else bytes(found)

    def rewrite_all(self, form: int, most: int = 500) -> tuple[int, int]:
        """A whole round: how many records there are, and how many were older."""
        seen = rewritten = 0
        after = ""
        while True:
            page = self.both.rewrite(form, after, most)
            seen, rewritten, after = seen + page.seen, rewritten + page.rewritten, page.following
            if not after:
                return seen, rewritten

    def close(self) -> None:
        for records in (self.old, self.both, self.new):
            records.close()
        super().close()


@pytest.fixture
def shop(server: RedisServer) -> Iterator[Shop]:
    with contextlib.closing(Shop(server)) as shop:
        yield shop


# ---------------------------------------------------------------- who may join


def test_the_first_host_decides_which_form_is_written(shop: Shop) -> None:
    assert shop.old.join("key").form == 1
    assert shop.both.join("key").form == 1, "a newer host writes what is there"
    assert shop.lives(shop.both, A).form == 1


def test_a_host_that_does_not_know_the_form_does_not_join_and_is_told_what_to_do(shop: Shop) -> None:
    assert shop.both.join("key").form == 2
    with pytest.raises(
        ConfigError, match=r"form 2, and this host \(zmqagents .*\) knows forms up to 1: install the vers"
    ):
        shop.old.join("key")


def test_a_host_that_does_not_know_the_form_of_records_that_may_be_left_does_not_join(shop: Shop) -> None:
    shop.old.join("key")
    shop.both.raise_form(2)
    with pytest.raises(ConfigError, match=r"may still have records of form 1.* from 2 on: .*as_server upgrade"):
        shop.new.join("key")
    shop.both.settle_form(2)
    assert shop.new.join("key").form == 2


def test_a_host_that_joined_just_before_the_form_was_raised_does_not_live(shop: Shop) -> None:
    shop.old.join("key")
    assert shop.both.raise_form(2).form == 2, "no beat has told of it"
    assert not shop.lives(shop.old, A).alive
    assert shop.lives(shop.both, B).alive


# ---------------------------------------------------------------- raising it


def test_the_form_is_raised_once_all_members_read_it(shop: Shop) -> None:
    shop.old.join("key")
    view = shop.lives(shop.both, B).view
    shop.lives(shop.old, A)
    kept = shop.both.raise_form(2)
    assert (kept.form, kept.former) == (1, 1)
    assert [(row.incarnation, row.forms) for row in kept.members] == [(A, OLD), (B, BOTH)]
    assert "upgraded" not in [entry.kind for entry in shop.records.log()]

    shop.tick(2 * LEASE_S)
    shop.lives(shop.both, B)
    shop.lives(shop.both, B)
    assert shop.both.raise_form(2).form == 1, "the other's lease is over, but it may have a save under way"
    assert shop.records.obituary("s") != ()
    shop.lives(shop.both, "b/1000000000000/2", start="t")
    assert shop.both.raise_form(2).form == shop.both.raise_form(2).form == 2
    assert [entry.what for entry in shop.records.log() if entry.kind == "upgraded"] == ["records from form 1 to 2"]
    assert shop.lives(shop.both, "b/1000000000000/2", start="t").view > view
    assert shop.both.raise_form(1).form == 2, "it is never lowered"


def test_a_member_of_which_nothing_is_known_keeps_the_form_as_it_is(shop: Shop) -> None:
    shop.old.join("key")
    shop.lives(shop.both, B)
    assert not shop.declare(A), "it gets a lease, for Redis may have lost its first beat"
    assert shop.both.raise_form(2).form == 1


def test_a_form_whose_raise_redis_has_lost_is_raised_again_by_those_who_write_it(shop: Shop) -> None:
    shop.old.join("key")
    shop.both.raise_form(2)
    assert shop.lives(shop.both, B).form == 2
    shop.client.set("za:{shop}:format", 1)
    assert shop.old.join("key").form == 1
    assert shop.lives(shop.both, B, writes=2).form == 2
    assert not shop.lives(shop.old, A).alive


# ---------------------------------------------------------------- the records


def test_a_record_has_the_form_in_which_it_was_written_last(shop: Shop) -> None:
    mine = shop.make(NAME)
    assert shop.form_of(NAME) == b"1"
    assert shop.put(NAME, mine, 1) is Verdict.SAVED
    assert shop.form_of(NAME) == b"1"
    assert shop.put(NAME, mine, 2, revision=1) is Verdict.SAVED
    assert shop.form_of(NAME) == b"2", "it is rewritten by its next save"
    last = Save(NAME, A, mine.epoch, 2, 1, b"last", form=2)
    shop.both.exchange([Release(NAME, A, mine.epoch, "", last)])
    assert shop.form_of(NAME) == b"2"
    shop.make("Account/new", 2)
    assert shop.form_of("Account/new") == b"2"


def test_a_record_of_a_form_that_a_host_does_not_read_is_not_claimed_by_it(shop: Shop) -> None:
    mine = shop.make(NAME, 2)
    shop.put(NAME, mine, 2)
    shop.both.exchange([Release(NAME, A, mine.epoch)])
    claim = Claim(NAME, B, 1, "Account", 1)
    assert shop.old.exchange([claim]) == [Unclaimed(Refusal.FORM, "2")]
    assert shop.where().owner == ""
    [theirs] = shop.both.exchange([claim])
    assert isinstance(theirs, Mine)
    assert theirs.state == b"state"


def test_a_record_from_before_records_told_their_form_has_the_first(shop: Shop) -> None:
    shop.make(NAME)
    shop.client.hdel(shop.records.key_of(NAME), "fm")
    assert isinstance(shop.old.exchange([Claim(NAME, A, 2, "Account", 1)])[0], Mine)
    assert shop.new.exchange([Claim(NAME, A, 3, "Account", 1)]) == [Unclaimed(Refusal.FORM, "1")]
    assert shop.rewrite_all(2) == (1, 1)
    assert shop.form_of(NAME) == b"2"


def test_all_records_are_rewritten_by_pages_and_what_was_interrupted_goes_on(shop: Shop) -> None:
    names = [f"Account/{number}" for number in range(300)]
    epochs = {name: shop.make(name) for name in names}
    for name in names[:100]:
        shop.put(name, epochs[name], 2)
    first = shop.both.rewrite(2, "", 7)
    assert first.seen == 7
    assert first.following
    seen, rewritten = shop.rewrite_all(2, 7)
    assert (seen, first.rewritten + rewritten) == (300, 200)
    assert {shop.form_of(name) for name in names} == {b"2"}
    assert shop.rewrite_all(2) == (300, 0)
    assert shop.put(names[150], epochs[names[150]], 2) is Verdict.SAVED, "its owner has not noticed"
    assert shop.client.hget(shop.records.key_of(names[0]), "st") == b"state"


def test_an_owner_that_is_dead_writes_no_former_form_into_a_record_that_has_been_upgraded(shop: Shop) -> None:
    mine = shop.make(NAME)
    shop.put(NAME, mine, 1)
    shop.rewrite_all(2)
    assert shop.put(NAME, mine, 1, revision=1) is Verdict.FENCED
    last = Save(NAME, A, mine.epoch, 1, 1, b"last", form=1)
    assert shop.both.exchange([Release(NAME, A, mine.epoch, B, last)]) == [Released(False)]
    assert (shop.where().owner, shop.where().revision, shop.form_of(NAME)) == (A, 1, b"2")
    assert shop.both.exchange([Release(NAME, A, mine.epoch)])[0] == Released(True, mine.epoch), "that writes nothing"
    late = Claim(LATE, A, 2, "Account", 1, arguments=b"args", form=1)
    assert shop.both.exchange([late]) == [Unclaimed(Refusal.FORM, "1")], "nor makes a new one"


def test_what_something_else_has_written_keeps_no_other_record_from_the_new_form(shop: Shop) -> None:
    for name in (NAME, LATE, ELSEWHERE):
        shop.make(name)
    shop.client.delete(shop.records.key_of(LATE))
    shop.client.set(shop.records.key_of(LATE), "x")
    shop.client.hset(shop.records.key_of(ELSEWHERE), "fm", "many")
    assert shop.rewrite_all(2) == (3, 1)
    assert shop.form_of(NAME) == b"2"


def test_the_former_form_is_over_only_when_all_members_write_the_new_one(shop: Shop) -> None:
    shop.old.join("key")
    shop.lives(shop.both, B, writes=1)
    assert shop.both.settle_form(2).former == 1, "it is not written yet"
    assert shop.both.raise_form(2)[:2] == (2, 1)
    assert shop.both.settle_form(2).former == 1, "a member may still write the former form"
    shop.lives(shop.both, B, writes=2)
    assert shop.both.settle_form(2)[:2] == shop.both.settle_form(2)[:2] == shop.both.forms()[:2] == (2, 2)
