"""Which member a new agent goes to."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from zmqagents.cluster.placement import MemberInfo, Placement, info_of, record_of
from zmqagents.store.cluster import MemberRow


def member(name: str, **more: Any) -> MemberInfo:
    return MemberInfo(name, f"{name}:1", **{"classes": {"Account": 2}, "lease_left_s": 5.0, "number": 1, **more})


def chosen(placement: Placement, times: int, version: int = 2, labels: Any = None, **more: Any) -> Counter[str]:
    """Which members so many agents go to."""
    choices = [placement.choose("Account", version, labels, **more) for _ in range(times)]
    return Counter(choice.incarnation for choice in choices if choice is not None)


def test_many_agents_are_spread_evenly_although_no_record_changes() -> None:
    placement = Placement(random.Random(1))
    placement.saw(member(f"m{number}") for number in range(100))
    counts = chosen(placement, 10_000).values()
    assert len(counts) == 100
    assert max(counts) <= 115
    assert min(counts) >= 85


def test_a_loaded_member_gets_less_until_its_record_says_otherwise() -> None:
    placement = Placement(random.Random(1))
    full, idle = member("full", load=1000.0), member("idle")
    placement.saw([full, idle])
    assert set(chosen(placement, 50)) == {"idle"}
    placement.saw([replace(full, load=0.0, number=2), idle])
    assert set(chosen(placement, 50)) == {"full"}, "50 were placed on the other one since its record"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"draining": True}, "draining"),
        ({"lease_left_s": -1.0}, "do not beat"),
        ({"classes": {"Bot": 1}}, "no member has the class Account"),
        ({"classes": {"Account": 1}}, "reads version 2"),
        ({"labels": {"gpu": "no"}}, "labels"),
    ],
)
def test_a_member_that_cannot_have_the_agent_is_left_out_and_said_why(more: dict[str, Any], why: str) -> None:
    placement = Placement()
    able = member("able", labels={"gpu": "yes", "zone": "a"}, load=9.0)
    placement.saw([able, member("other", **{"labels": {"gpu": "yes"}, **more})])
    assert set(chosen(placement, 20, 2, {"gpu": "yes"})) == {"able"}
    placement.drop("able")
    assert placement.choose("Account", 2, {"gpu": "yes"}) is None
    assert why in placement.why_none("Account", 2, {"gpu": "yes"})


def test_what_a_class_asks_for_is_judged_by_each_members_own_version_of_it() -> None:
    placement = Placement()
    gpu, plain = {"Account": {"gpu": "yes"}}, {"Account": {"zone": "a"}}
    able = member("able", needs=gpu, labels={"gpu": "yes"})
    placement.saw([able, member("unable", needs=gpu), member("newer", needs=plain, labels={"gpu": "yes"})])
    assert set(chosen(placement, 20)) == {"able"}
    assert set(chosen(placement, 60, labels={"gpu": "yes"})) == {"able", "newer"}, "what is said at creation wins"
    assert set(chosen(placement, 90, labels={})) == {"able", "newer", "unable"}
    placement.drop("able")
    assert placement.why_none("Account", 2) == "no member with the class Account has the labels gpu=yes or zone=a"


def test_without_a_member_there_is_none_and_one_may_be_left_out() -> None:
    placement = Placement()
    assert "no member that beats" in placement.why_none("Account", 1)
    placement.saw([member("a"), member("b")])
    assert set(chosen(placement, 20, 1, but=["a"])) == {"b"}


def test_a_record_travels_and_a_rogue_one_is_no_member() -> None:
    said = member("a", labels={"zone": "ä"}, load=3.5, version="1.0", needs={"Account": {"zone": "ä"}})
    row = MemberRow("a", 5_000_000, 1, False, "s", record_of(said), 15_000_000)
    assert info_of(row) == said
    for record in (b"", b"{}", b"[]", b"\xff", b'{"address": 1, "version": 2, "labels": 3, "classes": 4, "load": 5}'):
        assert info_of(row._replace(record=record)) is None
