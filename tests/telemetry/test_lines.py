"""Log records as text and JSON, the limit on floods, and the ring of the latest lines."""

from __future__ import annotations

import json
import logging
import re
import sys
from typing import Any

import pytest

from zmqagents.telemetry.lines import JsonLines, RateLimit, TextLines, fields_of
from zmqagents.telemetry.ring import Ring, RingHandler


def record(message: str = "done: %s", *args: Any, **more: Any) -> logging.LogRecord:
    exc_info = more.pop("exc_info", None)
    found = logging.LogRecord("zmqagents.calls", logging.WARNING, __file__, 1, message, args, exc_info)
    vars(found).update(fields_of(**more))
    return found


def test_a_json_line_has_the_fields_that_the_record_brings_and_no_others() -> None:
    line = JsonLines().format(record("done: %s", "ä\nb", agent="r1", class_="m:Reader", task_id="c-1", user=""))
    assert "\n" not in line
    event = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", event.pop("ts"))
    assert event == {
        "level": "WARNING", "logger": "zmqagents.calls", "msg": "done: ä\nb", "agent": "r1", "class": "m:Reader",
        "task_id": "c-1",
    }  # fmt: skip


def test_a_line_of_text_ends_in_what_it_is_about_and_a_traceback_follows() -> None:
    failed = record("r1.load failed", agent="r1", method="load", host="h", class_="m:Reader")
    failed.remote_traceback = "Traceback:\n  line 1\nValueError: no\n"
    text = TextLines().format(failed)
    first, *rest = text.splitlines()
    assert first.endswith(" WARNING zmqagents.calls: r1.load failed [agent=r1 method=load]")
    assert rest == ["  Traceback:", "    line 1", "  ValueError: no"]
    assert json.loads(JsonLines().format(failed))["exc"].endswith("ValueError: no\n")


def test_an_exception_of_this_process_is_shown_too() -> None:
    try:
        raise KeyError("gone")
    except KeyError:
        event = json.loads(JsonLines().format(record("it failed", exc_info=sys.exc_info())))
    assert event["exc"].startswith("Traceback (most recent call last)")
    assert event["exc"].endswith("KeyError: 'gone'")


class Hostile:
    def __str__(self) -> str:
        raise ValueError("no text")


def test_a_record_whose_arguments_cannot_be_shown_is_a_line_all_the_same() -> None:
    assert "ValueError while" in json.loads(JsonLines().format(record("x %s", Hostile())))["msg"]
    assert "TypeError while" in json.loads(JsonLines().format(record("x %d", "y")))["msg"]


def test_a_flood_of_one_kind_is_cut_to_a_burst_and_one_line_a_second_with_the_count() -> None:
    limit = RateLimit(burst=3, every_s=1.0)
    assert [limit.take("a", 10.0) for _ in range(5)] == [0, 0, 0, None, None]
    assert limit.take("b", 10.0) == 0, "another kind has a burst of its own"
    assert limit.take("a", 10.5) is None
    assert limit.take("a", 11.1) == 3
    assert limit.take("a", 11.2) is None
    assert [limit.take("a", 60.0) for _ in range(4)] == [1, 0, 0, None], "a pause gives the burst back, and no more"


def test_the_limit_remembers_a_bounded_number_of_kinds() -> None:
    limit = RateLimit(burst=1)
    for number in range(RateLimit.MAX_KINDS + 1):
        limit.take(number, 1.0)
    assert limit.take(RateLimit.MAX_KINDS, 1.0) is None
    assert limit.take(0, 1.0) == 0, "the oldest one is forgotten"


def ring_of(count: int, size: int = 10) -> Ring:
    ring = Ring(size)
    for number in range(1, count + 1):
        ring.add({"msg": f"line {number}", "agent": "even" if number % 2 == 0 else "odd"})
    return ring


def texts(page: dict[str, Any]) -> list[str]:
    return [line["msg"] for line in page["lines"]]


def test_a_ring_keeps_the_latest_lines_and_says_how_many_were_missed() -> None:
    page = ring_of(15).page()
    assert texts(page) == [f"line {number}" for number in range(6, 16)]
    assert (page["next"], page["more"], page["left_out"]) == (15, False, 5)


def test_whoever_follows_gets_each_line_once_in_pages() -> None:
    ring = ring_of(7)
    first = ring.page(most=5)
    assert (texts(first)[-1], first["next"], first["more"]) == ("line 5", 5, True)
    ring.add({"msg": "line 8"})
    second = ring.page(first["next"])
    assert texts(second) == ["line 6", "line 7", "line 8"]
    assert texts(ring.page(second["next"])) == []


def test_the_last_lines_may_be_asked_for_and_those_of_one_agent() -> None:
    ring = ring_of(9)
    assert texts(ring.page(-2)) == ["line 8", "line 9"]
    assert texts(ring.page(-2, "even")) == ["line 6", "line 8"]
    assert texts(ring.page(-100, "even")) == ["line 2", "line 4", "line 6", "line 8"]
    nothing = ring.page(-5, "nobody")
    assert (nothing["lines"], nothing["next"]) == ([], 9)


def test_a_number_of_a_former_process_begins_anew() -> None:
    assert texts(ring_of(2).page(500)) == ["line 1", "line 2"]


def test_a_ring_cuts_long_texts_and_keeps_the_end_of_a_traceback() -> None:
    ring = Ring()
    long = record("m" * 9000)
    long.remote_traceback = "x\n" * 4500 + "end"
    RingHandler(ring).emit(long)
    (line,) = ring.page()["lines"]
    assert len(line["msg"]) == len(line["exc"]) == 4096
    assert line["exc"].endswith("end")


EVIL = "x\n2026-11-30T02:00:00.000+00:00 INFO zmqagents.host: forged\x1b]0;owned\x07\x1b[31m\u202e\x9b\x7f\r"


@pytest.mark.parametrize("lines", [TextLines(), JsonLines()])
def test_texts_of_callers_are_written_so_that_no_terminal_obeys_them_and_no_line_is_forged(
    lines: logging.Formatter,
) -> None:
    evil = record("failed: %s", EVIL, agent=EVIL)
    evil.name, evil.remote_traceback = f"a{EVIL}", f"Traceback\n  File 'a'\nValueError: {EVIL}"
    text = lines.format(evil)
    assert text.replace("\n", "").isprintable()
    assert not any(line.startswith("2026-11-30T02:00:00.000") for line in text.split("\n"))
    if isinstance(lines, JsonLines):
        told = json.loads(text)
        assert (told["msg"], told["logger"], told["agent"]) == (f"failed: {EVIL}", f"a{EVIL}", EVIL)
    assert "größer ✓" in lines.format(record("größer ✓"))
