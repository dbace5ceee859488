"""Which calls are accepted, and which agent each is for. Decides nothing about their running.

`Admission.admit` is the way in. A call that the router thread runs at once needs no more than `Admission.check`, the
half of it that is not about queueing. Both refuse by raising, and change nothing: a refused call leaves no trace.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any

from .. import errors
from ..agents.base import new_agent_id
from ..agents.factories.factory import FACTORY_HOOKS
from ..agents.options import OF_CLUSTER, OPTION_NAMES, AgentOptions, check_platform
from ..agents.spec import CREATE_NAMES, ClassSpec, MethodSpec
from ..checks import CLUSTER
from ..codec import MAX_TEXT, is_name
from ..config import BrokerConfig
from ..wire.messages import Call, Flag, Op, left_s
from .calls import Calls
from .effects import Effect
from .records import ID_BYTES, AgentRecord, Peer, Ticket, bytes_of_ids
from .shares import Account, Share
from .wait_graph import ancestors, reenters

__all__ = ["Admission", "Find", "cannot_settle", "check_persist", "unknown_method", "unmade"]

Find = Callable[[Peer, Call, str], tuple[AgentRecord, str]]
_OPTION_NAMES = frozenset(OPTION_NAMES)
_OF_CLUSTER = (Op.CREATE, Op.DELETE)

_UNTIL = Flag.UNTIL
HEAD_BYTES = 1024  # what a message may have beside what `max_message_bytes` counts
FEW_IDS_BYTES = 2 * 16 * ID_BYTES  # of a chain through 16 hosts: of these, 65,536 calls may have 512 MiB
MAX_EARLY_CANCELS = 4096  # cancels remembered whose call is not, or no longer, here; beyond it the oldest goes


_DOWNLOAD = MethodSpec(Op.DOWNLOAD, "stream", False, True, "(path)", "The size of a file, then its bytes.")
_FILES = ClassSpec("zmqagents.execution.file_roots:FileRoots", "FileRoots", "", AgentOptions())


class Admission:
    """Accepts and refuses the calls of one host.

    ``find_class``: a class by its name and, if the client tells it, the origin of its own; raises `UnknownClass`.
    ``settle`` gives an agent that is not to run in threads of this host its home; it raises what speaks against that.
    ``find`` gives the agent of a cluster that a call is for, and what is to be done with it if that is no method.
    """

    def __init__(
        self, config: BrokerConfig, find_class: Callable[..., ClassSpec], calls: Calls,
        settle: Callable[[AgentRecord, Account], None] | None = None, find: Find | None = None,
    ) -> None:  # fmt: skip
        self._config = config
        self._find_class = find_class
        self._settle = settle or _settle_nowhere
        self._find = find or _find_nowhere
        self._calls = calls
        self._max_body = config.max_message_bytes + HEAD_BYTES
        self._max_structured = config.structured_limit
        self._free_calls = calls.shares.calls.free
        self._free_bytes = calls.shares.queued_bytes.free
        self.early_cancels: OrderedDict[str, None] = OrderedDict()  # task ids whose call `admit` will refuse for that
        self.store_full = ""  # why no call is taken that would leave a result in the store; "": they are
        self._own: dict[str, tuple[AgentRecord, MethodSpec]] = {}  # by request; no agents: never listed nor deleted
        self.serve(AgentRecord("host", _FILES, _FILES.options, 0.0, (), calls.meters.of_class(_FILES.name)), _DOWNLOAD)

    def serve(self, record: AgentRecord, method: MethodSpec) -> None:
        """Let ``method`` of ``record``, which is none of the host's agents, answer the request of that name."""
        record.made = True
        self._own[method.name] = record, method

    def cancel_early(self, task_id: str) -> None:
        """The call of this id is cancelled, should it still come."""
        self.early_cancels[task_id] = None
        if len(self.early_cancels) > MAX_EARLY_CANCELS:
            self.early_cancels.popitem(last=False)

    def on_store_full(self, reason: str) -> list[Effect]:
        """The store takes no more results, for this ``reason``; "": it does again."""
        self.store_full = reason
        return []

    def admit(self, peer: Peer, call: Call, task_id: str, now: float, parent: Ticket | None) -> Ticket:
        """A new ticket for ``call``; or raises the error that refuses it. ``parent``: the call whose code made it."""
        config, calls = self._config, self._calls
        deadline = self.check(peer, call, task_id, now, parent)
        size = sum(map(len, call.body))
        if size > self._max_body:  # clients of this package do not send it
            raise _too_large(call, size, config.max_message_bytes, "max_message_bytes")
        if size > self._max_structured and len(call.body[0]) > self._max_structured:
            raise _too_large(call, len(call.body[0]), self._max_structured, "max_structured_bytes")
        record, op = calls.agents.get(call.agent), ""
        method: MethodSpec | None = None
        if record is None:
            record, op, method = self._management(peer, call, now, _payer(peer, parent))
        elif call.flags & Flag.ATTRIBUTE:
            op = _attribute(record, call)
        else:
            method = record.spec.methods.get(call.method)
            if method is None:
                raise unknown_method(record, call.method)
        exclusive = not method.concurrent if method is not None else op == Op.CREATE
        has_turn = op == Op.CREATE or (
            record.made and (not exclusive or len(record.holders) < record.options.max_concurrency)
        )
        if not has_turn:
            self._check_mailbox(record, call, exclusive, parent, _payer(peer, parent))
        ids = 0
        if call.deps or call.options:
            options = call.options
            ids = bytes_of_ids(call.deps, options.get("chain", ()), options.get("far", ()))
            size += ids
        if calls.queued_bytes + size > self._free_bytes and not (
            has_turn and calls.slots.running < config.capacity and not call.deps and ids <= FEW_IDS_BYTES
        ):
            self._check_bytes(peer, size, _payer(peer, parent))
        return Ticket(peer, call, task_id, record, op, method, exclusive, deadline, now)

    def check(self, peer: Peer, call: Call, task_id: str, now: float, parent: Ticket | None) -> float | None:
        """The deadline of ``call``, None if it has none; or raises what refuses it whatever agent it is for."""
        config, calls = self._config, self._calls
        deadline, time_ms = None, call.time_ms
        if time_ms:
            deadline = now + (left_s(time_ms, now) if call.flags & _UNTIL else time_ms / 1000)
        if parent is not None:
            if parent.ended is not None:
                raise type(parent.ended)(f"{_name(call)}: its caller has ended ({parent.ended})")
            if parent.deadline is not None and (deadline is None or parent.deadline < deadline):
                deadline = parent.deadline
        elif calls.drain is not None:
            raise errors.HostStopping("the host is stopping and takes no new calls")
        if self.store_full and call.flags & Flag.DETACHED:
            raise errors.StoreFull(self.store_full)
        if self.early_cancels and task_id in self.early_cancels:
            raise errors.CallCancelled(f"{_name(call)} was cancelled before it arrived")
        if deadline is not None and deadline <= now:
            if call.flags & Flag.LATE:
                raise errors.HostBusy.of_host(f"{_name(call)} may be over: the host was frozen; its client asks again")
            raise errors.CallTimeout(f"{_name(call)} timed out before it arrived, never started")
        if len(calls.tasks) >= self._free_calls:
            _refuse(calls.shares.calls, _payer(peer, parent).calls, len(calls.tasks))
        if len(peer.calls) >= config.max_calls_per_client and not peer.local:
            text = f"this client has {len(peer.calls)} calls open, limit {config.max_calls_per_client}"
            raise errors.HostBusy(f"{text} (max_calls_per_client)")
        return deadline

    def refusal_of_queued(self, ticket: Ticket) -> errors.HostBusy | None:
        """The same for a parked call that has begun to queue: what would have refused a new one refuses it now."""
        record = ticket.agent
        share, held, queued = self._calls.shares.mailbox, record.places_of(ticket.account) - 1, record.queued - 1
        if share.refuses(held, queued):
            return _full_mailbox(record, share, held, queued)
        if record.options.on_busy == "reject" and ticket.exclusive and not reenters(ticket):
            return _busy(record)
        return None

    def unknown_agent(self, agent_id: object) -> errors.UnknownAgent:
        """The error for an agent that is not there."""
        return errors.UnknownAgent(f"there is no agent {agent_id!r} on {self._config.server_id}")

    def _check_mailbox(
        self, record: AgentRecord, call: Call, exclusive: bool, parent: Ticket | None, payer: Account
    ) -> None:
        """Refuse a call that would have to queue where it must not. One with arguments to wait for is seen later."""
        share, queued = self._calls.shares.mailbox, record.queued
        if queued >= share.free and share.refuses(record.places_of(payer), queued):
            raise _full_mailbox(record, share, record.places_of(payer), queued)
        if exclusive and record.options.on_busy == "reject" and not call.deps:
            if record.options.reentrant and parent is not None:
                chain = (parent, *ancestors(parent))
                if any(link.turn and link.agent is record for link in chain):
                    return
            raise _busy(record)

    def _check_bytes(self, peer: Peer, size: int, payer: Account) -> None:
        """Refuse a call that would have to queue, with ``size`` bytes, behind those of others.

        An empty queue takes any one call. The host's own calls may queue as much again: they are made by calls that
        run, and these must end for the queue to get shorter.
        """
        share, queued = self._calls.shares.queued_bytes, self._calls.queued_bytes
        if peer.local:
            queued -= share.limit
        if queued > 0:
            _refuse(share, payer.queued_bytes, queued, size)

    def _management(
        self, peer: Peer, call: Call, now: float, payer: Account
    ) -> tuple[AgentRecord, str, MethodSpec | None]:
        """A request to the host itself that takes a worker; the broker answers all others.

        The record of an agent to be made is new; it is the dispatcher that puts it among the agents.
        """
        if call.agent != "":
            return self._of_cluster(peer, call, call.agent)
        is_far = self._config.parent is None  # a process runs agents of a cluster for its host, which knows all others
        if is_far and call.method in _OF_CLUSTER and str(call.options.get("id")).startswith(CLUSTER):
            return self._of_cluster(peer, call, call.options["id"])
        if call.method in self._own:
            record, method = self._own[call.method]
            return record, method.name, method
        name = call.options.get("id")
        if call.method == Op.MEMORY:
            found = self._calls.agents.get(name) if isinstance(name, str) else None
            if found is None:
                raise self.unknown_agent(name)
            return found, Op.MEMORY, None
        if call.method != Op.CREATE:
            raise errors.UnknownMethod(f"the host has no management request {call.method!r}")
        return self._new_agent(peer, call, name, now, payer), Op.CREATE, None

    def _of_cluster(self, peer: Peer, call: Call, agent_id: str) -> tuple[AgentRecord, str, MethodSpec | None]:
        """The agent of a cluster that a call is for, wherever it is."""
        if not agent_id.startswith(CLUSTER):
            raise self.unknown_agent(agent_id)
        record, op = self._find(peer, call, agent_id)
        if not op and call.flags & Flag.ATTRIBUTE:
            op = _attribute(record, call)
        return record, op, record.spec.methods.get(call.method) if not op else None

    def _new_agent(self, peer: Peer, call: Call, name: Any, now: float, payer: Account) -> AgentRecord:
        class_name = call.options.get("class")
        if not isinstance(class_name, str):
            raise errors.RemoteProtocolError("create_agent without a class name")
        origin = call.options.get("origin")
        spec = self._find_class(class_name, origin) if isinstance(origin, str) else self._find_class(class_name)
        chosen = {key: value for key, value in call.options.items() if key in _OPTION_NAMES}
        ours: Collection[str] = ()
        if "either" in call.options:
            ours = _ours(spec, call.options["either"])
        if "either" in call.options and self._config.parent is None:  # else that has chosen them
            name = name if "agent_id" in ours else None
            chosen = chosen if "agent_options" in ours else {}
        agents = self._calls.agents
        if name is None:
            name = new_agent_id(spec.short)
            while name in agents:
                name = new_agent_id(spec.short)
        if not is_name(name):
            raise errors.ConfigError(f"agent_id must be a text of 1 to {MAX_TEXT} printable characters, not {name!r}")
        if name in agents:
            raise errors.AgentExists(
                f"there is already an agent {name!r} ({agents[name].spec.name}): get_agent or if_exists='get' takes it"
            )
        share = self._calls.shares.agents
        taken = len(agents) + self._calls.ending
        if taken >= share.free and share.refuses(payer.agents, taken):  # no time makes room: no second try
            raise errors.HostBusy(share.reason(payer.agents, taken))
        options, config = _options_of(spec, peer, chosen), self._config
        record = AgentRecord(name, spec, options, now, ours, self._calls.meters.of_class(spec.name))
        if (options.isolation or config.isolation) != "thread" and config.parent is None:
            self._settle(record, payer)
        if config.parent is not None and type(epoch := call.options.get("epoch")) is int:
            record.be_activation(epoch)
        return record


def _find_nowhere(peer: Peer, call: Call, agent_id: str) -> tuple[AgentRecord, str]:
    raise errors.UnknownCluster(f"{agent_id} is an agent of a cluster, and this host is a member of none")


def cannot_settle(record: AgentRecord) -> errors.ConfigError:
    """The error for an agent that is to run beside this process, on a host that has no other."""
    return errors.ConfigError(f"{record.agent_id}: agents of this host run in its own threads alone")


def _settle_nowhere(record: AgentRecord, payer: Account) -> None:
    raise cannot_settle(record)


def _options_of(spec: ClassSpec, peer: Peer, given: dict[str, Any]) -> AgentOptions:
    """The options of an agent to be made: those of its class, and those that the call gives, ``given``."""
    if given.get("persist") == "auto":  # as the class has it
        del given["persist"]
    if of_cluster := [name for name in OF_CLUSTER if name in given]:
        raise errors.ConfigError(f"{' and '.join(of_cluster)} is for agents of a cluster: make it by a Cluster")
    if peer.local and given.get("lifetime") == "client":
        raise errors.ConfigError(
            "lifetime='client' is for a client outside of the host: an agent deletes what it makes, or gives idle_s"
        )
    if "env" in given and not peer.is_admin:  # it steers the interpreter, and by that which code runs
        raise errors.PermissionRefused("only an admin may set environment variables (env) of an agent")
    options = spec.options.but(given).checked() if given else spec.options
    check_platform(options.isolation)
    check_persist(spec, options)
    return options


def check_persist(spec: ClassSpec, options: AgentOptions) -> None:
    """Raise ConfigError where agents of a class are to be saved that have no hooks for it."""
    if options.persist is not None and not spec.hooks.saves:
        raise errors.ConfigError(
            f"persist={options.persist!r} needs the hooks save_state and load_state, which {spec.short} lacks; in a "
            "class that is no AgentBase they count under @agent(persist=...)"
        )


def _ours(spec: ClassSpec, either: Any) -> list[str]:
    """The names in ``either`` that the constructor has no parameter for, so that they are the host's."""
    if not isinstance(either, dict):
        raise errors.RemoteProtocolError("'either' of create_agent is no map")
    ours = [name for name in CREATE_NAMES if name in either and name not in spec.own_names]
    for name in ours:
        if either[name]:
            raise errors.ConfigError(str(either[name]))
    return ours


def _payer(peer: Peer, parent: Ticket | None) -> Account:
    """The account that a call counts for."""
    return peer.account if parent is None else parent.account


def _refuse(share: Share, held: int, taken: int, more: int = 1) -> None:
    """Raise HostBusy if a user that holds ``held`` of ``taken`` may not have ``more``; clients try that again."""
    if share.refuses(held, taken + more - 1):
        raise errors.HostBusy.of_host(share.reason(held, taken))


def _full_mailbox(record: AgentRecord, share: Share, held: int, queued: int) -> errors.HostBusy:
    return errors.HostBusy(f"the mailbox of {record.agent_id}: {share.reason(held, queued)}")


def _name(call: Call) -> str:
    return f"{call.agent}.{call.method}"


def _too_large(call: Call, size: int, limit: int, name: str) -> errors.MessageTooLarge:
    text = f"{_name(call)}: arguments of {size:,} bytes, limit {limit:,} ({name})"
    return errors.MessageTooLarge(text, size, limit)


def _attribute(record: AgentRecord, call: Call) -> str:
    if call.method.startswith("_") or not call.method.isidentifier():
        raise unknown_method(record, call.method)
    return "attribute"


def _busy(record: AgentRecord) -> errors.HostBusy:
    return errors.HostBusy(f"{record.agent_id} is busy (on_busy='reject')")


def unmade(record: AgentRecord) -> errors.HostBusy | None:
    """The error for a call that comes before the factory of its agent has returned; clients try that again."""
    if record.spec.hooks is not FACTORY_HOOKS or record.made:
        return None
    return errors.HostBusy.of_host(f"{record.agent_id} is being made, and what it offers is not known yet")


def unknown_method(record: AgentRecord, name: str) -> errors.ZmqAgentsError:
    if name.startswith("_"):
        return errors.UnknownMethod(f"{name!r} of {record.agent_id} ({record.spec.short}) is private")
    if not name.isidentifier():
        return errors.UnknownMethod(f"{name!r} is the name of no method or attribute")
    if (error := unmade(record)) is not None:
        return error
    offered = ", ".join(sorted(record.spec.methods)) or "none"
    return errors.UnknownMethod(
        f"{record.agent_id} ({record.spec.short}) has no public method {name!r}; it has: {offered}"
    )
