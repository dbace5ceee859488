"""What clients ask of the hosts of a cluster, and what hosts say to each other. Types alone; the wire is ZA/1.

*An agent of a cluster* is addressed by its reference, ``cluster:shop/Account/ann`` (`naming.Reference`), wherever a
message has the id of an agent: in CALL, in the option ``id`` of a management request, in proxies. Nothing else of a
CALL is different: no option is needed, time, flags, streams, cancel and DETACHED mean what they always mean. Any host
of the cluster takes it: it runs the agent, or passes the call on to the host that does. If there is no such agent, it
is made: its class is the part of the name before the slash, found by its short name, and its constructor gets no
argument.

A host that is no member of the cluster answers `UnknownCluster`. The WELCOME of a member says ``cluster``: its name. It
is an agent of this host alone whose id begins otherwise.

*Management requests* (`messages.Op`), with their options and answers:

==============  ======================================================================================================
create_agent    Options id (a reference), class, if_exists ("error" or "get") and those of agents; the arguments are
                kept. As always it gives the description of the agent. `AgentExists`: there is one, or one of another
                class
delete_agent    id. State and all go. True, also if there is none
describe_agent  id. As always; makes nothing
where_is_agent  id. A `WhereRow`
get_host_list   A list of `HostRow`, that of the host which is asked first
get_agent_list  cluster: True, prefix, after, most. An `AgentPage`
get_event_list  after, most. An `EventPage`
move_agent      id, to: a server id, an address, or nothing. A `WhereRow` when it is done. Needs the role admin
drain_host      grace_s. True at once; then the host gives its agents away and ends. Needs the role admin
upgrade_records step, form, after: one step of bringing all records to another form, see `store.forms`. A `FormsRow`
                for "look", "raise" and "settle", which say what is so afterwards; for "rewrite" a `RewrittenRow`, for
                one page. Needs the role admin
==============  ======================================================================================================

``get_server_info`` has ``cluster``: the name and the figures of this member, None on a host without a cluster.

*Errors* that callers see beside those of any call: `UnknownCluster`, `NoHost`, `TooOld`, `AgentExists`,
`StoreUnavailable` (Redis is away; nothing ran), `CallLost` (the host has died, or Redis has not taken the state within
2 s), `Fenced` (a CallLost: the agent has another home by now).

*Hints.* A client whose HELLO says ``hints``: True is told by HINT, before the answer, where the agent of a call is that
its host has passed on. It may go there directly with the next call, but only while none of its calls to that agent is
unanswered: calls that go two ways may overtake each other. A hint is used with this cluster's server key alone, and of
two the one with the higher epoch counts. A client is never sent the code ELSEWHERE.

*Between members.* A host passes a call on as a CALL of its own, over a connection that has the role member (on one
machine, for one user: admin), with the body unread and the options

========  =============================================================================================================
task      the task id that the call has at the first host
user      the user who made it, for whom the home counts it
hop       1: it was passed on. Then it is not passed on again: it is answered with the code ELSEWHERE (`messages.Home`)
leg       rises each time that the sender goes another way to the agent. Once a call of a leg has come back, all that
          were sent behind it on that leg do, wherever the agent is by then: none overtakes another
activate  True: placement has chosen this host; it claims the agent if nobody has it
========  =============================================================================================================

From anybody else these options are `PermissionRefused`. With ELSEWHERE or `CannotServe` nothing was executed.
"""

from __future__ import annotations

from typing import TypedDict

__all__ = [
    "AgentPage", "AgentRow", "EventPage", "EventRow", "FormsRow", "HostRow", "ReaderRow", "ReminderRow", "RewrittenRow",
    "WhereRow",
]  # fmt: skip


class ReminderRow(TypedDict):
    """A reminder of an agent. ``due_s``: in so many seconds, below 0 when it is late; ``every_s``: 0 for that once."""

    name: str
    method: str
    due_s: float
    every_s: float


class WhereRow(TypedDict):
    """Where an agent is. ``server_id``, ``address``, ``incarnation``: "" if nobody has it now.

    ``epoch`` and ``revision``: of its record; both are 0 if there is no such agent, and the first call makes it.
    ``reminders``: the next one first.
    """

    agent: str
    server_id: str
    address: str
    incarnation: str
    epoch: int
    revision: int
    reminders: list[ReminderRow]


class HostRow(TypedDict):
    """One member, as it has described itself with its last beat.

    ``state``: held, lapsed or draining. ``lease_left``: the part of its lease that is left, 0 to 1. ``agents``: of the
    cluster. ``figures``: counts since its start, among them claims, fenced, relayed, saves. ``forms``: the oldest and
    the newest form of records that it reads; ``writes``: the one that it writes, 0 if it has just joined.
    """

    incarnation: str
    server_id: str
    address: str
    version: str
    state: str
    lease_left: float
    labels: dict[str, str]
    classes: dict[str, int]  # with the state versions that it reads
    load: float
    agents: int
    running: int
    capacity: int
    figures: dict[str, int]
    forms: list[int]
    writes: int


class AgentRow(TypedDict):
    """An agent of the cluster. ``address``: "" if nobody has it now."""

    agent: str
    server_id: str
    address: str
    epoch: int


class AgentPage(TypedDict):
    """Some agents; ``following`` is the option ``after`` of the next page, "" at the end."""

    rows: list[AgentRow]
    following: str


class ReaderRow(TypedDict):
    """A member, and the forms of records that it knows; see `HostRow`. ``reads`` is [0, 0] where that is not known."""

    incarnation: str
    server_id: str
    address: str
    version: str
    state: str
    lease_s: float
    reads: list[int]
    writes: int


class FormsRow(TypedDict):
    """``form``: that records are written in; ``former``: the oldest that one may have; ``hosts``: all members."""

    form: int
    former: int
    hosts: list[ReaderRow]


class RewrittenRow(TypedDict):
    """So many records were looked at, so many were older; ``following`` is the option ``after`` of the next page."""

    seen: int
    rewritten: int
    following: str


class EventRow(TypedDict):
    """What has happened: ``kind`` is joined, draining, died, moved, fenced, or upgraded (all records)."""

    id: str
    time_s: float  # since 1970, by Redis's clock
    kind: str
    what: str


class EventPage(TypedDict):
    """The events behind ``after``, the oldest first; ``following`` is the option ``after`` of the next page."""

    rows: list[EventRow]
    following: str
