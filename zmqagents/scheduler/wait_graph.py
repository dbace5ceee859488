"""The wait-for graph: which calls can never end because they wait for each other.

It is never stored, only read off the records when a wait begins. A call needs *all* that it has an edge to:

    WAITING  the calls that its code waits for (with ``wait_any``: one of them); while it waits for another host,
             the calls that came back from there in its own chain
    PARKED   the calls whose results are its arguments
    QUEUED   the turn of its agent
    a turn   *one* of the calls that hold it

READY and RUNNING calls move by themselves and need nothing, so they are *live*, and so is whatever has enough
live needs. What is left is stuck. With one-of-many needs a cycle alone is no deadlock, hence this fixed point
instead of a mere search for cycles. Its cost is the part of the graph that can be reached from the new wait.

Before each new wait nothing is stuck (the dispatcher refuses the wait that would change that), so whatever a new
wait makes stuck includes the call that begins it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from ..errors import DeadlockError
from .records import AgentRecord, State, Ticket
from .seals import Seals

__all__ = [
    "add_deps", "add_edges", "ancestors", "closing_cycle", "deadlock_error", "drop_deps", "drop_edge", "drop_edges",
    "note_chain", "reenters", "stuck_with",
]  # fmt: skip

Node = Ticket | AgentRecord


def stuck_with(start: Ticket, targets: Collection[Ticket] | None = None) -> list[Node]:
    """All that can never end if ``start`` waits for ``targets`` (None: for what its record says); [] if it can."""
    if targets is not None and _moves(start, targets):
        return []
    missing: dict[Node, int] = {}  # live needs that each node lacks
    users: dict[Node, list[Node]] = {}
    live: list[Node] = []
    to_see: list[Node] = [start]
    while to_see:
        node = to_see.pop()
        if node in missing:
            continue
        needs = _needs(node) if node is not start or targets is None else list(targets)
        one_of = not isinstance(node, Ticket) or node.wait_any
        missing[node] = min(len(needs), 1) if one_of else len(needs)
        if not needs:
            live.append(node)
        for need in needs:
            users.setdefault(need, []).append(node)
            if need not in missing:
                to_see.append(need)
    while live:
        node = live.pop()
        if node is start:
            return []
        for user in users.get(node, ()):
            missing[user] -= 1
            if missing[user] == 0:
                live.append(user)
    return [node for node, lacks in missing.items() if lacks > 0]


def closing_cycle(start: Ticket, stuck: Iterable[Node], targets: Collection[Ticket] | None = None) -> list[Ticket]:
    """The shortest way round: from ``start`` through what is ``stuck`` and back, ``start`` first and last."""
    allowed = set(stuck)
    came_from: dict[Node, Node] = {}
    layer: list[Node] = [start]
    while start not in came_from:
        following: list[Node] = []
        for node in layer:
            for need in _needs(node) if node is not start or targets is None else targets:
                if need in allowed and need not in came_from:
                    came_from[need] = node
                    following.append(need)
        layer = following
    way = [start]
    node = came_from[start]
    while node is not start:
        if isinstance(node, Ticket):
            way.append(node)
        node = came_from[node]
    return [start, *reversed(way)]


def deadlock_error(cycle: list[Ticket]) -> DeadlockError:
    """The error that refuses ``cycle``, whose first call is also its last; says where it leaves this host."""
    labels = [cycle[0].label]
    for waiter, target in pairwise(cycle):
        if target in (waiter.returns or ()) and target not in (waiter.waits_for or ()):
            labels.append("other hosts")
        labels.append(target.label)
    error = DeadlockError(f"deadlock: {' -> '.join(labels)}: each waits for the next, so none of them would ever end")
    error.chain = labels
    return error


def ancestors(ticket: Ticket) -> Iterator[Ticket]:
    """The calls of this host that ``ticket`` was made in and that have not returned, nearest first."""
    parent = ticket.parent
    while parent is not None:
        yield parent
        parent = parent.parent


def reenters(ticket: Ticket) -> bool:
    """True if ``ticket`` queues at a reentrant agent whose turn a call further up its chain has."""
    record = ticket.agent
    if ticket.state is not State.QUEUED or not record.options.reentrant:
        return False
    return any(holder.task_id in ticket.came_by for holder in record.holders) or any(
        link.turn and link.agent is record for link in ancestors(ticket)
    )


def _moves(start: Ticket, targets: Collection[Ticket]) -> bool:
    """The common case, seen without the graph: what ``start`` waits for runs."""
    enough = any if start.wait_any else all
    return enough(
        (target.state is State.RUNNING or target.state is State.READY) and target is not start for target in targets
    )


def _needs(node: Node) -> list[Node]:
    """What must end before ``node`` can; all of it, or for turns and ``wait_any`` one of it."""
    if isinstance(node, AgentRecord):
        return list(node.holders)
    if node.state is State.WAITING:
        outside = node.outside
        if outside is None:
            return list(node.waits_for or ())
        backs = [
            back
            for back in node.returns or ()
            if not outside or back.task_id in outside or not outside.isdisjoint(back.came_by)
        ]
        return [*(node.waits_for or ()), *backs]
    if node.state is State.QUEUED:
        return [node.agent]
    if node.state is State.PARKED:
        return [target for target in (node.deps or {}).values() if target is not None]
    return []


# ---------------------------------------------------------------- edges


def add_edges(ticket: Ticket, targets: Iterable[Ticket]) -> None:
    """``ticket`` waits for ``targets`` too."""
    if ticket.waits_for is None:
        ticket.waits_for = {}
    for target in targets:
        ticket.waits_for[target] = ticket.waits_for.get(target, 0) + 1
        if target.waiters is None:
            target.waiters = {}
        target.waiters[ticket] = None


def drop_edge(ticket: Ticket, target: Ticket) -> None:
    """Take back one wait for ``target``."""
    waits = ticket.waits_for
    if waits is None or target not in waits:
        return
    waits[target] -= 1
    if not waits[target]:
        del waits[target]
        if target.waiters is not None:
            target.waiters.pop(ticket, None)


def drop_edges(ticket: Ticket) -> None:
    """``ticket`` waits for nothing any more."""
    for target in ticket.waits_for or ():
        if target.waiters is not None:
            target.waiters.pop(ticket, None)
    ticket.waits_for = ticket.outside = None


def add_deps(ticket: Ticket, deps: Iterable[str], tasks: Mapping[str, Ticket]) -> list[str]:
    """``ticket`` needs the results of ``deps``; gives those not among ``tasks``: finished, or unknown."""
    ticket.deps = {}
    ticket.dep_replies = {}
    missing = []
    for task_id in dict.fromkeys(deps):
        target = tasks.get(task_id)
        if target is None or target is ticket:
            ticket.deps[task_id] = None
            missing.append(task_id)
            continue
        ticket.deps[task_id] = target
        if target.dependents is None:
            target.dependents = {}
        target.dependents[ticket] = None
    return missing


def drop_deps(ticket: Ticket) -> None:
    """``ticket`` needs no results any more."""
    for target in (ticket.deps or {}).values():
        if target is not None and target.dependents is not None:
            target.dependents.pop(ticket, None)


def note_chain(
    ticket: Ticket, chain: Sequence[str], tasks: Mapping[str, Ticket], seals: Seals, *, trusted: bool = False
) -> str:
    """``ticket`` came through another host, made in ``chain``; those of its calls that are on this host learn of it.

    What names a call of ours without our seal is left out: anybody may have written that. Returns one such task id, ""
    if there is none. ``trusted``: a member of the cluster has sent it, to which calls are passed on under their ids.
    """
    believed, forged = {}, ""
    for entry in chain:
        task_id = seals.task_id_of(entry)
        if (task_id or entry) in tasks and not (task_id and (trusted or seals.is_ours(entry))):
            forged = task_id or entry
        elif task_id:
            believed[task_id] = entry
    ticket.came_by, ticket.sealed = tuple(believed), tuple(believed.values())
    for task_id in believed:
        link = tasks.get(task_id)
        if link is not None:
            if link.returns is None:
                link.returns = {}
            link.returns[ticket] = None
    return forged
