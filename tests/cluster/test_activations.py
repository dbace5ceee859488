"""The machine of a host's activations: answers in, effects out."""

from __future__ import annotations

from typing import Any

import pytest

from zmqagents.cluster import activations as machine
from zmqagents.cluster.activations import (
    MAX_OUTCOMES,
    MAX_SAVE_BYTES,
    MAX_SAVES,
    MAX_STARTING,
    MAX_STATE_BYTES,
    Activated,
    Activations,
    Ask,
    Cleared,
    Dropped,
    DroppedFor,
    Effect,
    Elsewhere,
    Gone,
    Made,
    NotActivated,
    Note,
    OnceOutcome,
    Phase,
    Readiness,
    Removed,
    Renew,
    Room,
    Send,
    Soon,
    Taken,
)
from zmqagents.cluster.observers import Observers
from zmqagents.errors import MessageTooLarge, StoreError
from zmqagents.store.cluster import (
    Claim,
    Delete,
    Deleted,
    Locate,
    Located,
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
)
from zmqagents.store.reminders import Clear, Done, Row, Set

ME, OTHER = "me/1/a", "other/1/b"
NAME = "Account/ann"
MINE = Mine(100, 3, 1, b"state", b"", b"", ())
SAVED = Saved(Verdict.SAVED)


class Host:
    """A machine, and what it has sent."""

    def __init__(self) -> None:
        self.now = 0.0
        self.observers = Observers(10)
        self.machine = Activations(ME, self.observers, lambda: self.now)
        self.sent: list[Request] = []

    def see(self, effects: list[Effect]) -> list[Effect]:
        """The effects but for what is sent."""
        self.sent += [effect.request for effect in effects if isinstance(effect, Send)]
        return [effect for effect in effects if not isinstance(effect, Send)]

    def answer(self, answer: Any, index: int = 0) -> list[Effect]:
        """Answer what was sent; by default the oldest."""
        return self.see(self.machine.answered(self.sent.pop(index), answer))

    def active(self, name: str = NAME, mine: Mine = MINE) -> None:
        self.see(self.machine.activate(name, "Account", 1))
        self.answer(mine)
        self.see(self.machine.started(name))

    def save(self, state: bytes, call: Any = None, once: OnceOutcome | None = None, name: str = NAME) -> list[Effect]:
        return self.see(self.machine.save(name, state, 1, call, once))


@pytest.fixture
def host() -> Host:
    host = Host()
    host.active()
    return host


# ---------------------------------------------------------------- claims


def test_an_agent_is_claimed_made_and_then_serves() -> None:
    host = Host()
    activations = host.machine
    assert activations.readiness(NAME) is Readiness.ABSENT
    assert host.see(activations.activate(NAME, "Account", 2, Made(b"args", b"opts"))) == []
    assert host.see(activations.activate(NAME, "Account", 2)) == [], "a claim belongs to the name"
    assert host.sent == [Claim(NAME, ME, 1, "Account", 2, arguments=b"args", options=b"opts")]
    assert activations.readiness(NAME) is Readiness.COMING
    assert host.answer(MINE) == [Activated(NAME, MINE)]
    assert activations.readiness(NAME) is Readiness.COMING
    assert host.see(activations.started(NAME)) == []
    assert activations.readiness(NAME) is Readiness.READY
    assert (activations.epoch(NAME), list(activations), len(activations)) == (100, [NAME], 1)


def test_each_activation_has_a_higher_number(host: Host) -> None:
    host.see(host.machine.release(NAME))
    assert host.answer(Released(True, 100)) == [Gone(NAME, "", 100)]
    host.see(host.machine.activate(NAME, "Account", 1))
    assert host.sent[0] == Claim(NAME, ME, 2, "Account", 1)


def test_another_owner_is_asked_for_once_and_the_agent_taken_if_it_is_dead() -> None:
    host = Host()
    for name in ("A/1", "A/2"):
        host.see(host.machine.activate(name, "A", 1))
    assert host.answer(Other(OTHER, 5)) == [Ask(OTHER)]
    assert host.answer(Other(OTHER, 6)) == []
    host.observers.bury(OTHER, 1)
    assert host.see(host.machine.declared(OTHER, True)) == []
    assert [(claim.name, claim.dead) for claim in host.sent if isinstance(claim, Claim)] == [
        ("A/1", OTHER),
        ("A/2", OTHER),
    ]
    assert host.answer(MINE) == [Activated("A/1", MINE)]
    host.see(host.machine.activate("A/3", "A", 1))
    assert host.answer(Other(OTHER, 7), 1) == []
    assert isinstance(host.sent[-1], Claim)
    assert host.sent[-1].dead == OTHER, "it is known to be dead"


def test_an_agent_of_a_living_owner_is_elsewhere() -> None:
    host = Host()
    host.see(host.machine.activate(NAME, "Account", 1))
    host.answer(Other(OTHER, 5))
    assert host.see(host.machine.declared(OTHER, False)) == [Elsewhere(NAME, OTHER, 5)]
    assert host.machine.readiness(NAME) is Readiness.ABSENT


def test_of_an_agent_that_is_claimed_unseen_the_answer_says_who_has_it_and_nobody_is_asked_for() -> None:
    host = Host()
    host.see(host.machine.activate(NAME, "Account", 1, unseen=True))
    assert host.sent == [Claim(NAME, ME, 1, "Account", 1, unseen=True)]
    assert host.answer(Other(OTHER, 5)) == [Elsewhere(NAME, OTHER, 5)]
    assert host.machine.readiness(NAME) is Readiness.ABSENT
    host.see(host.machine.activate(NAME, "Account", 1))
    assert host.answer(Other(OTHER, 5)) == [Ask(OTHER)], "it was looked for: its owner may be dead"


def test_an_agent_with_options_that_is_claimed_unseen_is_not_activated_and_may_be_claimed_again() -> None:
    host = Host()
    host.see(host.machine.activate(NAME, "Account", 1, unseen=True))
    assert host.answer(Unclaimed(Refusal.CHOSEN)) == [NotActivated(NAME, Refusal.CHOSEN, "")]
    host.see(host.machine.activate(NAME, "Account", 1))
    assert host.answer(MINE) == [Activated(NAME, MINE)]


def test_an_agent_that_goes_from_one_dead_owner_to_the_next_is_given_up() -> None:
    host = Host()
    host.see(host.machine.activate(NAME, "Account", 1))
    for number in range(machine.MAX_CLAIMS - 1):
        host.observers.bury(f"dead/{number}/x", None)
        assert host.answer(Other(f"dead/{number}/x", number)) == []
    assert host.answer(Other("dead/9/x", 9)) == [Elsewhere(NAME, "dead/9/x", 9)]


@pytest.mark.parametrize(
    "answer", [Unclaimed(Refusal.EXISTS, "Bot"), Unclaimed(Refusal.NEWER, "3"), Unclaimed(Refusal.FULL)]
)
def test_a_refused_claim_fails_what_waits_for_it(answer: Unclaimed) -> None:
    host = Host()
    host.see(host.machine.activate(NAME, "Account", 1))
    assert host.answer(answer) == [NotActivated(NAME, answer.why, answer.detail)]
    assert host.machine.phase(NAME) is None


def test_a_record_that_is_not_understood_fails_what_waits_for_it() -> None:
    host = Host()
    host.see(host.machine.activate(NAME, "Account", 1))
    assert host.answer(StoreError("garbled")) == [NotActivated(NAME, None, "garbled")]


def test_so_many_activations_run_at_once_and_one_that_waits_gives_its_place_away() -> None:
    host = Host()
    names = [f"A/{number}" for number in range(MAX_STARTING + 3)]
    for name in names:
        host.see(host.machine.activate(name, "A", 1))
    assert len(host.sent) == MAX_STARTING
    assert host.machine.phase(names[-1]) is Phase.QUEUED
    host.answer(MINE)
    host.see(host.machine.waits(names[0]))
    assert host.sent[-1].name == names[MAX_STARTING]
    host.answer(Unclaimed(Refusal.FULL))
    assert host.sent[-1].name == names[MAX_STARTING + 1]
    host.see(host.machine.started(names[0]))
    assert len(host.sent) == MAX_STARTING
    host.answer(MINE)
    host.see(host.machine.started(names[2]))
    assert host.sent[-1].name == names[MAX_STARTING + 2]


def test_a_claim_that_comes_too_late_is_given_back() -> None:
    host = Host()
    host.see(host.machine.activate(NAME, "Account", 1))
    assert host.see(host.machine.drop_all()) == [Elsewhere(NAME, "", 0)]
    assert host.answer(MINE) == []
    assert host.sent == [Release(NAME, ME, 100)]
    assert host.see(host.machine.activate(NAME, "Account", 1)) == [Elsewhere(NAME, "", 0)]


# ---------------------------------------------------------------- saves


def test_an_answer_leaves_when_all_saves_before_it_are_taken(host: Host) -> None:
    assert host.see(host.machine.settle(NAME, "read")) == [Taken(NAME, ("read",))]
    assert host.save(b"one", "first") == host.save(b"two", "second") == []
    assert host.see(host.machine.settle(NAME, "read")) == []
    assert host.save(b"two", "unchanged") == []
    assert [(save.revision, save.state) for save in host.sent if isinstance(save, Save)] == [(3, b"one"), (4, b"two")]
    assert host.answer(SAVED, 1) == [], "the first has no answer yet"
    assert host.answer(Saved(Verdict.TAKEN)) == [Taken(NAME, ("first", "second", "read", "unchanged"))]
    assert host.save(b"two", "unchanged") == [Taken(NAME, ("unchanged",))]


def test_a_state_that_is_too_large_is_refused_and_changes_nothing(host: Host) -> None:
    large = bytes(MAX_STATE_BYTES + 1)
    with pytest.raises(MessageTooLarge, match="at most 1048576"):
        host.save(large, "call")
    with pytest.raises(MessageTooLarge):
        host.machine.release(NAME, state=large)
    assert host.machine.readiness(NAME) is Readiness.READY
    assert host.sent == []


def test_a_state_as_it_was_loaded_is_not_written(host: Host) -> None:
    assert host.save(b"state", "call") == [Taken(NAME, ("call",))]
    assert host.see(host.machine.release(NAME, state=b"state", version=1)) == []
    assert host.sent == [Release(NAME, ME, 100)]


@pytest.mark.parametrize(("count", "size"), [(MAX_SAVES, 1), (4, MAX_SAVE_BYTES // 4)])
def test_the_turn_waits_when_too_much_is_under_way(host: Host, count: int, size: int) -> None:
    for number in range(count):
        assert host.machine.readiness(NAME) is Readiness.READY
        host.save(bytes([number]) * size)
    assert host.machine.readiness(NAME) is Readiness.FULL
    assert host.answer(SAVED) == [Room(NAME)]
    assert host.machine.readiness(NAME) is Readiness.READY


def test_a_fenced_activation_is_dropped_with_all_that_was_under_way(host: Host) -> None:
    host.save(b"one", "first")
    host.save(b"two", "second")
    dropped, note = host.answer(Saved(Verdict.FENCED))
    assert dropped == Dropped(NAME, DroppedFor.FENCED, ("first", "second"))
    assert isinstance(note, Note)
    assert host.answer(Saved(Verdict.FENCED)) == []
    assert host.machine.readiness(NAME) is Readiness.ABSENT
    assert (host.machine.counters.fenced, host.machine.counters.saves_refused) == (1, 1)


def test_a_last_save_that_comes_too_late_is_counted_as_refused(host: Host) -> None:
    host.see(host.machine.release(NAME, state=b"last", version=1))
    assert host.answer(Released(False)) == [Gone(NAME, "", 0)]
    assert host.machine.counters.saves_refused == 1


def test_how_long_an_activation_takes_is_counted_and_goes_on_with_the_next_incarnation() -> None:
    host = Host()
    host.see(host.machine.activate(NAME, "Account", 1))
    host.now = 0.2
    host.answer(MINE)
    host.now = 0.3
    host.see(host.machine.started(NAME))
    following = Activations("h1/2/b", Observers(15.0), lambda: 0.0, former=host.machine)
    assert following.counters.activations == 1
    assert following.durations.sum_s == pytest.approx(0.3)


def test_saves_that_redis_has_lost_are_healed_from_the_oldest_on_with_all_outcomes(host: Host) -> None:
    host.save(b"zero", once=OnceOutcome("t0", b"v0", 60))
    assert host.answer(SAVED) == []
    for number in (1, 2):
        host.save(b"%d" % number, number, OnceOutcome(f"t{number}", b"v%d" % number, 60))
    behind = Saved(Verdict.BEHIND, revision=3)
    assert host.answer(behind) == host.answer(behind) == []
    first, second = host.sent
    assert isinstance(first, Save)
    assert isinstance(second, Save)
    assert (first.heal, [outcome.task_id for outcome in first.outcomes]) == (True, ["t0", "t1"])
    assert (second.heal, [outcome.task_id for outcome in second.outcomes]) == (False, ["t2"])
    assert host.answer(SAVED) == [Taken(NAME, (1,))]
    assert host.answer(SAVED) == [Taken(NAME, (2,))]
    assert host.machine.counters.healed == 1


def test_outcomes_are_known_until_they_are_fetched_or_old(host: Host) -> None:
    host.save(b"one", "call", OnceOutcome("t1", b"v1", 60))
    assert host.machine.outcome_of(NAME, "t1") is None, "it is not in Redis yet"
    host.answer(SAVED)
    host.save(b"two", "call", OnceOutcome("t2", b"v2", 5))
    host.answer(SAVED)
    assert (host.machine.outcome_of(NAME, "t1"), host.machine.outcome_of(NAME, "t2")) == (b"v1", b"v2")
    host.machine.confirm(NAME, "unknown")
    host.now = 6
    assert host.machine.has_room_for_outcome(NAME)
    assert host.machine.outcome_of(NAME, "t2") is None
    host.save(b"three")
    assert isinstance(host.sent[0], Save)
    assert host.sent[0].forget == ("t2",)


PROGRAM = "0123456789abcdef" * 2


def test_outcomes_that_their_program_has_are_forgotten_with_the_next_save_and_no_late_copy_runs(host: Host) -> None:
    first, second, third = (f"{PROGRAM}-{number}-{back}" for number, back in ((5, 0), (6, 1), (9, 0)))
    for task_id, left_s in ((first, 60), (second, 40)):
        host.save(task_id.encode(), "call", OnceOutcome(task_id, b"v", left_s))
        host.answer(SAVED)
    host.machine.confirm(NAME, second)
    assert host.machine.outcome_of(NAME, first) == b"v", "it was open when the second one was made"
    host.machine.confirm(NAME, third)
    assert [host.machine.outcome_of(NAME, each) for each in (first, second)] == [None, None]
    assert [host.machine.is_over(NAME, each) for each in (first, second, third)] == [True, True, False]
    assert not host.machine.is_over(NAME, f"{PROGRAM[::-1]}-5-0"), "another program's"
    host.save(b"third", "call", OnceOutcome(third, b"v", 10))
    save = host.sent[0]
    assert isinstance(save, Save)
    assert save.forget == (first, second)
    assert save.outcomes == (Outcome(PROGRAM, 60, b"9"), Outcome(third, 10, b"v"))
    host.answer(SAVED)
    host.machine.confirm(NAME, f"{PROGRAM}-12-0")
    host.see(host.machine.release(NAME, "", b"last", 1))
    release = host.sent[0]
    assert isinstance(release, Release)
    assert release.last is not None
    assert (release.last.forget, release.last.outcomes) == ((third,), (Outcome(PROGRAM, 60, b"12"),))


def test_that_calls_are_over_is_known_to_the_next_home() -> None:
    host = Host()
    held = (Outcome(PROGRAM, 60, b"9"), Outcome(f"{PROGRAM}-9-0", 60, b"v"))
    host.active(mine=MINE._replace(outcomes=held))
    assert [host.machine.is_over(NAME, f"{PROGRAM}-{number}-0") for number in (8, 9, 10)] == [True, False, False]
    host.machine.confirm(NAME, f"{PROGRAM}-10-0")
    host.save(b"more")
    save = host.sent[0]
    assert isinstance(save, Save)
    assert (save.forget, save.outcomes) == ((f"{PROGRAM}-9-0",), (Outcome(PROGRAM, 60, b"10"),))


def test_outcomes_come_with_the_claim_and_are_never_dropped_for_room() -> None:
    host = Host()
    host.active(mine=MINE._replace(outcomes=tuple(Outcome(f"t{n}", 60, b"v") for n in range(MAX_OUTCOMES))))
    assert host.machine.outcome_of(NAME, "t7") == b"v"
    assert not host.machine.has_room_for_outcome(NAME)
    host.now = 61
    assert host.machine.has_room_for_outcome(NAME)


def test_a_call_whose_effect_was_there_gets_its_outcome_and_the_others_are_lost(host: Host) -> None:
    host.save(b"one", "again", OnceOutcome("t1", b"second", 60))
    host.see(host.machine.settle(NAME, "read"))
    host.save(b"two", "next")
    had = Saved(Verdict.HAD, b"first")
    assert host.answer(had) == [Dropped(NAME, DroppedFor.REPEATED, ("read", "next"), ("again", b"first"))]


def test_the_outcome_of_a_call_that_was_given_up_goes_to_no_other_call(host: Host) -> None:
    host.save(b"one", "again", OnceOutcome("t1", b"second", 60))
    host.see(host.machine.settle(NAME, "read"))
    assert host.machine.give_up(NAME, "again")
    assert host.answer(Saved(Verdict.HAD, b"first")) == [Dropped(NAME, DroppedFor.REPEATED, ("read",))]


def test_who_waits_too_long_for_redis_is_given_up_and_the_save_goes_on(host: Host) -> None:
    host.save(b"one", "first")
    host.save(b"two", "second")
    assert host.machine.give_up(NAME, "first")
    assert not host.machine.give_up(NAME, "first")
    assert not host.machine.give_up("A/none", "first")
    assert host.machine.give_up_all() == [(NAME, "second")]
    assert host.answer(SAVED) == []
    assert host.answer(SAVED) == []
    assert host.machine.readiness(NAME) is Readiness.READY


def test_a_call_that_has_waited_less_than_others_for_redis_waits_on(host: Host) -> None:
    host.save(b"one", "first")
    host.now += 1.5
    host.save(b"two", "second")
    host.see(host.machine.settle(NAME, "third"))
    host.now += 1.0
    assert host.machine.give_up_all(host.now - 2.0) == [(NAME, "first")]
    assert host.machine.give_up_all(host.now - 2.0) == []
    assert host.answer(SAVED) == []
    assert host.answer(SAVED) == [Taken(NAME, ("second", "third"))]


# ---------------------------------------------------------------- ends


def test_a_release_waits_for_the_saves_and_takes_the_last_state_along(host: Host) -> None:
    host.save(b"one", "call")
    assert host.see(host.machine.release(NAME, OTHER, b"last", 1)) == []
    assert host.machine.readiness(NAME) is Readiness.LEAVING
    assert host.see(host.machine.release(NAME)) == []
    assert len(host.sent) == 1
    assert host.answer(SAVED) == [Taken(NAME, ("call",))]
    assert host.sent == [Release(NAME, ME, 100, OTHER, Save(NAME, ME, 100, 4, 1, b"last"))]
    gone, note = host.answer(Released(True, 101))
    assert gone == Gone(NAME, OTHER, 101)
    assert isinstance(note, Note)
    assert host.machine.phase(NAME) is None


def test_a_release_over_a_revision_that_redis_has_lost_heals_it(host: Host) -> None:
    host.see(host.machine.release(NAME, "", b"last", 1))
    assert host.answer(Released(False, behind=True)) == []
    [release] = host.sent
    assert isinstance(release, Release)
    assert release.last is not None
    assert release.last.heal
    assert host.answer(Released(True, 100)) == [Gone(NAME, "", 100)]


def test_a_release_before_the_look_at_another_server_takes_the_unchanged_state_along(host: Host) -> None:
    host.save(b"one", "call")
    host.answer(SAVED)
    host.see(host.machine.look_again())
    host.see(host.machine.release(NAME, "", b"one", 1))
    assert host.answer(Located(ME, 100, 1, 3, "Account")) == []
    assert host.sent == [Release(NAME, ME, 100, "", Save(NAME, ME, 100, 4, 1, b"one"))]
    assert host.answer(Released(False, behind=True)) == []
    [release] = host.sent
    assert isinstance(release, Release)
    assert release.last is not None
    assert release.last.heal


def test_a_release_whose_answer_was_lost_is_over_all_the_same(host: Host) -> None:
    host.see(host.machine.release(NAME, OTHER))
    assert host.answer(Released(False)) == [Gone(NAME, OTHER, 0)]


@pytest.mark.parametrize(("answer", "done"), [(Deleted(False), True), (Deleted(True), False)])
def test_a_deletion_waits_for_the_saves(host: Host, answer: Deleted, done: bool) -> None:
    host.save(b"one", "call")
    host.see(host.machine.delete(NAME))
    assert host.answer(SAVED) == [Taken(NAME, ("call",))]
    assert host.sent == [Delete(NAME, ME, 100)]
    assert host.answer(answer) == [Removed(NAME, done)]


def test_what_is_not_there_cannot_be_saved_or_released() -> None:
    host = Host()
    for wrong in (lambda: host.save(b"x"), lambda: host.machine.release(NAME), lambda: host.machine.delete(NAME)):
        with pytest.raises(LookupError):
            wrong()
    host.see(host.machine.activate(NAME, "Account", 1))
    with pytest.raises(LookupError, match="not claimed"):
        host.machine.release(NAME)
    with pytest.raises(LookupError, match="not claimed"):
        host.machine.delete(NAME)


def test_the_end_of_an_incarnation_drops_what_is_left(host: Host) -> None:
    host.save(b"one", "call")
    host.see(host.machine.activate("A/coming", "A", 1))
    effects = host.see(host.machine.drop_all())
    assert effects == [Elsewhere("A/coming", "", 0), Dropped(NAME, DroppedFor.DEAD, ("call",))]
    assert len(host.machine) == 0


# ---------------------------------------------------------------- another server


def test_no_call_starts_on_another_server_before_its_record_was_looked_at(host: Host) -> None:
    host.see(host.machine.look_again())
    assert host.machine.readiness(NAME) is Readiness.SUSPECT
    host.see(host.machine.look_again())
    assert [type(request) for request in host.sent] == [Locate, Locate]
    assert host.answer(Located(ME, 100, 1, 3, "Account")) == [], "the answer to an earlier look"
    assert host.answer(Located(ME, 100, 1, 3, "Account")) == [Cleared(NAME)]
    assert host.machine.readiness(NAME) is Readiness.READY


@pytest.mark.parametrize(
    "located", [Located(OTHER, 100, 1, 3, ""), Located(ME, 99, 1, 3, ""), Located("", 0, 0, 0, "")]
)
def test_what_is_not_its_own_any_more_is_dropped(host: Host, located: Located) -> None:
    host.save(b"one", "call")
    host.see(host.machine.look_again())
    dropped, _ = host.answer(located, 1)
    assert dropped == Dropped(NAME, DroppedFor.FENCED, ("call",))


def test_a_state_that_was_lost_is_written_again_although_it_has_not_changed(host: Host) -> None:
    host.save(b"one", once=OnceOutcome("t1", b"v", 60))
    host.answer(SAVED)
    host.see(host.machine.look_again())
    assert host.answer(Located(ME, 100, 1, 3, "Account")) == [Cleared(NAME), Renew(NAME)]
    assert host.save(b"one") == []
    [save] = host.sent
    assert isinstance(save, Save)
    assert (save.revision, save.heal, [outcome.task_id for outcome in save.outcomes]) == (4, True, ["t1"])


def test_a_failover_while_the_agent_is_made_is_looked_at_before_it_serves() -> None:
    host = Host()
    host.see(host.machine.activate(NAME, "Account", 1))
    host.answer(MINE)
    host.see(host.machine.look_again())
    host.see(host.machine.started(NAME))
    assert host.machine.readiness(NAME) is Readiness.SUSPECT
    assert host.answer(Located(ME, 100, 1, 2, "Account")) == [Cleared(NAME), Renew(NAME)]
    assert host.see(host.machine.started(NAME)) == []
    assert host.see(host.machine.started("A/none")) == []


# ---------------------------------------------------------------- reminders


def test_a_reminder_is_written_with_a_state_that_has_not_changed(host: Host) -> None:
    changes = (Set("tea", host.machine.reminders_of(NAME).stamp(), 60.0, 0.0, b"what"),)
    assert host.see(host.machine.save(NAME, b"state", 1, "call", reminders=changes)) == []
    assert host.sent == [Save(NAME, ME, 100, 3, 1, b"state", reminders=changes)]
    standing = host.machine.reminder(NAME, "tea")
    assert standing is not None
    assert standing.what == b"what"
    assert host.machine.count_reminders(NAME) == 0, "Redis has not taken it"
    assert host.answer(SAVED) == [Taken(NAME, ("call",))]
    assert host.machine.count_reminders(NAME) == 1


def test_a_tick_is_over_when_its_end_is_on_its_way() -> None:
    host = Host()
    host.active(mine=MINE._replace(reminders=(Row("tea", "9.1", -1.0, 0.0, b""), Row("bread", "9.2", 1.0, 2.0, b""))))
    ends = (Done("tea", "9.1", "s"), Done("bread", "9.2", "t"))
    host.see(host.machine.save(NAME, b"new", 1, "call", reminders=ends))
    assert host.machine.reminder(NAME, "tea") is None
    bread = host.machine.reminder(NAME, "bread")
    assert bread is not None
    assert (bread.stamp, bread.due) == ("t", 3.0)
    assert host.answer(SAVED) == [Soon(NAME, 3.0), Taken(NAME, ("call",))], "others need not know of it yet"


def test_an_agent_without_a_state_saves_its_reminders_alone_and_takes_them_along(host: Host) -> None:
    other = "Clock/ann"
    host.active(other, Mine(50, 0, None, None, b"", b"", ()))
    change = Set("tea", "50.1", 60.0, 0.0, b"what")
    host.see(host.machine.save(other, None, 0, "call", reminders=[change]))
    assert host.sent == [Save(other, ME, 50, 0, 0, None, reminders=(change,))]
    assert host.answer(SAVED) == [Taken(other, ("call",))]
    host.see(host.machine.look_again())
    host.sent.clear()
    host.see(host.machine.release(other))
    [release] = host.sent
    assert isinstance(release, Release)
    assert release.last == Save(other, ME, 50, 1, 0, None), "Redis may have lost them"
    host.answer(Released(False, behind=True))
    [healing] = host.sent
    assert isinstance(healing, Release)
    assert healing.last == release.last._replace(heal=True, reminders=(Clear(), change))


def test_reminders_that_redis_has_lost_are_written_again_with_the_state_that_they_belong_to(host: Host) -> None:
    first, second = Set("tea", "100.1", 60.0, 0.0, b"1"), Set("tea", "100.2", 60.0, 0.0, b"2")
    for number, change in enumerate((first, second)):
        host.see(host.machine.save(NAME, b"%d" % number, 1, reminders=[change]))
    host.answer(SAVED)
    host.now = 20.0
    assert host.answer(Saved(Verdict.BEHIND, revision=0)) == []
    [healing] = host.sent
    assert isinstance(healing, Save)
    assert healing.reminders == (Clear(), first._replace(after_s=40.0), second)
    host.answer(Saved(Verdict.BEHIND, revision=0))
    assert host.sent == [healing], "once more, and no longer"


def test_many_arguments_of_reminders_count_as_what_is_under_way(host: Host) -> None:
    for number in range(5):
        assert host.machine.readiness(NAME) is Readiness.READY
        change = Set(f"r{number}", f"100.{number}", 1.0, 0.0, bytes(MAX_SAVE_BYTES // 5))
        host.see(host.machine.save(NAME, b"state", 1, reminders=[change]))
    assert host.machine.readiness(NAME) is Readiness.FULL
    while host.sent:
        effects = host.answer(SAVED)
    assert effects == [Soon(NAME, 1.0)]
    assert host.machine.readiness(NAME) is Readiness.READY


# ---------------------------------------------------------------- the form of the records


def test_requests_have_the_form_that_is_written_when_they_are_made(host: Host) -> None:
    activations = host.machine
    host.save(b"one")
    activations.write(2)
    host.save(b"two")
    host.see(activations.activate("Account/bob", "Account", 1))
    host.see(activations.release(NAME, state=b"three", version=1))
    host.answer(SAVED)
    host.answer(SAVED)
    forms = [request.form for request in host.sent if isinstance(request, Claim)]
    last = [request.last for request in host.sent if isinstance(request, Release)]
    assert (forms, [save.form for save in last if save is not None]) == ([2], [2])
    assert Activations(OTHER, host.observers, lambda: 0.0, former=activations).form == 2


def test_a_host_writes_only_the_new_form_when_all_that_it_asked_in_the_former_one_is_answered(host: Host) -> None:
    activations = host.machine
    assert activations.write(1)
    host.save(b"one")
    assert not activations.write(2)
    host.save(b"two")
    assert not activations.write(2)
    host.answer(SAVED)
    assert activations.write(2)

    host = Host()
    activations = host.machine
    host.see(activations.activate(NAME, "Account", 1))
    assert not activations.write(2), "a claim may make a record"
    host.answer(MINE)
    assert activations.write(2)

    host = Host()
    host.active()
    activations = host.machine
    host.see(activations.release(NAME, state=b"last", version=1))
    assert not activations.write(2), "a release has the last save"
    host.answer(Released(True, 100))
    assert activations.write(2)
