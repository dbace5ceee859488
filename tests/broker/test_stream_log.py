"""`StreamLog` alone: what is sent again after a broken connection."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zmqagents.broker.stream_log import StreamLog
from zmqagents.wire.messages import MAX_TIME_MS, STREAM_WINDOW


@given(st.lists(st.sampled_from(["make", "arrive", "take", "credit arrives", "cut"]), max_size=120), st.booleans())
def test_a_reader_gets_each_item_once_whatever_is_lost(steps: list[str], at_the_turn: bool) -> None:
    """A reader of a stream over a line that is cut; in one run in two the numbers pass 2 ** 32."""
    start = MAX_TIME_MS - 20 if at_the_turn else 0
    log = StreamLog(start)
    made = sent_credit = 0
    credit = STREAM_WINDOW
    line: list[int] = []  # items on their way
    credits = 0  # on their way back
    got: list[int] = []
    taken = 0
    for step in steps:
        if step == "make" and credit:
            log.note((start + made) & MAX_TIME_MS, (b"x",))
            line.append(made)
            made, credit = made + 1, credit - 1
        elif step == "arrive" and line:
            got.append(line.pop(0))
        elif step == "take" and taken < len(got):
            taken, sent_credit, credits = taken + 1, sent_credit + 1, credits + 1
        elif step == "credit arrives" and credits:
            credits -= 1
            credit += 1
            log.grant(1)
        elif step == "cut":
            credits = 0
            found = log.resume((start + len(got)) & MAX_TIME_MS, sent_credit)
            assert found is not None
            lost_credit, items = found
            credit += lost_credit
            line = [(number - start) & MAX_TIME_MS for number, _ in items]
        assert len(log) <= STREAM_WINDOW
        assert got == list(range(len(got)))
    assert [*got, *line] == list(range(made))


def test_a_log_that_was_dropped_cannot_go_on_but_for_a_reader_that_has_all() -> None:
    log = StreamLog()
    for number in range(3):
        log.note(number, (b"xy",))
    assert log.bytes == 6
    log.drop()
    assert (log.bytes, log.resume(3, 0)) == (0, (0, []))
    assert log.resume(2, 0) is None
