"""What may come in: whether a call is accepted, and whom it is for. Decides nothing about its running.

Everything here refuses by raising, before anything was changed, so that a refused call leaves no trace.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping

from .. import errors
from ..agents.base import new_agent_id
from ..agents.marks import AgentOptions
from ..agents.spec import ClassSpec, MethodSpec
from ..codec import MAX_TEXT, is_name
from ..config import BrokerConfig
from ..wire.messages import Call, Flag, Op
from .records import AgentRecord, Peer, Ticket
from .wait_graph import ancestors

__all__ = ["Admission", "busy"]

HEAD_BYTES = 1024  # what a message may have beside what `max_message_bytes` counts
MAX_EARLY_CANCELS = 4096  # cancels remembered whose call is not, or no longer, here; beyond it the oldest goes


_DOWNLOAD = MethodSpec(Op.DOWNLOAD, "stream", False, True, "(path)", "The size of a file, then its bytes.")
_FILES = ClassSpec("zmqagents.execution.file_roots:FileRoots", "FileRoots", "", AgentOptions())


class Admission:
    """The door of one host. ``agents`` and ``tasks`` are the dispatcher's; ``find_class`` raises `UnknownClass`."""

    def __init__(
        self, config: BrokerConfig, find_class: Callable[[str], ClassSpec],
        agents: Mapping[str, AgentRecord], tasks: Mapping[str, Ticket],
    ) -> None:  # fmt: skip
        self._config = config
        self._find_class = find_class
        self._agents = agents
        self._tasks = tasks
        self.early_cancels: OrderedDict[str, None] = OrderedDict()  # task ids whose call `check` will refuse for that
        self._files = AgentRecord("host", _FILES, _FILES.options, 0.0)  # no agent: it is never listed nor deleted
        self._files.made = True

    def cancel_early(self, task_id: str) -> None:
        """The call of this id is cancelled, should it still come."""
        self.early_cancels[task_id] = None
        if len(self.early_cancels) > MAX_EARLY_CANCELS:
            self.early_cancels.popitem(last=False)

    def check(
        self, peer: Peer, call: Call, task_id: str, deadline: float | None, now: float, parent: Ticket | None,
        size: int,
    ) -> None:  # fmt: skip
        """Refuse what comes too late, or what is too much. ``size``: bytes of the body."""
        if parent is not None and parent.ended is not None:
            raise type(parent.ended)(f"{call.agent}.{call.method}: its caller has ended ({parent.ended})")
        if self.early_cancels and task_id in self.early_cancels:
            del self.early_cancels[task_id]
            raise errors.CallCancelled(f"{call.agent}.{call.method} was cancelled before it arrived")
        if deadline is not None and deadline <= now:
            raise errors.CallTimeout(f"{call.agent}.{call.method} timed out before it arrived, never started")
        config = self._config
        if size > config.max_message_bytes + HEAD_BYTES:  # our own clients do not send it
            text = f"{call.agent}.{call.method}: arguments of {size:,} bytes, limit {config.max_message_bytes:,}"
            raise errors.MessageTooLarge(f"{text} (max_message_bytes)", size, config.max_message_bytes)
        if len(self._tasks) >= config.max_calls:
            full = errors.HostBusy(f"the host has {len(self._tasks)} calls open, limit {config.max_calls} (max_calls)")
            full.passes = True
            raise full
        if len(peer.calls) >= config.max_calls_per_client and not peer.local:
            raise errors.HostBusy(
                f"this client has {len(peer.calls)} calls open, limit {config.max_calls_per_client}"
                " (max_calls_per_client)"
            )

    def target(self, call: Call, now: float) -> tuple[AgentRecord, str, MethodSpec | None]:
        """Whom the call is for, and what it wants: a method, or an operation of the host's.

        The record of an agent to be made is new; it is the dispatcher that puts it among the agents.
        """
        if call.agent == "":
            return self._management(call, now)
        record = self._agents.get(call.agent)
        if record is None:
            raise self.unknown_agent(call.agent)
        if call.flags & Flag.ATTRIBUTE:
            if call.method.startswith("_") or not call.method.isidentifier():
                raise _unknown_method(record, call.method)
            return record, "attribute", None
        method = record.spec.methods.get(call.method)
        if method is None:
            raise _unknown_method(record, call.method)
        return record, "", method

    def check_busy(self, record: AgentRecord, call: Call, exclusive: bool, parent: Ticket | None) -> None:
        """Refuse a call that would have to queue where it must not. One with arguments to wait for is seen later."""
        if record.queued >= self._config.max_mailbox and (exclusive or not record.made):
            raise self.full_mailbox(record)
        if exclusive and record.options.on_busy == "reject" and not call.deps:
            if record.options.reentrant and parent is not None:
                chain = (parent, *ancestors(parent))
                if any(link.turn and link.agent is record for link in chain):
                    return
            raise busy(record)

    def check_bytes(self, peer: Peer, size: int, queued: int) -> None:
        """Refuse a call that would have to queue, with ``size`` bytes, behind ``queued`` of others.

        An empty queue takes any one call. The host's own calls may queue as much again: they are made by calls that
        run, and these must end for the queue to get shorter.
        """
        limit = self._config.max_queued_bytes * (2 if peer.local else 1)
        if queued and queued + size > limit:
            full = errors.HostBusy(
                f"calls with {queued:,} bytes of arguments wait on the host, limit {limit:,} (max_queued_bytes)"
            )
            full.passes = True
            raise full

    def full_mailbox(self, record: AgentRecord) -> errors.HostBusy:
        limit = self._config.max_mailbox
        return errors.HostBusy(f"{record.agent_id} has {limit} calls queued, which is the limit (max_mailbox)")

    def unknown_agent(self, agent_id: object) -> errors.UnknownAgent:
        return errors.UnknownAgent(f"there is no agent {agent_id!r} on {self._config.server_id}")

    def _management(self, call: Call, now: float) -> tuple[AgentRecord, str, MethodSpec | None]:
        """A request to the host itself that takes a worker; the broker answers all others."""
        if call.method == Op.DOWNLOAD:
            return self._files, Op.DOWNLOAD, _DOWNLOAD
        name = call.options.get("id")
        if call.method == Op.MEMORY:
            record = self._agents.get(name) if isinstance(name, str) else None
            if record is None:
                raise self.unknown_agent(name)
            return record, Op.MEMORY, None
        if call.method != Op.CREATE:
            raise errors.UnknownMethod(f"the host has no management request {call.method!r}")
        class_name = call.options.get("class")
        if not isinstance(class_name, str):
            raise errors.RemoteProtocolError("create_agent without a class name")
        spec = self._find_class(class_name)
        if name is None:
            name = new_agent_id(spec.short)
        if not is_name(name):
            raise errors.ConfigError(f"agent_id must be a text of 1 to {MAX_TEXT} printable characters, not {name!r}")
        if name in self._agents:
            raise errors.AgentExists(f"there is already an agent {name!r} ({self._agents[name].spec.name})")
        chosen = {key: call.options[key] for key in AgentOptions.__slots__ if key in call.options}
        options = dataclasses.replace(spec.options, **chosen) if chosen else spec.options
        return AgentRecord(name, spec, options, now), Op.CREATE, None


def busy(record: AgentRecord) -> errors.HostBusy:
    return errors.HostBusy(f"{record.agent_id} is busy (on_busy='reject')")


def _unknown_method(record: AgentRecord, name: str) -> errors.UnknownMethod:
    if name.startswith("_"):
        return errors.UnknownMethod(f"{name!r} of {record.agent_id} ({record.spec.short}) is private")
    if not name.isidentifier():
        return errors.UnknownMethod(f"{name!r} is the name of no method or attribute")
    offered = ", ".join(sorted(record.spec.methods)) or "none"
    return errors.UnknownMethod(
        f"{record.agent_id} ({record.spec.short}) has no public method {name!r}; it has: {offered}"
    )
