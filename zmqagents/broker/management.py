"""Requests to the host itself: what there is, how it is, delete, configure, stop.

They are answered in the router thread from what the dispatcher knows, so they get an answer however busy the workers
are. Those that run somebody's code, read files or ask the store (`ANSWERED_APART`) get a thread of their own. Making
an agent, reading its memory and reading a file may take long, too: those are calls like any other (`RUN_AS_CALLS`),
and the dispatcher's matter. All answers are plain data without secrets.

Who may ask for what (`Management.check`); the host's own code, agents that call agents, may do all of it:

    request                              role call                       role admin
    create_agent, describe_agent         yes                             yes
    calls, attributes, memory            yes                             yes
    a result by its task id              yes: the id is the key to it    yes
    get_agent_list, get_server_info      yes                             yes
    download_file, below --file-root     yes                             yes
    delete_agent                         agents that it has made         all
    get_call_list, cancel_call           its own calls                   all
    stop, delete_all_agent, dump         no                              yes
    get_result_list                      no: see above                   yes
    set_model_configs, register_class    no                              yes
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from .. import codec, errors
from ..execution.runner import AgentHost
from ..execution.threads import WorkerPool
from ..models.configs import ModelConfigs
from ..scheduler.dispatcher import Dispatcher, error_reply
from ..scheduler.effects import Effect
from ..scheduler.records import AgentRecord, Peer, State, Ticket
from ..security.keys import Role
from ..security.zap import name_of
from ..store import FutureStore
from ..store.write_behind import Archive
from ..version import __version__
from ..wire.messages import Call, Code, Flag, Op, Reply

__all__ = ["ADMIN_ONLY", "ANSWERED_APART", "RUN_AS_CALLS", "Management"]

RUN_AS_CALLS = frozenset({Op.CREATE, Op.MEMORY, Op.DOWNLOAD})
ANSWERED_APART = frozenset({Op.MODELS, Op.REGISTER, Op.RESULTS, Op.DUMP})
ADMIN_ONLY = frozenset({Op.STOP, Op.DELETE_ALL, Op.MODELS, Op.REGISTER, Op.DUMP, Op.RESULTS})
STACK_FRAMES = 24  # of each running call in a dump, the innermost ones
STACK_CHARS = 4_000
MAX_LISTED_CALLS = 10_000  # a list of more would be read by nobody and hold up the router


class Management:
    """Answers the management requests of one host; see the module's docstring.

    ``carry_out`` runs effects of the dispatcher, ``post`` hands an event to the router thread, ``where`` tells what
    only the broker knows (port, clients), ``told`` tells the main thread that a stop has begun, and its grace.
    """

    def __init__(
        self, dispatcher: Dispatcher, host: AgentHost, pool: WorkerPool, store: FutureStore,
        archive: Archive | None, models: ModelConfigs, *,
        unpickler: Callable[[bytes], Any] | None, carry_out: Callable[[list[Effect]], None],
        post: Callable[..., None], where: Callable[[], dict[str, Any]],
        told: Callable[[float], None], clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._config = dispatcher.config
        self._dispatcher = dispatcher
        self._host = host
        self._pool = pool
        self._store = store
        self._archive = archive
        self._models = models
        self._unpickler = unpickler
        self._carry_out = carry_out
        self._post = post
        self._where = where
        self._told = told
        self._clock = clock
        self._started = clock()
        self._nobody = Peer("")
        self._requests: dict[str, Callable[[dict[str, Any]], Any]] = {
            Op.INFO: lambda _: self.info(), Op.LIST: self._list, Op.CANCEL: self._cancel,
            Op.DESCRIBE: self._describe, Op.DELETE: self._delete, Op.DELETE_ALL: self._delete_all, Op.STOP: self._stop,
        }  # fmt: skip

    def check(self, peer: Peer, role: Role, call: Call) -> None:
        """Raise `PermissionRefused` for what ``role`` does not allow; see the table of the module."""
        if role == "admin":
            return
        if call.method in ADMIN_ONLY:
            raise errors.PermissionRefused(f"{call.method} needs the role admin; {name_of(peer.user)} has {role}")
        subject = str(call.options.get("id"))
        if call.method == Op.DELETE:
            record = self._dispatcher.agents.get(subject)
            if record is not None and record.owner != peer.user:
                raise errors.PermissionRefused(f"{subject} was made by somebody else: only an admin may delete it")
        if call.method == Op.CANCEL:
            ticket = self._dispatcher.tasks.get(subject)
            if ticket is not None and ticket.owner != peer.user:
                raise errors.PermissionRefused(f"{subject} is somebody else's call: only an admin may cancel it")

    def may_cancel(self, peer: Peer, role: Role, task_id: str) -> bool:
        """The same for a CANCEL, which has no answer: an open call of its user, or one that it may yet make."""
        if role == "admin" or not task_id:  # "": by its own number of the call
            return True
        ticket = self._dispatcher.tasks.get(task_id)
        return task_id.startswith(f"{peer.prefix}-") if ticket is None else ticket.owner == peer.user

    def handle(self, peer: Peer, call: Call, role: Role) -> Reply | None:
        """The answer; None if it comes later, as the event ``managed``. Called by the router thread."""
        try:
            self.check(peer, role, call)
            if call.method == Op.CALLS:
                return Reply(Code.NONE, (codec.pack(self._calls(None if role == "admin" else peer.user)),))
            if call.method == Op.RESULTS:
                call = call._replace(options={**call.options, "open": self._open_results()})
            elif call.method == Op.DUMP:
                call = call._replace(options={"open": self._open_calls()})
            if call.method in ANSWERED_APART:
                self._begin_apart(peer, call)
                return None
            request = self._requests.get(call.method)
            if request is None:
                raise errors.UnknownMethod(f"the host has no management request {call.method!r}")
            return Reply(Code.NONE, (codec.pack(request(call.options)),))
        except errors.ZmqAgentsError as exc:
            return error_reply(exc, method=call.method)

    def info(self) -> dict[str, Any]:
        """What ``status`` shows."""
        dispatcher = self._dispatcher
        return {
            "server_id": self._config.server_id, "version": __version__, "pid": os.getpid(),
            "python": ".".join(map(str, sys.version_info[:3])),
            "state": "draining" if dispatcher.draining else "running", "host": self._config.host, **self._where(),
            "uptime_s": round(self._clock() - self._started, 3), "capacity": self._config.capacity,
            "agents": len(dispatcher.agents), "classes": self._host.classes.names(), "models": self._models.names(),
            "calls_open": len(dispatcher.tasks), "running": dispatcher.running, "waiting": dispatcher.blocked,
            "queued_bytes": dispatcher.queued_bytes, "worker_threads": self._pool.size,
            "calls": vars(dispatcher.counters).copy(), "store": self._store_figures(),
            "settings": self._config.public(),
        }  # fmt: skip

    def _store_figures(self) -> dict[str, Any]:
        return self._store.stats()._asdict() if self._archive is None else self._archive.figures()

    # ------------------------------------------------------------ what there is

    def _list(self, _: dict[str, Any]) -> list[dict[str, Any]]:
        return [self._agent_info(record) for record in self._dispatcher.agents.values()]

    def _agent_info(self, record: AgentRecord) -> dict[str, Any]:
        return {
            "agent_id": record.agent_id, "class": record.spec.name, "type": record.spec.short,
            "calls": record.calls, "running": len(record.holders), "queued": record.queued,
            "age_s": round(self._clock() - record.created, 3),
        }  # fmt: skip

    def _calls(self, user: str | None) -> list[dict[str, Any]]:
        """The open calls of ``user``, None: of all."""
        now = self._clock()
        tickets = (ticket for ticket in self._dispatcher.tasks.values() if user is None or ticket.owner == user)
        return [self._call_info(ticket, now) for ticket in itertools.islice(tickets, MAX_LISTED_CALLS)]

    def _call_info(self, ticket: Ticket, now: float) -> dict[str, Any]:
        if ticket.parent is not None:
            caller = f"{ticket.parent.agent.agent_id}.{ticket.parent.name}"
        else:
            caller = f"client {ticket.peer.prefix}"
        waits_for = ticket.waits_for or ()
        return {
            "task_id": ticket.task_id, "agent": ticket.agent.agent_id, "method": ticket.name, "caller": caller,
            "state": ticket.state.name.lower(), "age_s": round(now - ticket.accepted, 3),
            "time_left_s": None if ticket.deadline is None else round(ticket.deadline - now, 3),
            "waits_for": [target.task_id for target in waits_for] + sorted(ticket.deps or ()),
        }  # fmt: skip

    def _open_results(self) -> list[dict[str, Any]]:
        """The calls of this host whose results will be kept; the router thread's part of `_results`."""
        now = self._clock()
        kept = (ticket for ticket in self._dispatcher.tasks.values() if ticket.flags & Flag.DETACHED)
        return [
            {"task_id": ticket.task_id, "state": "pending", "age_s": round(now - ticket.accepted, 3), "bytes": 0}
            for ticket in itertools.islice(kept, MAX_LISTED_CALLS)
        ]

    def _results(self, options: dict[str, Any]) -> list[dict[str, Any]]:
        """Calls of this host that are not finished, then the latest results in the store, the youngest first."""
        most = options.get("most")
        most = most if isinstance(most, int) and 0 < most < MAX_LISTED_CALLS else MAX_LISTED_CALLS
        return [
            *options["open"],
            *(
                {"task_id": entry.task_id, "state": "done", "age_s": round(entry.age_s, 3), "bytes": entry.bytes}
                for entry in self._store.entries(most)
            ),
        ]

    def _open_calls(self) -> list[tuple[Ticket, Any, dict[str, Any]]]:
        """Each open call, the frame of its code and what is known of it; the router thread's part of `_dump`."""
        now, frames = self._clock(), sys._current_frames()
        rows = []
        for ticket in itertools.islice(self._dispatcher.tasks.values(), MAX_LISTED_CALLS):
            row = self._call_info(ticket, now)
            queued = ticket.state is State.QUEUED
            row["behind"] = [holder.task_id for holder in ticket.agent.holders] if queued else []
            rows.append((ticket, frames.get(ticket.context.thread) if ticket.context is not None else None, row))
        return rows

    def _dump(self, calls: list[tuple[Ticket, Any, dict[str, Any]]]) -> list[dict[str, Any]]:
        """Each open call with the stack of its code, and what it waits for: the wait-for graph as a list of edges."""
        return [{**row, "stack": self._stack_of(ticket, frame)} for ticket, frame, row in calls]

    def _stack_of(self, ticket: Ticket, frame: Any) -> str:
        if ticket.on_loop:
            return self._pool.stack_on_loop(ticket)[-STACK_CHARS:]
        return "".join(traceback.format_stack(frame)[-STACK_FRAMES:])[-STACK_CHARS:] if frame is not None else ""

    def _describe(self, options: dict[str, Any]) -> bytes:
        agent_id = options.get("id")
        record = self._dispatcher.agents.get(agent_id) if isinstance(agent_id, str) else None
        if record is None:
            raise errors.UnknownAgent(f"there is no agent {agent_id!r} on {self._config.server_id}")
        return self._host.description(record)

    # ------------------------------------------------------------ what changes it

    def _delete(self, options: dict[str, Any]) -> bool:
        self._carry_out(self._dispatcher.remove_agent(str(options.get("id")), self._clock()))
        return True

    def _cancel(self, options: dict[str, Any]) -> bool:
        task_id = str(options.get("id"))
        is_open = task_id in self._dispatcher.tasks
        if is_open:
            self._carry_out(self._dispatcher.on_cancel(self._nobody, 0, task_id, self._clock()))
        return is_open

    def _delete_all(self, _: dict[str, Any]) -> bool:
        for agent_id in list(self._dispatcher.agents):
            self._carry_out(self._dispatcher.remove_agent(agent_id, self._clock()))
        return True

    def _stop(self, options: dict[str, Any]) -> bool:
        grace = options.get("grace_s")
        good = isinstance(grace, (int, float)) and not isinstance(grace, bool) and grace >= 0
        now = self._clock()
        grace_s = float(grace) if good and grace is not None else self._config.grace_s
        self._told(grace_s)
        # At once, not as an event: whoever has the answer knows that no new call is taken.
        self._carry_out(self._dispatcher.on_drain(now + grace_s, now))
        return True

    def _begin_apart(self, peer: Peer, call: Call) -> None:
        name = f"zmqagents-{call.method}"
        try:
            threading.Thread(target=self._apart, args=(peer, call), name=name, daemon=True).start()
        except RuntimeError as exc:  # no more threads
            raise errors.HostBusy(f"{call.method}: the host cannot start a thread: {exc}") from exc

    def _apart(self, peer: Peer, call: Call) -> None:
        """In a thread of its own."""
        try:
            payload, *buffers = call.body
            args, _ = codec.decode_call(payload, buffers, unpickler=self._unpickler)
            answer: Any = True
            if call.method == Op.RESULTS:
                answer = self._results(call.options)
            elif call.method == Op.DUMP:
                answer = self._dump(call.options["open"])
            elif call.method == Op.MODELS:
                self._models.add(args[0])
            elif self._config.private:
                self._host.classes.add(args[0], replace=True)
            else:
                raise errors.PermissionRefused("only a private host takes classes from its parent")
            reply = Reply(Code.NONE, (codec.pack(answer),))
        except errors.ZmqAgentsError as exc:
            reply = error_reply(exc, method=call.method)
        except Exception as exc:  # a class body, an unpickler: somebody's code
            reply = Reply(Code.AGENT_ERROR, (codec.pack(errors.describe(exc, method=call.method)),))
        self._post("managed", peer, call.call_id, reply)
