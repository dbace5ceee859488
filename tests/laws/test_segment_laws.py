"""What holds for the ring of a segment and for the number of segments, whatever is asked for in whatever order."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from zmqagents.wire.segments.ring import ALIGN_BYTES, COUNT_MASK, Grants, Ring

CAPACITY = 20 * ALIGN_BYTES
STEPS = st.one_of(
    st.tuples(st.just("place"), st.integers(1, CAPACITY + ALIGN_BYTES)),
    st.tuples(st.just("take"), st.integers(1, 4)),
    st.tuples(st.just("lie"), st.integers(1, COUNT_MASK)),
)


@given(st.lists(STEPS, max_size=60))
def test_what_was_placed_and_not_taken_is_never_given_again(steps: list[tuple[str, int]]) -> None:
    ring = Ring(CAPACITY)
    placed: deque[tuple[int, int]] = deque()  # and not taken
    taken = told = 0
    for what, number in steps:
        if what == "take":
            for _ in range(min(number, len(placed))):
                placed.popleft()
                taken += 1
        elif what == "lie":
            claimed = (taken + number) & COUNT_MASK
            ahead = (claimed - told) & COUNT_MASK
            if ahead > len(placed) + taken - told:  # more than there were, or fewer than it has said
                assert ring.place(1, claimed) is None
        else:
            start = ring.place(number, taken)
            told = taken
            if start is not None:
                assert 0 <= start <= start + number <= CAPACITY
                assert all(start + number <= first or last <= start for first, last in placed)
                placed.append((start, start + number))
    assert ring.place(CAPACITY, taken) == (0 if not placed else None)


@given(st.lists(st.integers(1, CAPACITY), min_size=1, max_size=100))
def test_a_reader_that_takes_all_at_once_always_makes_room_at_the_start(sizes: list[int]) -> None:
    ring = Ring(CAPACITY)
    assert [ring.place(size, count) for count, size in enumerate(sizes)] == [0] * len(sizes)


@given(st.lists(st.integers(1, CAPACITY // 3 - ALIGN_BYTES), min_size=4, max_size=200))
def test_a_reader_that_is_one_frame_behind_keeps_no_frame_waiting(sizes: list[int]) -> None:
    ring = Ring(CAPACITY)
    for count, size in enumerate(sizes):
        assert ring.place(size, max(0, count - 1)) is not None


def test_counts_go_round() -> None:
    ring = Ring(CAPACITY)
    for count in (0, 1, 2):
        assert ring.place(1, count) == 0
    near = Ring(CAPACITY)
    assert near.place(1, COUNT_MASK) is None, "one fewer than none"
    assert near.place(1, 0) == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=200), st.integers(1, 12))
def test_no_user_has_more_segments_than_its_share(steps: list[tuple[str, bool]], most: int) -> None:
    grants = Grants(most)
    had = dict.fromkeys("abc", 0)
    for user, gives_back in steps:
        if gives_back and had[user]:
            grants.give_back(user)
            had[user] -= 1
        elif not gives_back:
            may = sum(had.values()) < most and 4 * (had[user] + 1) <= 3 * most
            assert grants.take(user) is may
            had[user] += may
        assert len(grants) == sum(had.values()) <= most
