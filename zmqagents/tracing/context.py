"""The names of spans, and the texts by which a call carries its trace, ``traceparent`` and ``tracestate`` of the W3C.

Read and written here and not by OpenTelemetry's propagators, which take several times as long.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["ATTRIBUTES", "MAX_STATE_CHARS", "OTHER", "SAMPLED", "Parent", "name_of", "parent_in", "to_text"]

OTHER = "_OTHER"  # the name of calls whose class is not known here
ATTRIBUTES = "_attribute"  # the method's name for all reads of attributes: their names are chosen by callers
MAX_STATE_CHARS = 512
SAMPLED = 1
TEXT_CHARS = 55  # of a ``traceparent`` of the version that is written here
_TEXT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


class Parent(NamedTuple):
    """The span in which a call was made; ``links``: the call begins a trace of its own, linked to that span."""

    trace_id: int
    span_id: int
    flags: int
    state: str = ""
    links: bool = False


@functools.lru_cache(maxsize=4096)
def name_of(class_name: str, method: str) -> str:
    """The name of a span: ``module.Class/method``."""
    return f"{class_name.replace(':', '.')}/{method}" if class_name else OTHER


def to_text(trace_id: int, span_id: int, flags: int) -> str:
    """A ``traceparent``."""
    return f"00-{trace_id:032x}-{span_id:016x}-{flags & 0xFF:02x}"


def parent_in(options: Mapping[str, Any]) -> Parent | None:
    """The span that the options of a call name; None if they name none, or what they say is malformed."""
    text, links = options.get("traceparent"), False
    if text is None and "tracelink" in options:
        text, links = options["tracelink"], True
    if not isinstance(text, str) or len(text) > MAX_STATE_CHARS or not _TEXT.fullmatch(text):
        return None
    trace_id, span_id, version = int(text[3:35], 16), int(text[36:52], 16), text[:2]
    if not (trace_id and span_id) or version == "ff" or (version == "00" and len(text) != TEXT_CHARS):
        return None
    state = options.get("tracestate", "") if len(options) > 1 else ""
    if not isinstance(state, str) or len(state) > MAX_STATE_CHARS:
        state = ""
    return Parent(trace_id, span_id, int(text[53:55], 16), state, links)
