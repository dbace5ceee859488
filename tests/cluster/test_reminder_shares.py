"""Who looks after which bucket, and what an activation knows of its reminders."""

from __future__ import annotations

from collections import Counter

from zmqagents.cluster.reminders import BACKUP_S, Reminders, Shares
from zmqagents.store.reminders import Clear, Done, Drop, Row, Set

MEMBERS = [f"host-{number}/{10**15 + number}/{number:08x}" for number in range(7)]


def shares_of(members: list[str]) -> dict[str, list[float | None]]:
    found = {}
    for member in members:
        shares = Shares()
        assert shares.settle(member, members)
        found[member] = shares.late_s
    return found


def test_each_bucket_has_one_member_that_looks_after_it_and_a_second() -> None:
    for count in range(1, 8):
        found = shares_of(MEMBERS[:count])
        for bucket in range(256):
            late = Counter(late_s[bucket] for late_s in found.values())
            assert late[0.0] == 1
            assert late[BACKUP_S] == min(1, count - 1)
        own = [late_s.count(0.0) for late_s in found.values()]
        assert max(own) < 2 * 256 / count + 10, own


def test_a_member_that_goes_leaves_its_buckets_to_those_who_were_second() -> None:
    before, after = shares_of(MEMBERS), shares_of(MEMBERS[1:])
    for member in MEMBERS[1:]:
        for was, now in zip(before[member], after[member], strict=True):
            assert was is None or now == 0.0 or was == now, "nobody loses a bucket by another one's end"


def test_a_member_that_is_not_among_the_living_looks_after_nothing() -> None:
    shares = Shares()
    assert shares.settle("me", MEMBERS)
    assert set(shares.late_s) == {None}
    assert not shares.settle("me", list(reversed(MEMBERS))), "nothing is different"
    assert shares.settle("me", [*MEMBERS, "me"])
    assert 0.0 in shares.late_s


def test_a_reminder_is_as_the_saves_under_way_will_have_it() -> None:
    reminders = Reminders(7, [Row("tea", "s1", 5.0, 10.0, b"what")], 100.0)
    stamps = {reminders.stamp() for _ in range(100)}
    assert len(stamps) == 100
    assert all(stamp.startswith("7.") for stamp in stamps)
    standing = reminders.find("tea", (), 100.0)
    assert standing is not None
    assert standing.due == 105.0
    done = reminders.find("tea", [(Drop("bread"),), (Done("tea", "s1", "s2"),)], 131.0)
    assert done is not None
    assert (done.stamp, done.due) == ("s2", 135.0)
    assert reminders.find("tea", [(Done("tea", "s0", "s2"),)], 131.0) == standing
    assert reminders.find("tea", [(Clear(), Set("bread", "s3", 1.0, 0.0, b""))], 131.0) is None
    assert len(reminders) == 1, "to look changes nothing"


def test_what_redis_has_lost_is_written_again_with_the_time_that_is_left() -> None:
    reminders = Reminders(7, [], 100.0)
    reminders.take([Set("tea", "s1", 5.0, 0.0, b"t"), Set("bread", "s2", 60.0, 60.0, b"b")], 100.0)
    assert reminders.again(110.0) == (Clear(), Set("tea", "s1", -5.0, 0.0, b"t"), Set("bread", "s2", 50.0, 60.0, b"b"))
    reminders.take([Done("tea", "s1", "s3"), Done("bread", "s2", "s4")], 281.0)
    assert reminders.again(281.0) == (Clear(), Set("bread", "s4", 59.0, 60.0, b"b"))
