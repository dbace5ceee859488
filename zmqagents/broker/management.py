"""Management requests: questions and orders to the host itself.

`REQUESTS` at the end of this module is the table of them: the name, the clients that may ask, where the request runs
and the function that answers it.

    "all"      every client                                       Runs.ROUTER  in the router thread
    "callers"  all but those that only look                       Runs.APART   in a thread of its own
    "owner"    the maker of the agent or call, and admins         Runs.IN_TURN the same, one request after the other
    "seers"    admins, and those that only look                   Runs.ENDING  in the router thread, answered later
    "admin"    admins                                             Runs.CALL    as a call, by the scheduler
                                                                  Runs.LATER   in the router thread, answered when
                                                                               another host or Redis has answered

`security.roles` has the roles. Task ids are shortened in what is told to those that only look.

In the router thread a request is answered however busy the workers are. A request that reads files, asks the store or
runs other people's code (a class body, an unpickler) takes a thread of its own; its handler runs in the router thread
first, collects what only that thread may read, and returns the function for the other thread. A request that may take
long or calls an agent's code is a call: the dispatcher accepts it, and it has no handler here. A request that deletes
agents is carried out at once, and answered when the hooks of these agents have run.

The host's own code (agents that call agents) has the role admin. A result can be fetched by every client that has its
task id: the id is the key to it. All answers are plain data without secrets.
"""

from __future__ import annotations

import enum
import functools
import itertools
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .. import codec, errors
from ..agents.state import Keeper, Snapshot
from ..checks import CLUSTER, MEBIBYTE
from ..config import BrokerConfig
from ..execution.gate import Wait
from ..execution.runner import AgentHost
from ..execution.threads import WorkerPool
from ..members.answers import Answers
from ..members.members import Members
from ..models.configs import ModelConfigs
from ..process.memory import Resident
from ..scheduler.admission import unmade
from ..scheduler.dispatcher import Dispatcher, error_reply
from ..scheduler.effects import Answer, Effect, Ended, refusal_of
from ..scheduler.records import AgentRecord, Peer, State, Ticket
from ..scheduler.wait_graph import ancestors
from ..security.roles import CALLERS, ROLES, SEERS, Role, shortened
from ..security.zap import name_of
from ..telemetry import program
from ..telemetry.lines import fields_of
from ..version import __version__
from ..wire.messages import (
    Call,
    Code,
    Fetch,
    Flag,
    Frame,
    Kind,
    Op,
    Reply,
    answer_frames,
    read_error,
    task_id_of,
)
from .clients import Clients
from .events import Post
from .listening import Listening
from .listing import Listing, page_of, row_of
from .results import Results
from .watching.error_log import ErrorLog
from .watching.health import Probe
from .watching.pages import MAX_AROUND, agents_page, call_row, calls_page, find_call, neighbours, oldest_waits

if TYPE_CHECKING:
    from ..members.peers.inquiries import Tell
    from ..members.peers.room import Room
    from ..tracing.hosts import HostTraces

__all__ = ["ADMIN_ONLY", "CLUSTER_LIST", "REQUESTS", "RUN_AS_CALLS", "Asked", "Management", "Request", "Runs"]

log = logging.getLogger(__name__)
audit_log = logging.getLogger("zmqagents.audit")

STACK_FRAMES = 24  # of each running call in a dump, the innermost ones
STACK_CHARS = 4_000
MEMBERS_WAIT_S = 1.0  # for what processes of agents are asked or told
_DONE = Reply(Code.NONE, (codec.pack(True),))
MESSAGE_CHARS = 500  # of the error of a hook, in the log
MAX_LISTED_CALLS = 10_000  # a longer list would be of no use and hold up the router


class Runs(enum.Enum):
    """Where a request is answered; see the module's docstring."""

    ROUTER = "in the router thread"
    APART = "in a thread of its own"
    IN_TURN = "in a thread for all such requests, one after the other"
    ENDING = "in the router thread, and answered when agents have ended"
    CALL = "as a call, by the scheduler"
    LATER = "in the router thread, and answered when another host or Redis has answered"


class Asked(NamedTuple):
    """One request, as its handler gets it. ``parent``: the call of this host whose code makes it."""

    peer: Peer
    call: Call
    role: Role
    parent: Ticket | None = None

    def option(self, name: str) -> Any:
        """An option of the request, None if it is not given."""
        return self.call.options.get(name)


class _Deletion(NamedTuple):
    """A request that has deleted agents, and those of them that have not ended."""

    peer: Peer
    call_id: int
    method: str
    left: dict[AgentRecord, None]


class Management:
    """Answers the management requests of one host; see the module's docstring.

    ``carry_out`` runs effects of the dispatcher, ``post`` hands an event to the router thread, ``told`` tells the main
    thread that a stop has begun, and its grace. ``stop`` begins it.
    """

    def __init__(
        self, dispatcher: Dispatcher, host: AgentHost, pool: WorkerPool, results: Results, models: ModelConfigs,
        clients: Clients, listening: Listening, members: Members, keeper: Keeper | None, error_log: ErrorLog,
        stop: Callable[[float], list[Effect]], told: Callable[[float], None], *,
        unpickler: Callable[[bytes], Any] | None, carry_out: Callable[[list[Effect]], None],
        post: Post, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._config = dispatcher.config
        self._settings = dispatcher.config.public()  # as `info` shows them
        self._dispatcher = dispatcher
        self._host = host
        self._pool = pool
        self._results = results
        self._models = models
        self._unpickler = unpickler
        self._carry_out = carry_out
        self._post = post
        self._clients = clients
        self._listening = listening
        Probe(dispatcher, results, post, members.why_not_ready, clock)
        self._told = told
        self._stop = stop
        self._clock = clock
        self._members = members
        self._keeper = keeper
        self._error_log = error_log
        self._started, self._epoch_s = clock(), time.time()
        self._resident = Resident(clock)
        self._nobody = Peer("")
        self._listing = Listing()
        self._listed = 0  # requests for lists that are not answered
        self._waits: dict[int, Wait] = {}  # of the host's own code for a request, by call id
        self._ends: dict[AgentRecord, list[_Deletion]] = {}  # agents that end, and the requests that wait for it

    def may_cancel(self, peer: Peer, role: Role, task_id: str) -> bool:
        """Whether a CANCEL may be carried out: for a call of the same user, or one that the client may yet make."""
        if role in ("admin", "member") or not task_id:  # "": one of its own calls, by number
            return True
        if role not in CALLERS:
            return False
        ticket = self._dispatcher.tasks.get(task_id)
        return task_id.startswith(f"{peer.prefix}-") if ticket is None else ticket.owner == peer.user

    def refusal(self, peer: Peer, role: Role, message: object) -> list[Effect]:
        """What answers a message of a client that only looks, and may not send it; empty if it may."""
        if role in CALLERS or not isinstance(message, Call | Fetch):
            return []
        what = "a result"
        if isinstance(message, Call):
            request = _BY_OP.get(message.method) if message.agent == "" else None
            if message.agent == "" and (request is None or role in _MAY_ASK[request.who]):
                return []
            what = f"{message.agent or 'the host'}.{message.method}"
        text = f"{what} needs the role call; {name_of(peer.user)} has {role}, which only looks"
        return [Answer(peer, message.call_id, error_reply(errors.PermissionRefused(text)))]

    # ------------------------------------------------------------ asking

    def answer(self, peer: Peer, call: Call, role: Role, parent: Ticket | None = None) -> list[Effect]:
        """Answer a request now or later. For the router thread; ``call`` is none of `RUN_AS_CALLS`."""
        if _deletes_far(call, self._config):
            return self._dispatcher.on_call(peer, call, self._clock(), parent=parent)
        try:
            request = _request_in(call, self._members.room)
            if request is None or request.handler is None:
                raise errors.UnknownMethod(f"the host has no management request {call.method!r}")
            if role not in _MAY_ASK[request.who]:
                needs = "admin or view" if request.who == "seers" else "admin" if role in CALLERS else "call"
                text = f"{call.method} needs the role {needs}; {name_of(peer.user)} has {role}"
                raise errors.PermissionRefused(text)
            answer = request.handler(self, Asked(peer, call, role, parent))
            if role not in CALLERS and callable(answer) and request.runs is not Runs.LATER:
                answer = _shortening(answer)
            if request.audited and not (peer.local or self._config.parent):  # the parent tells for whom it is
                _audit(peer, call, "done" if request.runs is Runs.ROUTER else "begun")
            if request.runs is Runs.ENDING:
                if answer:
                    return self._await_ends(peer, call, answer, parent)
                answer = True
            if request.runs is Runs.APART:
                self._begin_apart(peer, call, answer)
                return []
            if request.runs is Runs.LATER:
                answer(functools.partial(self._tell, peer, call))
                return []
            if request.runs is Runs.IN_TURN:
                self._begin_in_turn(peer, call, answer)
                return []
            reply = Reply(Code.NONE, (codec.pack(answer),))
        except errors.ZmqAgentsError as exc:
            if isinstance(exc, errors.PermissionRefused):
                _audit(peer, call, f"refused: {exc}")
            reply = error_reply(exc, method=call.method)
        return [Answer(peer, call.call_id, reply)]

    def answer_inside(self, peer: Peer, call: Call, parent: Ticket | None, wait: Wait | None) -> list[Effect]:
        """Answer a request of the host's own code; ``wait``: the code of ``parent`` waits for the answer."""
        if parent is None or wait is None:
            return self.answer(peer, call, "admin", parent)
        now = self._clock()
        if _deletes_far(call, self._config):
            return self._dispatcher.on_call(peer, call, now, parent=parent, wait=True)
        request = _request_in(call, self._members.room)
        if request is not None and request.runs is Runs.ENDING:
            answered = self.answer(peer, call, "admin", parent)
            return [*answered, *self._dispatcher.on_wait(parent, _awaited_by(self._ends, peer, call.call_id), now)]
        if request is None or request.runs is Runs.ROUTER:
            answered = self.answer(peer, call, "admin")
            return [*answered, *self._dispatcher.on_wait(parent, [], now)]
        effects = self._dispatcher.on_wait_outside(parent, now, task_ids=[task_id_of(peer.prefix, call.call_id)])
        refusal = refusal_of(parent, effects)
        if refusal is not None:
            return [Answer(peer, call.call_id, error_reply(refusal)), *effects]
        self._waits[call.call_id] = wait
        return [*effects, *self._end_wait(call.call_id, self.answer(peer, call, "admin"))]

    def _tell(self, peer: Peer, call: Call, told: Any) -> None:
        """Answer a request for which another host or Redis was asked. In the router thread."""
        if isinstance(told, Exception):
            known = told if isinstance(told, errors.ZmqAgentsError) else errors.HostLost(str(told))
            reply = error_reply(known, method=call.method)
        else:
            reply = Reply(Code.NONE, (codec.pack(told),))
        self._carry_out(self._on_answered(peer, call.call_id, reply))

    def _on_answered(self, peer: Peer, call_id: int, reply: Reply) -> list[Effect]:
        """A request that had a thread of its own is answered."""
        answered: list[Effect] = [Answer(peer, call_id, reply)]
        return self._end_wait(call_id, answered) if peer.local else answered

    def _end_wait(self, call_id: int, answered: list[Effect]) -> list[Effect]:
        """End the wait for a request, if ``answered`` is its answer and not empty."""
        wait = self._waits.pop(call_id, None) if answered else None
        if wait is not None and wait.is_current:
            answered += self._dispatcher.on_wait_over(wait.ticket, self._clock())
        return answered

    def _begin_apart(self, peer: Peer, call: Call, answer: Callable[[], Any]) -> None:
        name = f"zmqagents-{call.method}"
        try:
            threading.Thread(
                target=self._apart, args=(peer, call, answer, self._on_answered), name=name, daemon=True
            ).start()
        except RuntimeError as exc:  # no more threads
            raise errors.HostBusy(f"{call.method}: the host cannot start a thread: {exc}") from exc

    def _begin_in_turn(self, peer: Peer, call: Call, answer: Callable[[], Any]) -> None:
        share, account, taken = self._dispatcher.shares.listings, peer.account, self._listed
        if taken >= share.free and share.refuses(account.listings, taken):
            raise errors.HostBusy.of_host(share.reason(account.listings, taken))
        try:
            self._listing.add(functools.partial(self._apart, peer, call, answer, self._on_listed))
        except RuntimeError as exc:  # no more threads
            raise errors.HostBusy(f"{call.method}: the host cannot start a thread: {exc}") from exc
        account.list(1)
        self._listed += 1

    def _on_listed(self, peer: Peer, call_id: int, reply: Reply) -> list[Effect]:
        peer.account.list(-1)
        self._listed -= 1
        return self._on_answered(peer, call_id, reply)

    def _apart(
        self, peer: Peer, call: Call, answer: Callable[[], Any],
        answered: Callable[[Peer, int, Reply], list[Effect]],
    ) -> None:  # fmt: skip
        """Answer a request in a thread that is not the router thread."""
        try:
            told = answer()
            reply = Reply(Code.NONE, (codec.pack_rows(told) if isinstance(told, list) else codec.pack(told),))
        except errors.ZmqAgentsError as exc:
            reply = error_reply(exc, method=call.method)
        except Exception as exc:  # a class body, an unpickler: other people's code
            reply = Reply(Code.AGENT_ERROR, (codec.pack(errors.describe(exc, method=call.method)),))
        self._post(answered, peer, call.call_id, reply)

    def _argument(self, call: Call) -> Any:
        """The first argument of a request. Decoding it may run an unpickler."""
        payload, *buffers = call.body
        codec.check_structure(payload, self._config.structured_limit)
        args, _ = codec.decode_call(payload, buffers, unpickler=self._unpickler)
        return args[0]

    # ------------------------------------------------------------ questions

    def info(self, _: Asked | None = None) -> dict[str, Any]:
        """What ``status`` shows."""
        dispatcher, bound = self._dispatcher, self._listening.bound
        return {
            "server_id": self._config.server_id, "version": __version__, "pid": os.getpid(),
            "python": ".".join(map(str, sys.version_info[:3])),
            "state": "draining" if dispatcher.draining or self._members.drains else "running",
            "host": self._config.host, "port": None if bound is None else bound.port, **self._clients.where(),
            "uptime_s": round(self._clock() - self._started, 3), "cpu_s": round(time.process_time(), 3),
            "memory_mb": round(self._resident.bytes() / MEBIBYTE, 1), "capacity": self._config.capacity,
            "agents": len(dispatcher.agents), "children": self._members.figures(),
            "classes": self._host.classes.names(), "models": self._models.names(),
            "calls_open": len(dispatcher.tasks), "running": dispatcher.running, "waiting": dispatcher.blocked,
            "queued_bytes": dispatcher.queued_bytes, "worker_threads": self._pool.size,
            "calls": dispatcher.totals, "store": self._results.figures(),
            "cluster": None if self._members.room is None else self._members.room.figures(),
            "settings": self._settings,
        }  # fmt: skip

    def metrics(self, _: Asked) -> Callable[[], dict[str, Any]]:
        """All figures of the host, see `watching.figures`."""
        from .watching.figures import take  # here: a host that nobody asks need not load it

        return take(
            self._dispatcher, self._pool, self._results, self._members, self._clients, self._listening,
            self._clock, self._started, self._epoch_s,
        )  # fmt: skip

    def logs(self, asked: Asked) -> Callable[[], dict[str, Any]]:
        """Log lines of this process behind the number ``after``, see `telemetry.ring.Ring.page`."""
        running = program.current()
        if running is None:
            raise errors.ConfigError("this host keeps no log lines: its program logs, as it was not begun by as_server")
        after, agent = asked.option("after"), asked.option("agent")
        page = running.ring.page
        return lambda: page(after if isinstance(after, int) else 0, agent if isinstance(agent, str) else None)

    def list_agents(self, asked: Asked) -> Callable[[], Any]:
        """The agents: a page of them by filter for the option ``most``, a long page for ``after``, without both all."""
        records, after, now = list(self._dispatcher.agents.values()), asked.option("after"), self._clock()
        if asked.option("most") is not None:
            return lambda: agents_page(records, asked.call.options, now)
        if isinstance(after, int):
            return lambda: page_of(records, after, now)
        return lambda: [row_of(record, now) for record in records]

    def offers(self, asked: Asked) -> Callable[[], Any]:
        """What agents offer to programs that speak JSON, see `watching.offers.offers_of`."""
        from .watching.offers import offers_of  # here: a host that nobody asks need not load it

        agent_id, after = asked.option("id"), asked.option("after")
        agents, find = self._dispatcher.agents, self._host.classes.find
        if isinstance(agent_id, str):
            if agent_id not in agents:
                raise errors.UnknownAgent(f"there is no agent {agent_id!r} on {self._config.server_id}")
            record = agents[agent_id]
            return lambda: offers_of([record], [agent_id], 0, find)["agents"][0]
        named, records = asked.option("ids"), list(agents.values())
        ids = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
        return lambda: offers_of(records, ids, after if isinstance(after, int) else 0, find)

    def list_calls(self, asked: Asked) -> Callable[[], Any]:
        """The open calls of the user; admins and those that only look see those of all."""
        now, user = self._clock(), None if asked.role in SEERS else asked.peer.user
        tickets = list(self._dispatcher.tasks.values())
        if asked.option("most") is not None:
            return lambda: calls_page(tickets, asked.call.options, user, now, self._dispatcher.traces)

        def rows() -> list[dict[str, Any]]:
            seen = (ticket for ticket in tickets if user is None or ticket.owner == user)
            listed = itertools.islice(seen, MAX_LISTED_CALLS)
            return [call_row(ticket, now, self._dispatcher.traces) for ticket in listed]

        return rows

    def list_results(self, asked: Asked) -> Callable[[], list[dict[str, Any]]]:
        """Calls of this host that are not finished, then the latest results in the store, the youngest first."""
        now, most = self._clock(), asked.option("most")
        most = most if isinstance(most, int) and 0 < most < MAX_LISTED_CALLS else MAX_LISTED_CALLS
        kept = (ticket for ticket in self._dispatcher.tasks.values() if ticket.flags & Flag.DETACHED)
        pending = [
            {"task_id": ticket.task_id, "state": "pending", "age_s": round(now - ticket.accepted, 3), "bytes": 0}
            for ticket in itertools.islice(kept, MAX_LISTED_CALLS)
        ]
        return lambda: (
            pending
            + [
                {"task_id": entry.task_id, "state": "done", "age_s": round(entry.age_s, 3), "bytes": entry.bytes}
                for entry in self._results.entries(most)
            ]
        )

    def dump(self, _: Asked) -> Callable[[], list[dict[str, Any]]]:
        """Each open call with the stack of its code, and what it waits for: the wait-for graph as a list of edges.

        Before them the calls that have ended, still run, and have the turn for which others queue.
        """
        now, frames = self._clock(), sys._current_frames()
        rows = []
        listed = list(itertools.islice(self._dispatcher.tasks.values(), MAX_LISTED_CALLS))
        waited_for = dict.fromkeys(ticket.agent for ticket in listed if ticket.state is State.QUEUED)
        over = [holder for record in waited_for for holder in record.holders if holder.settled]
        for ticket in over + listed:
            frame = frames.get(ticket.context.thread) if ticket.context is not None else None
            rows.append((ticket, frame, _with_holders(ticket, now, self._dispatcher.traces)))
        elsewhere, silent = self._members.ask_all(Op.DUMP), self._members.silent()

        def answer() -> list[dict[str, Any]]:
            stacks = {row.get("task_id"): row.get("stack") for row in elsewhere.rows(MEMBERS_WAIT_S)}
            for ticket, frame, row in rows:
                row["stack"] = stacks.get(row["task_id"]) or _why_no_stack(row, silent)
                row["stack"] = row["stack"] or _stack_of(self._pool, ticket, frame)
            return [row for _, _, row in rows]

        return answer

    def call_graph(self, asked: Asked) -> Callable[[], dict[str, Any]]:
        """A call with those around it and the stack of its code; without an id the oldest that wait for others."""
        task_id, now, tasks = asked.option("id"), self._clock(), self._dispatcher.tasks
        user = None if asked.role in SEERS else asked.peer.user
        if not isinstance(task_id, str):
            waiting = [each for each in oldest_waits(tasks.values()) if user is None or each.owner == user]
            return lambda: {"calls": [_with_holders(each, now, self._dispatcher.traces, user) for each in waiting]}
        ticket = find_call(tasks, task_id, self._clients.prefixes())
        if ticket is None or (user is not None and ticket.owner != user):
            raise errors.UnknownTask(f"there is no open call {task_id!r} on {self._config.server_id}")
        around = [each for each in neighbours(ticket) if user is None or each.owner == user]
        context = ticket.context
        frame = sys._current_frames().get(context.thread) if context is not None else None
        elsewhere, silent = None, self._members.silent()
        if ticket.agent.child:
            elsewhere = self._members.ask_all(Op.DUMP)

        def answer() -> dict[str, Any]:
            found, *others = (_with_holders(each, now, self._dispatcher.traces, user) for each in around)
            rows = [] if elsewhere is None else elsewhere.rows(MEMBERS_WAIT_S)
            stack = next((row.get("stack") for row in rows if row.get("task_id") == ticket.task_id), "")
            found["stack"] = stack or _why_no_stack(found, silent) or _stack_of(self._pool, ticket, frame)
            return {"calls": [found, *others]}

        return answer

    def list_errors(self, _: Asked) -> Callable[[], list[dict[str, Any]]]:
        """The errors in which calls have ended lately, grouped."""
        return self._error_log.told

    # ------------------------------------------------------------ the cluster

    def room(self) -> Room:
        """This host as a member of its cluster. Raises UnknownCluster."""
        if self._members.room is None:
            raise errors.UnknownCluster("this host is a member of no cluster")
        return self._members.room

    def list_hosts(self, _: Asked) -> list[Any]:
        """The members of the cluster, see `cluster.protocol`."""
        return list(self.room().inquiries.hosts())

    def where_is_agent(self, asked: Asked) -> Callable[[Tell], None]:
        """The host of an agent of the cluster."""
        return functools.partial(self.room().inquiries.where, str(asked.option("id")))

    def list_cluster(self, asked: Asked) -> Callable[[Tell], None]:
        """A page of the agents of the cluster."""
        pages = self.room().inquiries.agents
        return functools.partial(pages, asked.option("prefix"), asked.option("after"), asked.option("most"))

    def list_events(self, asked: Asked) -> Callable[[Tell], None]:
        """What has happened in the cluster."""
        return functools.partial(self.room().inquiries.events, asked.option("after"), asked.option("most"))

    def move_agent(self, asked: Asked) -> Callable[[Tell], None]:
        """Give an agent of the cluster to another host."""
        if asked.role == "call":
            raise errors.PermissionRefused(f"{Op.MOVE} needs the role admin; {name_of(asked.peer.user)} has call")
        move, hop = self.room().inquiries.move, bool(asked.option("hop"))
        return functools.partial(move, str(asked.option("id")), asked.option("to"), hop=hop)

    def drain(self, asked: Asked) -> bool:
        """Give the agents of the cluster to others, then end."""
        self.room()
        return self.stop(asked)

    def describe(self, asked: Asked) -> bytes | Callable[[Tell], None]:
        """An agent's class and methods, as clients make a proxy of them; a member without the class asks for them."""
        agent_id = asked.option("id")
        if isinstance(agent_id, str) and agent_id.startswith(CLUSTER):
            room = self.room()
            if room.inquiries.is_far(asked.call.options):
                return functools.partial(room.inquiries.describe, agent_id)
            return room.describe(agent_id)
        record = self._dispatcher.agents.get(agent_id) if isinstance(agent_id, str) else None
        if record is None:
            raise errors.UnknownAgent(f"there is no agent {agent_id!r} on {self._config.server_id}")
        if (error := unmade(record)) is not None:
            raise error
        return self._host.description(record)

    # ------------------------------------------------------------ orders

    def delete(self, asked: Asked) -> list[AgentRecord]:
        """Delete one agent; gives it if its hooks are to run. A second request waits for the same end."""
        agent_id = str(asked.option("id"))
        record = self._dispatcher.agents.get(agent_id)
        is_known = record is not None
        if record is None:
            record = next((each for each in self._ends if each.agent_id == agent_id), None)
        if record is not None and asked.role != "admin" and record.owner != asked.peer.user:
            raise errors.PermissionRefused(f"{agent_id} was made by another user: only an admin may delete it")
        if is_known or record is None:
            hooks = self._config.parent is None or asked.option("hooks") is not False
            self._carry_out(self._dispatcher.remove_agent(agent_id, self._clock(), hooks=hooks))
        return [] if record is None else _ending([record], asked.parent)

    def cancel(self, asked: Asked) -> bool:
        """Cancel a call; False if there is no such call open."""
        task_id = str(asked.option("id"))
        ticket = self._dispatcher.tasks.get(task_id)
        if ticket is None:
            return False
        if asked.role != "admin" and ticket.owner != asked.peer.user:
            raise errors.PermissionRefused(f"{task_id} is a call of another user: only an admin may cancel it")
        self._carry_out(self._dispatcher.on_cancel(self._nobody, 0, task_id, self._clock()))
        return True

    def delete_all(self, asked: Asked) -> list[AgentRecord]:
        """Delete all agents but those of a cluster; gives those whose hooks are to run."""
        every = self._dispatcher.agents.values()
        records = [record for record in every if not record.agent_id.startswith(CLUSTER)]
        for record in records:
            self._carry_out(self._dispatcher.remove_agent(record.agent_id, self._clock()))
        return _ending(records, asked.parent)

    def _await_ends(self, peer: Peer, call: Call, records: list[AgentRecord], parent: Ticket | None) -> list[Effect]:
        """Answer a request when all of ``records`` have ended; at once if code on a member would wait for ever."""
        deletion = _Deletion(peer, call.call_id, call.method, dict.fromkeys(records))
        for record in records:
            self._ends.setdefault(record, []).append(deletion)
        if parent is None or not call.options.get("waits"):
            return []
        effects = self._dispatcher.on_wait(parent, _awaited_by(self._ends, peer, call.call_id), self._clock())
        refusal = refusal_of(parent, effects)
        if refusal is None:
            return effects
        for record in records:
            self._ends[record].remove(deletion)
        return [*effects, Answer(peer, call.call_id, error_reply(refusal, method=call.method))]

    def tell_of_end(self, ticket: Ticket, number: int, body: tuple[Frame, ...]) -> list[Effect]:
        """Send what the end of an agent tells, its last state, to the host of this process, which has deleted it."""
        for peer, call_id, _, _ in self._ends.get(ticket.agent, ()):
            if not (peer.local or peer.gone):
                message = answer_frames(Kind.CHUNK, call_id, peer.key.token, body, time_ms=number)
                self._clients.delivery.unsent.append((peer.key, message))
        return []

    def on_ended(self, effect: Ended) -> list[Effect]:
        """The hooks of a deleted agent have run: their error goes to those who deleted it, or into the log."""
        record, reply = effect
        effects: list[Effect] = []
        is_told = False
        for peer, call_id, method, left in self._ends.pop(record, ()):
            del left[record]
            if method == Op.DELETE:
                effects.append(Answer(peer, call_id, reply if reply.code else _DONE))
                is_told = True
            elif not left:
                effects.append(Answer(peer, call_id, _DONE))
        if reply.code == Code.AGENT_ERROR and not is_told:
            log.warning("%s", _failure_of(reply))
        return effects

    def stop(self, asked: Asked) -> bool:
        """Drain and end. At once, not as an event: when the answer arrives, no new call is accepted."""
        grace = asked.option("grace_s")
        good = isinstance(grace, (int, float)) and not isinstance(grace, bool) and grace >= 0
        grace_s = float(grace) if good and grace is not None else self._config.grace_s
        self._told(grace_s)
        self._carry_out(self._stop(grace_s))
        return True

    def add_models(self, asked: Asked) -> Callable[[], bool]:
        """Add model configurations."""

        def add() -> bool:
            self._models.add(self._argument(asked.call))
            self._tell_members(asked.call)
            return True

        return add

    def _tell_members(self, call: Call) -> None:
        """What the host was told, its members must know as well. Not for the router thread: it waits for them."""
        answers = Answers()
        answers.expect()
        self._post(self._teach, call, answers)
        answers.rows(MEMBERS_WAIT_S)

    def _teach(self, call: Call, answers: Answers) -> list[Effect]:
        self._members.teach(call.method, call.body, answers)
        answers.deliver(None)  # it has asked all
        return []

    def list_children(self, _: Asked) -> list[dict[str, Any]]:
        """The processes that run agents of this host."""
        return self._members.rows()

    def restart_child(self, asked: Asked) -> bool:
        """End the process of an agent and start it again; the crashes of the agent are forgotten."""
        agent_id = asked.option("id")
        record = self._dispatcher.agents.get(agent_id) if isinstance(agent_id, str) else None
        if record is None:
            raise errors.UnknownAgent(f"there is no agent {agent_id!r} on {self._config.server_id}")
        return self._members.restart(record)

    def put_state(self, asked: Asked) -> bool:
        """Keep the state of an agent that is about to be made again in this process."""
        agent_id, number, version = asked.option("id"), asked.option("number"), asked.option("version")
        if self._config.parent is None or self._keeper is None:
            raise errors.PermissionRefused("only a process that runs agents of another host takes their states")
        if not isinstance(agent_id, str) or type(number) is not int or type(version) is not int:
            raise errors.RemoteProtocolError("put_state takes the id of an agent, a number and a version")
        self._keeper.keep(agent_id, Snapshot(number, version, tuple(map(bytes, asked.call.body))))
        return True

    def register_class(self, asked: Asked) -> Callable[[], bool]:
        """Add an agent class to a private host."""

        def register() -> bool:
            cls = self._argument(asked.call)
            if not self._config.private:
                raise errors.PermissionRefused("only a private host takes classes from its parent")
            self._host.classes.add(cls, replace=True)
            self._tell_members(asked.call)
            return True

        return register


def _shortening(answer: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: shortened(answer())


def _audit(peer: Peer, call: Call, how: str) -> None:
    """One line for what a user has the host do."""
    about = call.options.get("id")
    what = f"{call.method} {about}" if isinstance(about, str) else call.method
    user = name_of(peer.user)
    audit_log.info("%s by %s: %s", what, user, how, extra=fields_of(action=call.method, user=user, client=peer.prefix))


def _ending(records: Iterable[AgentRecord], parent: Ticket | None) -> list[AgentRecord]:
    """Those of ``records`` that a request can wait for: their hooks have not run, and its own calls are not in the way.

    ``parent``: the call of this host whose code has deleted them. An agent that deletes itself ends after its call.
    """
    chain = () if parent is None else (parent, *ancestors(parent))
    busy = {link.agent for link in chain}
    return [record for record in records if record.end is not None and not record.end.settled and record not in busy]


def _failure_of(reply: Reply) -> str:
    """The error of a hook as one line: ``r1.on_stop failed: ValueError: no such file``."""
    kind, data = read_error(reply)
    text = " ".join(str(data.get("message", "")).split())[:MESSAGE_CHARS]
    return f"{data.get('agent')}.{data.get('method')} failed: {kind}: {text}"


def _stack_of(pool: WorkerPool, ticket: Ticket, frame: Any) -> str:
    if ticket.on_loop:
        return pool.stack_on_loop(ticket)[-STACK_CHARS:]
    return "".join(traceback.format_stack(frame)[-STACK_FRAMES:])[-STACK_CHARS:] if frame is not None else ""


def _with_holders(ticket: Ticket, now: float, traces: HostTraces | None, user: str | None = None) -> dict[str, Any]:
    """The row of a call, with those of ``user`` (None: of all) that have the turn for which it queues."""
    holders = ticket.agent.holders[:MAX_AROUND] if ticket.state is State.QUEUED else []
    behind = [each.task_id for each in holders if user is None or each.owner == user]
    return {**call_row(ticket, now, traces), "behind": behind}


def _why_no_stack(row: dict[str, Any], silent: dict[int, float]) -> str:
    """Instead of the stack of a call, what there is to be said of the silent process that runs it; "" for others."""
    pid = row["child"]
    if pid not in silent or row["state"] == "queued":
        return ""
    return (
        f"its process {pid} has not answered for {silent[pid]:.1f} s: code in C may keep its interpreter lock; "
        f"kill -USR2 {pid} has the stacks of its threads written to the stderr of the host"
    )


def _upgrade_records(management: Management, asked: Asked) -> Callable[[Tell], None]:
    """One step of bringing the records of the cluster to another form."""
    upgrade = management.room().inquiries.upgrade
    return functools.partial(upgrade, asked.option("step"), asked.option("form"), asked.option("after"))


class Request(NamedTuple):
    """One row of the table of management requests. ``who`` may ask: see the module's docstring.

    ``handler`` answers it: with the answer, or for `Runs.APART` with a function that gives the answer in a thread of
    its own. None for `Runs.CALL`. ``audited``: each such request of a client is a line of the log.
    """

    op: str
    who: Literal["all", "callers", "owner", "seers", "admin"]
    runs: Runs
    handler: Callable[[Management, Asked], Any] | None
    audited: bool = False


REQUESTS = (
    Request(Op.CREATE, "callers", Runs.CALL, None),
    Request(Op.MEMORY, "callers", Runs.CALL, None),
    Request(Op.DOWNLOAD, "callers", Runs.CALL, None),
    Request(Op.HEALTH, "all", Runs.CALL, None),
    Request(Op.DESCRIBE, "all", Runs.ROUTER, Management.describe),
    Request(Op.LIST, "all", Runs.IN_TURN, Management.list_agents),
    Request(Op.OFFERS, "all", Runs.IN_TURN, Management.offers),
    Request(Op.INFO, "all", Runs.ROUTER, Management.info),
    Request(Op.LOGS, "seers", Runs.APART, Management.logs),
    Request(Op.METRICS, "all", Runs.APART, Management.metrics),
    Request(Op.CALLS, "all", Runs.IN_TURN, Management.list_calls),  # seers see all, others their own
    Request(Op.CANCEL, "owner", Runs.ROUTER, Management.cancel, audited=True),
    Request(Op.DELETE, "owner", Runs.ENDING, Management.delete, audited=True),
    Request(Op.DELETE_ALL, "admin", Runs.ENDING, Management.delete_all, audited=True),
    Request(Op.STOP, "admin", Runs.ROUTER, Management.stop, audited=True),
    Request(Op.DUMP, "seers", Runs.APART, Management.dump),
    Request(Op.GRAPH, "all", Runs.APART, Management.call_graph),  # seers see all, others their own
    Request(Op.ERRORS, "seers", Runs.APART, Management.list_errors),
    Request(Op.RESULTS, "seers", Runs.APART, Management.list_results),
    Request(Op.MODELS, "admin", Runs.APART, Management.add_models, audited=True),
    Request(Op.REGISTER, "admin", Runs.APART, Management.register_class, audited=True),
    Request(Op.CHILDREN, "all", Runs.ROUTER, Management.list_children),
    Request(Op.RESTART, "admin", Runs.ROUTER, Management.restart_child, audited=True),
    Request(Op.STATE, "admin", Runs.ROUTER, Management.put_state),
    Request(Op.HOSTS, "all", Runs.ROUTER, Management.list_hosts),
    Request(Op.WHERE, "all", Runs.LATER, Management.where_is_agent),
    Request(Op.EVENTS, "all", Runs.LATER, Management.list_events),
    Request(Op.MOVE, "owner", Runs.LATER, Management.move_agent, audited=True),
    Request(Op.DRAIN, "admin", Runs.ROUTER, Management.drain, audited=True),
    Request(Op.UPGRADE, "admin", Runs.LATER, _upgrade_records),
)
CLUSTER_LIST = Request(Op.LIST, "all", Runs.LATER, Management.list_cluster)  # with the option cluster
CLUSTER_DESCRIBE = Request(Op.DESCRIBE, "all", Runs.LATER, Management.describe)  # of a class that others have


def _awaited_by(ends: Mapping[AgentRecord, list[_Deletion]], peer: Peer, call_id: int) -> list[str]:
    """The calls that end the agents for which a request waits."""
    return [
        record.end.task_id for record, deletions in ends.items() if record.end is not None
        and any(deletion.peer is peer and deletion.call_id == call_id for deletion in deletions)
    ]  # fmt: skip


def _deletes_far(call: Call, config: BrokerConfig) -> bool:
    """Whether an agent of a cluster is to be deleted, wherever it is; a process has those that it runs for its host."""
    is_meant = call.method == Op.DELETE and str(call.options.get("id")).startswith(CLUSTER)
    return is_meant and config.parent is None


def _request_in(call: Call, room: Room | None) -> Request | None:
    """What is asked for; None if there is no such request."""
    if call.method == Op.LIST and call.options.get("cluster"):
        return CLUSTER_LIST
    if call.method == Op.DESCRIBE and room is not None and room.inquiries.is_far(call.options):
        return CLUSTER_DESCRIBE
    return _BY_OP.get(call.method)


_MAY_ASK: dict[str, frozenset[Role]] = {
    "all": frozenset(ROLES), "callers": CALLERS, "owner": CALLERS, "seers": SEERS,
    "admin": frozenset({"admin"}),
}  # fmt: skip
_BY_OP = {request.op: request for request in REQUESTS}
RUN_AS_CALLS = frozenset(request.op for request in REQUESTS if request.runs is Runs.CALL)
ADMIN_ONLY = frozenset(request.op for request in REQUESTS if request.who in ("seers", "admin"))
