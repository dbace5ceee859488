"""What agents offer to programs that speak JSON: their methods with schemas, of those that such programs may see."""

from __future__ import annotations

import bisect
import contextlib
import inspect
import itertools
import weakref
from collections.abc import Callable, Collection
from operator import attrgetter
from typing import Any

from ... import errors
from ...agents.base import AgentBase
from ...agents.factories.factory import Maker
from ...agents.schemas.methods import offered
from ...agents.spec import ClassSpec
from ...scheduler.records import AgentRecord

__all__ = ["PAGE_ROWS", "offers_of"]

PAGE_ROWS = 100

_known: weakref.WeakKeyDictionary[type, tuple[ClassSpec, dict[str, Any]]] = weakref.WeakKeyDictionary()


def offers_of(
    records: list[AgentRecord], ids: Collection[str], after: int, find: Callable[[str], Maker]
) -> dict[str, Any]:
    """A page of those of ``records`` behind the number ``after`` that are exposed, by their class or among ``ids``.

    ``find``: the class of a name. For the thread that makes lists. A dict: agents, and next, the ``after`` of the next
    page, None at the last one. Each agent: agent_id, class, doc, exposed (by its class), methods (see `offered`).
    """
    start, wanted = bisect.bisect_right(records, after, key=attrgetter("number")), frozenset(ids)
    shown = (record for record in records[start:] if record.made and (record.spec.exposed or record.agent_id in wanted))
    page = list(itertools.islice(shown, PAGE_ROWS + 1))
    more, page = len(page) > PAGE_ROWS, page[:PAGE_ROWS]
    return {"agents": [_row_of(record, find) for record in page], "next": page[-1].number if more else None}


def _row_of(record: AgentRecord, find: Callable[[str], Maker]) -> dict[str, Any]:
    spec = record.spec
    doc = "" if spec.doc == inspect.getdoc(AgentBase) else spec.doc  # what its class has inherited tells nothing of it
    return {
        "agent_id": record.agent_id, "class": spec.name, "doc": doc, "exposed": spec.exposed,
        "methods": _methods_of(spec, _class_of(record, find)),
    }  # fmt: skip


def _class_of(record: AgentRecord, find: Callable[[str], Maker]) -> type | None:
    """The class of an agent, if this process has it."""
    if record.instance is not None:
        return type(record.instance)
    with contextlib.suppress(errors.UnknownClass):
        made_by = find(record.spec.name)
        return made_by if isinstance(made_by, type) else None
    return None


def _methods_of(spec: ClassSpec, cls: type | None) -> dict[str, Any]:
    if cls is None:
        return offered(spec, None)
    known = _known.get(cls)
    if known is None or known[0].methods.keys() != spec.methods.keys():
        known = _known[cls] = spec, offered(spec, cls)
    return known[1]
