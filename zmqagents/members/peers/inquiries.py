"""What clients ask of a cluster: its hosts, its agents, where one is, what has happened; and that an agent moves.

Answers that only Redis has come later: `Tell` gets them, or the error instead, in the router thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ... import codec, errors
from ...checks import CLUSTER
from ...cluster.placement import MemberInfo, info_of
from ...cluster.protocol import AgentPage, AgentRow, EventPage, EventRow, HostRow, ReaderRow, ReminderRow, WhereRow
from ...connection.requests import Call
from ...scheduler.effects import Effect
from ...store.cluster import ClusterRecords, Locate, Located, LogEntry, MemberRow, NamePage, RecordForms
from ...store.forms import Rewritten
from ...store.reminders import Row
from ...wire.link import rebuild_error
from ...wire.messages import Op, Reply
from .quarters import Leaving, Lodger, Quarters
from .ticks import what_of

__all__ = ["STATES", "Inquiries", "Tell", "state_of"]

Tell = Callable[[Any], None]  # takes an answer, or a ZmqAgentsError
MOST = 500  # rows of a page
MAX_ANSWER_BYTES = 1 << 24
STEPS = ("look", "raise", "rewrite", "settle")  # of an upgrade
STATES = ("held", "lapsed", "draining")  # of members


def state_of(info: MemberInfo) -> str:
    """How a member stands: one of `STATES`."""
    return "draining" if info.draining else "held" if info.lease_left_s > 0 else "lapsed"


class Inquiries:
    """See the module's docstring. Belongs to the router thread."""

    def __init__(self, room: Quarters) -> None:
        self._room = room

    # ------------------------------------------------------------ hosts

    def hosts(self) -> list[HostRow]:
        """The members, this one first."""
        mine = self._room.member.incarnation
        infos = sorted(self._room.member.placement.members, key=lambda info: (info.incarnation != mine, info.address))
        return [self._host_row(info) for info in infos]

    def _host_row(self, info: MemberInfo) -> HostRow:
        figures = dict(info.figures)
        agents, running, capacity = (figures.pop(name, 0) for name in ("agents", "running", "capacity"))
        return {
            "incarnation": info.incarnation, "server_id": info.incarnation.partition("/")[0], "address": info.address,
            "version": info.version, "state": state_of(info), "lease_left": round(self._room.left_of(info), 3),
            "labels": dict(info.labels), "classes": dict(info.classes), "load": info.load, "agents": agents,
            "running": running, "capacity": capacity, "figures": figures, "forms": list(info.forms),
            "writes": info.writes,
        }  # fmt: skip

    # ------------------------------------------------------------ agents

    def where(self, agent_id: str, tell: Tell) -> None:
        """Where an agent is; see `WhereRow`."""
        name = self._room.name_in(agent_id)

        def look(records: ClusterRecords) -> object:
            return *records.exchange([Locate(name.text)]), records.reminders(name.text)

        def answer(found: Any) -> None:
            if isinstance(found, tuple) and isinstance(found[0], Located):
                tell(self._where_row(agent_id, *found))
            else:
                tell(found[0] if isinstance(found, tuple) else found)

        self._room.member.inquire(look, answer)

    def _where_row(self, agent_id: str, found: Located, reminders: Sequence[Row]) -> WhereRow:
        address = self._room.address_of(found.owner)
        server_id, incarnation = (found.owner.partition("/")[0], found.owner) if address else ("", "")
        rows = [_reminder_row(row) for row in reminders]
        return {
            "agent": agent_id, "server_id": server_id, "address": address, "incarnation": incarnation,
            "epoch": found.epoch, "revision": found.revision, "reminders": sorted(rows, key=lambda row: row["due_s"]),
        }  # fmt: skip

    def agents(self, prefix: Any, after: Any, most: Any, tell: Tell) -> None:
        """A page of the agents; see `AgentPage`."""
        begins, behind, count = _text(prefix, "prefix"), _text(after, "after"), _count(most)

        def answer(found: Any) -> None:
            tell(self._page(found) if isinstance(found, NamePage) else found)

        self._room.member.inquire(lambda records: records.names(begins, behind, count), answer)

    def _page(self, found: NamePage) -> AgentPage:
        room = self._room
        rows: list[AgentRow] = []
        for name, owner, epoch in found.rows:
            address = room.address_of(owner)
            server_id = owner.partition("/")[0] if address else ""
            rows.append({"agent": room.agent_id(name), "server_id": server_id, "address": address, "epoch": epoch})
        return {"rows": rows, "following": found.following}

    def is_far(self, options: Mapping[str, Any]) -> bool:
        """Whether a question for an agent's methods is for another member, which has the class."""
        agent_id, room = options.get("id"), self._room
        if not isinstance(agent_id, str) or not agent_id.startswith(CLUSTER) or options.get("hop"):
            return False
        with contextlib.suppress(errors.ZmqAgentsError):
            return self._who_knows(room.name_in(agent_id).cls) not in (None, room.address)
        return False

    def _who_knows(self, cls: str) -> str | None:
        """The address of a member that has a class: this one's, if it does."""
        room = self._room
        addresses = [info.address for info in room.member.placement.members if cls in info.classes]
        return room.address if room.has_class(cls) else next(iter(addresses), None)

    def describe(self, agent_id: str, tell: Tell) -> None:
        """What an agent offers whose class another member has."""
        address = self._who_knows(self._room.name_in(agent_id).cls)
        assert address is not None  # see `is_far`
        call = Call("", Op.DESCRIBE, codec.encode_call((), {}, what=""), 0, {"id": agent_id, "hop": 1}, None, None)
        self._room.neighbour(address).ask(call, _Answer(self._room, tell))

    # ------------------------------------------------------------ events

    def events(self, after: Any, most: Any, tell: Tell) -> None:
        """What has happened behind an event; see `EventPage`."""
        behind, count = _text(after, "after"), _count(most)

        def look(records: ClusterRecords) -> tuple[LogEntry, ...]:
            return records.log(behind, count)

        def answer(found: Any) -> None:
            if not isinstance(found, tuple):
                tell(found)
                return
            rows = [_event_row(entry) for entry in found]
            page: EventPage = {"rows": rows, "following": rows[-1]["id"] if rows else behind}
            tell(page)

        self._room.member.inquire(look, answer)

    # ------------------------------------------------------------ the form of the records

    def upgrade(self, step: Any, form: Any, after: Any, tell: Tell) -> None:
        """One step of bringing the records to another form; see `FormsRow` and `RewrittenRow`.

        Raises RemoteProtocolError for anything else.
        """
        behind = _text(after, "after")
        if step not in STEPS or (step != "look" and (type(form) is not int or form < 1)):
            raise errors.RemoteProtocolError(f"there is no step {step!r} to the form {form!r}")
        known = self._room.newest_form
        if step != "look" and form > known:
            raise errors.ConfigError(f"this host knows forms of records up to {known}, not {form}: ask a newer one")

        def look(records: ClusterRecords) -> object:
            if step == "rewrite":
                return records.rewrite(form, behind)
            if step == "look":
                return records.forms()
            return records.raise_form(form) if step == "raise" else records.settle_form(form)

        def answer(found: Any) -> None:
            if isinstance(found, RecordForms):
                tell({"form": found.form, "former": found.former, "hosts": list(map(_reader_row, found.members))})
            else:
                tell(found._asdict() if isinstance(found, Rewritten) else found)

        self._room.member.inquire(look, answer)

    # ------------------------------------------------------------ moving

    def move(self, agent_id: str, to: Any, tell: Tell, *, hop: bool) -> None:
        """Give an agent to another host; `WhereRow` when that is done.

        An agent may have been given to this host, and nobody have called it since: then it is made here first.
        """
        room, name = self._room, self._room.name_in(agent_id)
        resident = room.resident(name)
        if resident is not None and not resident.is_leaving:
            self._move(resident, to, tell)
        elif hop:
            self._have(agent_id, to, tell)
        else:
            self.where(agent_id, lambda row: self._pass_on(row, to, tell))

    def _move(self, resident: Lodger, to: Any, tell: Tell) -> None:
        following = self._following(resident, _text(to, "to"))
        resident.on_gone(lambda: self.where(resident.record.agent_id, tell))
        resident.leave(Leaving.RELEASED, following.incarnation)

    def _have(self, agent_id: str, to: Any, tell: Tell) -> None:
        room, name = self._room, self._room.name_in(agent_id)

        def claimed() -> None:
            resident = room.resident(name)
            try:
                if resident is None or resident.is_leaving:
                    raise errors.UnknownAgent(f"{agent_id} is on its way from one host to another: ask again")
                self._move(resident, to, tell)
            except errors.ZmqAgentsError as exc:
                tell(exc)

        if room.resident(name) is not None or room.is_leaving(name):  # it may have come while Redis was asked
            claimed()
        else:
            room.way(name).have(claimed)

    def _following(self, resident: Lodger, to: str) -> MemberInfo:
        """The member that is to have an agent. Raises `NoHost`."""
        room, name, labels = self._room, resident.agent, resident.labels
        placement, mine = room.member.placement, room.member.incarnation
        version = room.state_version(name.cls)
        if not to:
            chosen = placement.choose(name.cls, version, labels, but=[mine])
        else:
            wanted = (info for info in placement.members if to in (info.address, info.incarnation.partition("/")[0]))
            chosen = next((info for info in wanted if info.takes(name.cls, version, labels)), None)
        if chosen is None or chosen.incarnation == mine:
            text = f"{to} cannot run {name}" if to else placement.why_none(name.cls, version, labels, but=[mine])
            raise errors.NoHost(f"{name} stays: {text}")
        return chosen

    def _pass_on(self, row: Any, to: Any, tell: Tell) -> None:
        if not isinstance(row, dict):
            tell(row)
        elif not row["address"]:
            tell(errors.UnknownAgent(f"{row['agent']} is on no host now"))
        elif row["address"] == self._room.address:
            self._have(row["agent"], to, tell)
        else:
            options = {"id": row["agent"], "to": to, "hop": 1}
            call = Call("", Op.MOVE, codec.encode_call((), {}, what=""), 0, options, None, None)
            self._room.neighbour(row["address"]).ask(call, _Answer(self._room, tell))


class _Answer:
    """Takes the answer of another member, and tells it in the router thread."""

    def __init__(self, room: Quarters, tell: Tell) -> None:
        self._room = room
        self._tell = tell

    def deliver(self, reply: Reply | None) -> None:
        assert reply is not None  # None is for fetches
        self._post(
            rebuild_error(reply) if reply.code else codec.unpack(bytes(reply.body[0]), max_bytes=MAX_ANSWER_BYTES)
        )

    def fail(self, error: Exception) -> None:
        self._post(error)

    def chunk(self, item: Reply) -> None:
        """Never comes."""

    def _post(self, answer: Any) -> None:
        self._room.post(self._on_answer, answer)

    def _on_answer(self, answer: Any) -> list[Effect]:
        self._tell(answer)
        return []


def _reminder_row(row: Row) -> ReminderRow:
    try:
        method = what_of(row.what)[0]
    except (errors.ZmqAgentsError, ValueError, TypeError):  # something else has written there
        method = ""
    return {"name": row.name, "method": method, "due_s": round(row.left_s, 3), "every_s": row.every_s}


def _reader_row(row: MemberRow) -> ReaderRow:
    info = info_of(row)
    return {
        "incarnation": row.incarnation, "server_id": row.incarnation.partition("/")[0],
        "address": info.address if info is not None else "", "version": info.version if info is not None else "",
        "state": state_of(info) if info is not None else "unknown", "lease_s": row.lease_us / 1e6,
        "reads": list(row.forms), "writes": row.writes,
    }  # fmt: skip


def _event_row(entry: LogEntry) -> EventRow:
    time_s = int(entry.entry_id.partition("-")[0]) / 1000
    return {"id": entry.entry_id, "time_s": time_s, "kind": entry.kind, "what": entry.what}


def _text(value: Any, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise errors.RemoteProtocolError(f"{what} must be a text, not {value!r}")
    return value


def _count(value: Any) -> int:
    return value if type(value) is int and 0 < value <= MOST else MOST
