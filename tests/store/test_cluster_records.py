"""The records of a cluster in a real Redis: each operation repeated, too late, by another, and in trouble."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from clocked_records import LEASE_S, NAME, Clocked
from cluster_world import CLOCK
from hosts import eventually
from redis_server import RedisServer, running_redis
from relay import Relay
from zmqagents.errors import ConfigError, StoreError, StoreFull, StoreUnavailable
from zmqagents.store.cluster import (
    Claim,
    ClusterRecords,
    Delete,
    Deleted,
    Locate,
    Located,
    MemberRow,
    Mine,
    Other,
    Outcome,
    Refusal,
    Release,
    Released,
    Request,
    Save,
    Saved,
    Unclaimed,
    Verdict,
    bucket_of,
)
from zmqagents.store.cluster_scripts import cluster_scripts
from zmqagents.store.forms import FORMS
from zmqagents.store.scripts import Script

pytestmark = pytest.mark.program

DAY_S = 24 * 3600.0
A, B = "a/1000000000000/1", "b/1000000000000/1"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A Redis of these tests alone: they empty it."""
    with running_redis() as server:
        yield server


@pytest.fixture
def shop(server: RedisServer) -> Iterator[Clocked]:
    with contextlib.closing(Clocked(server)) as shop:
        yield shop


# ---------------------------------------------------------------- claims


def test_a_claim_is_for_one_owner_and_a_repeated_one_gives_the_same_answer(shop: Clocked) -> None:
    mine = shop.claim(A, arguments=b"args", options=b"opts")
    assert mine == Mine(1_000_000_000_000, 0, None, None, b"args", b"opts", (), fresh=True)
    assert shop.claim(A, arguments=b"others") == mine, "the first answer may have been lost"
    assert shop.claim(B) == Other(A, mine.epoch)
    assert shop.claim(B, dead=A).epoch > mine.epoch
    assert shop.claim(A, 2) == Other(B, shop.where().epoch)


def test_an_agent_is_fresh_in_its_first_activation_alone_and_before_it_is_saved(shop: Clocked) -> None:
    mine = shop.claim(A)
    assert mine.fresh
    assert shop.claim(B, dead=A) == shop.claim(B, dead=A)
    assert not shop.claim(B, dead=A).fresh
    again = shop.claim(A, 2, dead=B)
    assert not again.fresh
    assert shop.one(Delete(NAME, A, again.epoch)) == Deleted(False)
    mine = shop.claim(A, 3)
    assert mine.fresh
    assert shop.save(A, mine.epoch, 0) == Saved(Verdict.SAVED)
    assert not shop.claim(A, 3).fresh, "this copy comes late"


def test_each_activation_has_an_epoch_of_its_own(shop: Clocked) -> None:
    first, second = shop.claim(A, 1), shop.claim(A, 2)
    assert second.epoch > first.epoch
    assert shop.claim(A, 1) == Unclaimed(Refusal.STALE)
    assert shop.where().epoch == second.epoch


def test_another_class_or_an_older_version_gets_no_agent(shop: Clocked) -> None:
    mine = shop.claim(A, version=2)
    shop.one(Save(NAME, A, mine.epoch, 0, 2, b"state"))
    assert shop.one(Claim(NAME, A, 2, "Other", 2)) == Unclaimed(Refusal.EXISTS, "Account")
    assert shop.claim(A, 2, version=1) == Unclaimed(Refusal.NEWER, "2")
    assert shop.where().number == 1


def test_an_agent_that_must_be_new_is_refused_when_there_is_one_but_not_when_the_answer_was_lost(shop: Clocked) -> None:
    assert isinstance(shop.claim(A, new=True), Mine)
    assert isinstance(shop.claim(A, new=True), Mine)
    assert shop.claim(A, 2, new=True) == Unclaimed(Refusal.EXISTS, "Account")
    assert shop.claim(B, new=True) == Unclaimed(Refusal.EXISTS, "Account")


@pytest.mark.parametrize("options", [b"", b"labels"])
def test_an_agent_with_options_is_not_claimed_unseen_where_nobody_has_it(shop: Clocked, options: bytes) -> None:
    first = shop.claim(A, arguments=b"args", options=options)
    assert shop.claim(A, unseen=True).epoch == first.epoch, "the answer of this activation was lost"
    assert shop.claim(B, unseen=True) == Other(A, first.epoch), "who has it is told all the same"
    given, mine = shop.release(A, first.epoch, B), shop.claim(B, 5, unseen=True)
    assert isinstance(mine, Mine), "it was given to this one"
    assert mine.epoch > given.epoch
    shop.release(B, mine.epoch)
    before = shop.where()
    found = shop.claim(A, 6, unseen=True)
    assert isinstance(found, Mine) if not options else found == Unclaimed(Refusal.CHOSEN)
    assert (shop.where() == before) == bool(options)
    assert isinstance(shop.claim(A, 7), Mine)


def test_a_name_that_nobody_has_used_is_claimed_unseen(shop: Clocked) -> None:
    assert isinstance(shop.claim(A, unseen=True), Mine)
    assert shop.where().owner == A


# ---------------------------------------------------------------- saves


def test_a_save_is_taken_once_and_in_its_order(shop: Clocked) -> None:
    epoch = shop.claim(A).epoch
    assert shop.save(A, epoch, 1) == Saved(Verdict.BEHIND, revision=0)
    assert shop.save(A, epoch, 0, b"one") == Saved(Verdict.SAVED)
    assert shop.save(A, epoch, 0, b"one") == Saved(Verdict.TAKEN)
    assert shop.save(A, epoch, 5, b"six", heal=True) == Saved(Verdict.SAVED)
    assert shop.claim(A) == Mine(epoch, 6, 1, b"six", b"", b"", ())
    assert shop.save(B, epoch, 6).verdict is shop.save(A, epoch - 1, 6).verdict is Verdict.FENCED


WITHOUT_NUMBERS = [
    ("local again = own == me and act == tonumber(r[2])", "local again = own == me"),
    ("if own == me and act < tonumber(r[2]) then return {'stale'} end", ""),
]


def late_save_is_taken(shop: Clocked) -> bool:
    """A host drops an activation whose save had no answer, and claims the agent again; then that save is executed."""
    former = shop.claim(A, 1)
    late = Save(NAME, A, former.epoch, 0, 1, b"of the former activation")
    present = shop.claim(A, 2)
    taken = shop.one(late).verdict is Verdict.SAVED
    lost = shop.save(A, present.epoch, 0, b"of the present one").verdict is not Verdict.SAVED
    assert taken == lost, "what the present one saves is lost then, and its caller is told that it is kept"
    return taken


def test_a_late_save_of_a_former_activation_is_fenced_because_activations_have_numbers(server: RedisServer) -> None:
    with contextlib.closing(Clocked(server)) as shop:
        assert not late_save_is_taken(shop)
    text = cluster_scripts(CLOCK).claim.text
    for part, instead in WITHOUT_NUMBERS:
        assert part in text
        text = text.replace(part, instead)
    with contextlib.closing(Clocked(server, cluster_scripts(CLOCK)._replace(claim=Script(text, "")))) as shop:
        assert late_save_is_taken(shop), "the control"


def test_the_outcome_of_a_call_is_kept_with_its_state_and_found_by_whoever_comes_next(shop: Clocked) -> None:
    epoch = shop.claim(A).epoch
    shop.save(A, epoch, 0, call="t1", outcomes=(Outcome("t1", 60, b"one:1"),))
    assert shop.save(A, epoch, 1, b"twice", call="t1") == Saved(Verdict.HAD, b"one:1")
    shop.tick(10)
    mine = shop.claim(B, dead=A)
    assert mine.outcomes == (Outcome("t1", 50, b"one:1"),)
    assert (mine.revision, mine.state) == (1, b"state")
    shop.save(B, mine.epoch, 1, call="t2", outcomes=(Outcome("t2", 60, b""),), forget=("t1", "never"))
    assert [outcome.task_id for outcome in shop.claim(B).outcomes] == ["t2"]


def test_outcomes_go_by_themselves_when_nobody_saves_any_more(shop: Clocked) -> None:
    epoch = shop.claim(A).epoch
    shop.save(A, epoch, 0, call="t", outcomes=(Outcome("t", 0.05, b""),))
    end = time.monotonic() + 10
    while shop.claim(A).outcomes:
        assert time.monotonic() < end


# ---------------------------------------------------------------- the ends


def test_a_release_saves_and_hands_over_in_one_step(shop: Clocked) -> None:
    epoch = shop.claim(A).epoch
    last = Save(NAME, A, epoch, 1, 1, b"last")
    assert shop.release(A, epoch, B, last) == Released(False, behind=True)
    shop.save(A, epoch, 0)
    answer = shop.release(A, epoch, B, last)
    assert answer.done
    assert answer.epoch > epoch
    assert shop.release(A, epoch, B, last) == Released(False)
    mine = shop.claim(B)
    assert (mine.revision, mine.state) == (2, b"last")
    assert mine.epoch > answer.epoch
    assert shop.claim(A, 2) == Other(B, mine.epoch)


def test_a_late_release_of_a_former_activation_leaves_the_present_one_alone(shop: Clocked) -> None:
    former, present = shop.claim(A, 1), shop.claim(A, 2)
    assert not shop.release(A, former.epoch).done
    assert shop.where().owner == A
    assert shop.release(A, present.epoch).done


def test_an_entry_that_holds_nothing_goes_with_its_release_and_leaves_its_epoch(shop: Clocked) -> None:
    epoch = shop.claim(A).epoch
    shop.release(A, epoch)
    assert shop.where().cls == ""
    assert shop.records.count() == 0
    shop.tick(-60)
    assert shop.claim(B).epoch > epoch, "although Redis's clock was set back"
    other = Claim("Account/bob", A, 1, "Account", 1, arguments=b"x")
    shop.one(Release("Account/bob", A, shop.one(other).epoch))
    assert shop.one(Locate("Account/bob")).cls == "Account", "it can be made again only by what it was made with"


def test_a_deletion_is_the_present_owners_and_takes_all(shop: Clocked) -> None:
    former = shop.claim(A, 1)
    epoch = shop.claim(A, 2).epoch
    shop.save(A, epoch, 0, call="t", outcomes=(Outcome("t", 60, b""),))
    assert shop.one(Delete(NAME, A, former.epoch)) == Deleted(True)
    assert shop.one(Delete(NAME, A, epoch)) == shop.one(Delete(NAME, A, epoch)) == Deleted(False)
    again = shop.claim(A, 3)
    assert again == Mine(again.epoch, 0, None, None, b"", b"", (), fresh=True)
    assert again.epoch > epoch
    assert shop.one(Delete(NAME, A, epoch)) == Deleted(True)


def test_names_come_in_pages_and_by_prefix(shop: Clocked) -> None:
    names = [f"Account/{number:03}" for number in range(120)] + [f"Bot/{number}" for number in range(7)] + ["Bot/ä"]
    shop.records.exchange([Claim(name, A, 1, name.split("/")[0], 1) for name in names])
    assert shop.records.count() == len(names)
    for prefix in ("", "Account/", "Account/01", "Bot/", "Bot/ä", "C"):
        found: list[str] = []
        after = ""
        while True:
            page = shop.records.names(prefix, after, most=9)
            assert len(page.rows) <= 9
            assert all((owner, epoch > 0) == (A, True) for _, owner, epoch in page.rows)
            found += [name for name, _, _ in page.rows]
            if not (after := page.following):
                break
        assert sorted(found) == sorted(name for name in names if name.startswith(prefix))
    assert len({bucket_of(name) for name in names}) > 50


# ---------------------------------------------------------------- members


def test_a_member_lives_for_a_lease_and_is_dead_for_ever(shop: Clocked) -> None:
    beat = shop.beat(A)
    assert beat.alive
    [row] = beat.members
    assert row == MemberRow(A, 10_000_000, 1, False, "s", b"{}", 10_000_000, FORMS)
    shop.beat(B, "t")
    assert not shop.declare(A, 1), "its lease is not over"
    shop.tick(6)
    shop.beat(B, "t")
    shop.tick(6)
    assert shop.beat(B, "t").members[0].lease_left_us == -2_000_000
    assert not shop.declare(A, 1, watched=False), "who only asks kills nobody"
    assert not shop.declare(A, 7), "its number has moved"
    assert shop.declare(A, 1)
    assert shop.declare(A, 1)
    assert not shop.beat(A).alive
    assert [row.incarnation for row in shop.beat(B, "t").members] == [B]
    assert [(entry.kind, entry.what) for entry in shop.records.log()] == [("joined", A), ("joined", B), ("died", A)]


def test_a_late_beat_renews_nothing(shop: Clocked) -> None:
    late = shop.records.beat(A, 5, lease_s=LEASE_S, draining=False, start="s", record=b"new")
    shop.tick(5)
    again = shop.records.beat(A, 4, lease_s=LEASE_S, draining=False, start="s", record=b"old")
    assert again.members[0].lease_left_us == late.members[0].lease_left_us - 5_000_000
    assert again.members[0].record == b"new"


def test_nobody_is_dead_because_redis_was_away_or_its_clock_was_set(shop: Clocked) -> None:
    shop.beat(A)
    shop.beat(B, "t")
    for step in (60.0, -60.0, 8.0):  # more than three quarters of a lease without a beat
        shop.tick(step)
        assert not shop.declare(A, 1)
        beat = shop.beat(B, "t")
        assert beat.away
        assert min(row.lease_left_us for row in beat.members) == LEASE_S * 1e6
    assert shop.beat(A).alive


def test_when_redis_was_away_each_member_gets_a_lease_of_its_own_length(shop: Clocked) -> None:
    for who, lease_s in ((A, 60.0), (B, 10.0)):
        shop.records.beat(who, 1, lease_s=lease_s, draining=False, start="s", record=b"")
    shop.tick(100)
    rows = shop.records.beat(B, 2, lease_s=10.0, draining=False, start="s", record=b"").members
    assert {row.incarnation: row.lease_left_us for row in rows} == {A: 60_000_000, B: 10_000_000}


def test_who_is_neither_living_nor_dead_gets_a_lease_first(shop: Clocked) -> None:
    shop.beat(B, "t")
    assert not shop.declare(A)
    assert {row.incarnation: row.number for row in shop.beat(B, "t").members} == {A: None, B: 2}
    shop.tick(6)
    shop.beat(B, "t")
    shop.tick(6)
    shop.beat(B, "t")
    assert shop.declare(A)


def test_one_that_may_have_been_forgotten_beats_no_more_and_needs_no_lease_to_be_dead(shop: Clocked) -> None:
    shop.tick(DAY_S)
    shop.beat("c/1086400000000/1", "t")
    assert not shop.beat(A).alive, "it joined a day ago, and nobody knows of it"
    assert not shop.declare(A, watched=False)
    assert shop.declare(A)


def test_an_obituary_covers_a_start_with_all_its_incarnations_and_no_other(shop: Clocked) -> None:
    again, other = "a/1000000000001/2", "a/1000000000002/3"
    for who, start in ((A, "s1"), (again, "s1"), (other, "s2")):
        assert shop.beat(who, start).alive
    assert sorted(shop.records.obituary("s1")) == [A, again]
    assert shop.records.obituary("s1") == ()
    assert shop.declare(A, watched=False)
    assert not shop.beat("a/1000000000003/4", "s1").alive, "a beat that was on its way"
    assert shop.beat(other, "s2").alive
    for token in ("", "a/b", "a b"):
        with pytest.raises(ValueError, match="token"):
            shop.records.obituary(token)


def test_the_first_drain_is_told_and_counts_as_a_change(shop: Clocked) -> None:
    views = [shop.beat(A).view, shop.beat(A).view]
    for draining in (True, True):
        beat = shop.records.beat(A, next(shop.numbers), lease_s=LEASE_S, draining=draining, start="s", record=b"")
        views.append(beat.view)
        assert beat.members[0].draining
    assert views == [1, 1, 2, 2]
    shop.records.note("moved", NAME)
    kinds = [entry.kind for entry in shop.records.log()]
    assert kinds == ["joined", "draining", "moved"]
    first = shop.records.log(most=1)[0]
    assert [entry.kind for entry in shop.records.log(first.entry_id)] == kinds[1:]


def test_a_host_with_another_key_does_not_join_nor_changes_anything(shop: Clocked) -> None:
    shop.records.join("key")
    shop.client.delete("za:{shop}:format")
    with pytest.raises(ConfigError, match="another key"):
        shop.records.join("other")
    assert not shop.client.exists("za:{shop}:format")


# ---------------------------------------------------------------- Redis in trouble


def test_a_record_that_is_not_understood_fails_alone(shop: Clocked) -> None:
    garbled, rogue = "Account/garbled", "Account/rogue"
    shop.client.set(shop.records.key_of(garbled), "x")
    shop.client.hset(shop.records.key_of(rogue), mapping={"own": A, "act": "1", "ep": "many", "cls": "Account"})
    claims = [Claim(name, A, 1, "Account", 1) for name in (garbled, NAME, rogue)]
    answers = shop.records.exchange([*claims, *(Save(claim.name, A, 1, 0, 1, b"") for claim in claims)])
    assert [type(answer) for answer in answers[:3]] == [StoreError, Mine, StoreError]
    assert [type(answer) for answer in answers[3:]] == [StoreError, Saved, Saved]


def test_a_member_whose_record_is_not_understood_can_be_declared_dead(shop: Clocked) -> None:
    shop.beat(B, "t")
    for rogue in (b"", b"x", b"1 0 s 5", b"\xff\xff"):
        shop.client.zadd("za:{shop}:lease", {b"rogue/\xff": 0})
        shop.client.hset("za:{shop}:host", b"rogue/\xff", rogue)
        rows = {row.incarnation: row.number for row in shop.beat(B, "t").members}
        assert rows == {"rogue/\ufffd": None, B: rows[B]}
    shop.client.hset("za:{shop}:host", "rogue", "x")
    shop.client.zadd("za:{shop}:lease", {"rogue": 0})
    assert shop.declare("rogue")


def test_a_redis_out_of_memory_refuses_states_and_takes_beats_and_releases(shop: Clocked) -> None:
    mine = shop.claim(A)
    shop.client.config_set("maxmemory", 1)
    try:
        assert isinstance(shop.save(A, mine.epoch, 0), StoreFull)
        assert isinstance(shop.claim(B, dead=A), StoreFull)
        assert shop.beat(A).alive
        assert shop.release(A, mine.epoch).done
        assert shop.records.obituary("s") == (A,)
    finally:
        shop.client.config_set("maxmemory", 0)
    assert shop.claim(B).revision == 0


def test_requests_keep_their_order_when_somebody_has_flushed_the_scripts(shop: Clocked) -> None:
    epoch = shop.claim(A).epoch
    requests: list[Request] = [Save(NAME, A, epoch, number, 1, b"%d" % number) for number in range(3)]
    shop.client.script_flush()
    assert (
        shop.records.exchange([*requests, Release(NAME, A, epoch), Claim(NAME, B, 1, "Account", 1)])[:3]
        == [Saved(Verdict.SAVED)] * 3
    )
    assert shop.where().owner == B
    shop.client.script_flush()
    assert shop.records.count() == 1


def test_a_redis_that_drops_records_is_refused(shop: Clocked) -> None:
    shop.records.check_settings()
    shop.client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(ConfigError, match="allkeys-lru"):
            shop.records.check_settings()
    finally:
        shop.client.config_set("maxmemory-policy", "noeviction")


def test_a_door_that_closes_each_connection_at_once_is_an_unavailable_redis_and_soon(server: RedisServer) -> None:
    """A proxy whose Redis is gone, or a Redis at its maxclients."""
    with Relay(server.port) as relay:
        relay.refuse()
        records = ClusterRecords(f"redis://127.0.0.1:{relay.port}", "door")
        start = time.monotonic()
        with pytest.raises(StoreUnavailable):
            records.exchange([Locate(NAME)])
        assert time.monotonic() - start < 10
        records.close()


def test_another_server_is_known_before_it_is_asked_anything(server: RedisServer) -> None:
    with running_redis() as own, contextlib.closing(ClusterRecords(own.url, "shop")) as records:
        records.count()
        first = records.identity
        own.kill()
        with pytest.raises(StoreUnavailable):
            records.count()
        own.start()
        assert records.exchange([Claim(NAME, A, 1, "Account", 1)] * 2)[0] != []
        assert records.identity != first
        with own.client as client:  # a master that followed another one and came back is the same process
            second = records.identity
            client.replicaof("127.0.0.1", server.port)
            client.replicaof("NO", "ONE")
            client.client_kill_filter(_type="normal", skipme=True)
        with contextlib.suppress(StoreUnavailable):
            records.count()
        assert records.identity.split()[0] == second.split()[0]
        assert records.identity != second


def test_each_script_keeps_to_one_slot_of_a_redis_cluster() -> None:
    with running_redis(cluster_enabled="yes") as own:
        with own.client as client:
            client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
            assert eventually(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"), 20)
        with contextlib.closing(ClusterRecords(f"redis+cluster://127.0.0.1:{own.port}", "shop")) as records:
            who = f"a/{records.join('key').now_us}/1"
            assert records.identity
            records.check_settings()
            assert records.beat(who, 1, lease_s=LEASE_S, draining=False, start="s", record=b"").alive
            names = [f"Account/{number}" for number in range(64)]
            claims = records.exchange([Claim(name, who, 1, "Account", 1) for name in names])
            epochs = [answer.epoch for answer in claims if isinstance(answer, Mine)]
            outcome = (Outcome("t", 60, b""),)
            pairs = list(zip(names, epochs, strict=True))
            saves = records.exchange([Save(name, who, epoch, 0, 1, b"", "t", outcome) for name, epoch in pairs])
            assert set(saves) == {Saved(Verdict.SAVED)}
            assert records.count() == len(records.names().rows) == 64
            released = records.exchange([Release(name, who, epoch) for name, epoch in pairs])
            assert all(isinstance(answer, Released) and answer.done for answer in released)
            assert isinstance(records.exchange([Locate(names[0])])[0], Located)
            assert records.obituary("s") == (who,)
            assert records.declare(who, 1, watched=True, lease_s=LEASE_S)
            assert [entry.kind for entry in records.log()] == ["joined", "died"]


def test_a_user_of_redis_needs_these_keys_and_no_others(server: RedisServer) -> None:
    with server.client as client:
        client.execute_command("ACL", "SETUSER", "shop", "on", ">pw", "resetkeys", "resetchannels", "~za:{shop}:*",
                               "~za:{shop/*", "&za:{shop}:news", "+@all")  # fmt: skip
        try:
            for namespace, may in (("shop", True), ("shop2", False)):
                url = server.tcp_url.replace("//", "//shop:pw@")
                fails = contextlib.nullcontext() if may else pytest.raises(StoreUnavailable)
                with contextlib.closing(ClusterRecords(url, namespace)) as records, fails:
                    joined = records.join("key")
                    who = f"a/{joined.now_us}/1"
                    assert records.beat(who, 1, lease_s=1, draining=False, start="s", record=b"").alive
                    assert isinstance(records.exchange([Claim(NAME, A, 1, "Account", 1)])[0], Mine)
        finally:
            client.execute_command("ACL", "DELUSER", "shop")
