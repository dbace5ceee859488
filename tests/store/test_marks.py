"""The marks of results that are gone, in the store of one host: a table of 65,536 that is always full."""

from __future__ import annotations

import contextlib
import random
from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from zmqagents.errors import MessageTooLarge
from zmqagents.store import State, StoreLimits
from zmqagents.store.memory import MemoryStore

TASKS = [f"client-{number}" for number in range(8)]
TOO_LARGE = bytes(20_000)


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.sampled_from(TASKS), st.sampled_from(["lose", "refuse", "put", "forget"])), max_size=300),
)
def test_the_oldest_marks_go_and_what_is_forgotten_takes_no_place(most: int, steps: list[tuple[str, str]]) -> None:
    """Beside a plain table of the marks in their order."""
    store = MemoryStore(StoreLimits(max_bytes=10_000, max_tombstones=most), clock=lambda: 0.0)
    marks: OrderedDict[str, State] = OrderedDict()
    done: set[str] = set()

    def mark(task_id: str, state: State) -> None:
        if task_id in done or task_id in marks:
            return
        if len(marks) == most:
            marks.popitem(last=False)
        marks[task_id] = state

    for task_id, step in steps:
        if step == "lose":
            store.lose(task_id)
            mark(task_id, State.LOST)
        elif step == "refuse":
            with contextlib.suppress(MessageTooLarge):
                store.put(task_id, TOO_LARGE)
            mark(task_id, State.EXPIRED)
        elif step == "put":
            store.put(task_id, b"x")
            if marks.get(task_id) is not State.LOST:
                marks.pop(task_id, None)
                done.add(task_id)
        else:
            store.forget(task_id)
            marks.pop(task_id, None)
            done.discard(task_id)
        assert store.stats().tombstones == len(marks)
        for each in TASKS:
            expected = State.DONE if each in done else marks.get(each, State.UNKNOWN)
            assert store.get(each).state is expected


def test_to_forget_marks_takes_no_time_that_grows_with_their_number() -> None:
    store = MemoryStore(StoreLimits(max_tombstones=50_000))
    tasks = [f"client-{number}" for number in range(50_000)]
    for task_id in tasks:
        store.lose(task_id)
    random.Random(7).shuffle(tasks)
    for task_id in tasks:  # 50,000 looks through 50,000 would take half a minute
        store.forget(task_id)
    assert store.stats().tombstones == 0
    assert store.get(tasks[0]).state is State.UNKNOWN
