"""`traceparent` as a call carries it: read as W3C Trace Context says, and whatever is malformed is ignored."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqagents.tracing.context import Parent, name_of, parent_in, to_text

GOOD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_traceparent_names_trace_span_and_whether_it_is_sampled() -> None:
    parent = parent_in({"traceparent": GOOD, "tracestate": "a=1"})
    assert parent == Parent(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, 1, "a=1")
    assert to_text(parent.trace_id, parent.span_id, parent.flags) == GOOD


def test_a_later_version_may_say_more() -> None:
    assert parent_in({"traceparent": f"01{GOOD[2:]}-more"}) == parent_in({"traceparent": GOOD})


@pytest.mark.parametrize(
    "text",
    [
        "", "00", GOOD[:-1], GOOD.upper(), f"ff{GOOD[2:]}", f"{GOOD}-more", f"{GOOD}\n", 7, None, b"x", [GOOD],
        f"00-{'0' * 32}-b7ad6b7169203331-01", f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
        f"01{GOOD[2:]}-{'x' * 600}",
    ],
)  # fmt: skip
def test_what_is_malformed_is_ignored(text: Any) -> None:
    assert parent_in({"traceparent": text}) is None


@pytest.mark.parametrize("state", ["x" * 513, 7, None, ["a=1"]])
def test_a_state_that_is_too_long_or_no_text_is_left_out(state: Any) -> None:
    assert parent_in({"traceparent": GOOD, "tracestate": state}) == parent_in({"traceparent": GOOD})


def test_a_link_begins_a_trace_of_its_own() -> None:
    parent = parent_in({"tracelink": GOOD})
    assert parent is not None
    assert parent.links


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.integers(0, 255))
def test_what_is_written_is_read(trace_id: int, span_id: int, flags: int) -> None:
    text = to_text(trace_id, span_id, flags)
    assert len(text) == 55
    assert parent_in({"traceparent": text}) == Parent(trace_id, span_id, flags)


def test_spans_are_named_by_class_and_method() -> None:
    assert name_of("shop.stock:Inventory", "add") == "shop.stock.Inventory/add"
    assert name_of("", "add") == "_OTHER"
