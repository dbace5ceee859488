"""Whether two values are the same to whoever gets one for the other."""

from __future__ import annotations

from typing import Any


def same(got: Any, sent: Any) -> bool:
    """Equal, with the same types and the same order, at every depth."""
    if type(got) is not type(sent):
        return False
    if isinstance(sent, (list, tuple)):
        return len(got) == len(sent) and all(map(same, got, sent))
    if isinstance(sent, dict):
        return same(list(got), list(sent)) and same(list(got.values()), list(sent.values()))
    if isinstance(sent, (set, frozenset)):  # no order: pair them by hash and equality
        mine = {item: item for item in got}
        return got == sent and all(same(mine[item], item) for item in sent)
    return bool(got == sent) and repr(got) == repr(sent)  # repr tells zones and signs of zero apart
