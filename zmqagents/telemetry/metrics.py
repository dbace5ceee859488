"""The metrics of a host: their names, and its figures under these names.

`METRICS` is the list of them. `samples` makes them of what a host answers to the management request ``metrics``, so
everything that shows metrics (a page for Prometheus, a table in a terminal) says the same. Names follow Prometheus's
rules: one prefix, base units, ``_total`` for what only grows. No agent, task, client or key is ever a label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

__all__ = ["HOST_UP", "METRICS", "Buckets", "Metric", "Sample", "percentile", "samples"]


class Metric(NamedTuple):
    """One metric. ``labels`` are those beside ``host``."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


class Buckets(NamedTuple):
    """The value of a histogram: upper edges in seconds, the durations up to each and beyond the last, and their sum.

    ``examples``: by the place of a bucket the trace id of a call in it, how long that took and when it ended.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float
    examples: Mapping[str, tuple[str, float, float]] = {}

    @property
    def cumulative(self) -> Iterator[tuple[str, int]]:
        """Each edge as text with the number of durations up to it; the last one is ``+Inf``."""
        total = 0
        for edge, count in zip([*map(str, self.edges), "+Inf"], self.counts, strict=True):
            total += count
            yield edge, total


class Sample(NamedTuple):
    """A value of a metric, for one set of values of its labels."""

    metric: Metric
    labels: tuple[str, ...]
    value: float | Buckets


def _metric(name: str, kind: Literal["counter", "gauge", "histogram"], text: str, *labels: str) -> Metric:
    metric = Metric(f"zmqagents_{name}", kind, text, labels)
    METRICS.append(metric)
    return metric


METRICS: list[Metric] = []  # those that a host tells
HOST_UP = Metric("zmqagents_host_up", "gauge", "1 if the host answers; else it is all that is known.")
_CALLS = _metric("calls_total", "counter", "Calls that have ended, by how.", "class", "method", "outcome")
_QUEUED = _metric(
    "call_queue_seconds", "histogram", "From the acceptance of a call to the first line of its code.", "class", "method"
)
_RAN = _metric("call_run_seconds", "histogram", "From there to its answer.", "class", "method")
_TOOK = _metric("call_duration_seconds", "histogram", "From the acceptance of a call to its answer.", "class", "method")
_REFUSED = _metric("calls_refused_total", "counter", "Calls that were not accepted, by the error.", "error")
_LIMITS = _metric("limit_refusals_total", "counter", "Refusals by the limit or share that was used up.", "limit")
_OPEN = _metric("calls_in_progress", "gauge", "Calls that are not answered, by their state.", "state")
_OLDEST = _metric("oldest_call_seconds", "gauge", "Age of the oldest call that is not answered.")
_MAILBOX = _metric("longest_mailbox_length", "gauge", "Calls in the fullest mailbox of an agent.")
_BYTES = _metric("queued_bytes", "gauge", "Arguments of calls that have not started.")
_BYTES_LIMIT = _metric("queued_limit_bytes", "gauge", "What these may be at most.")
_STREAMS = _metric("streams", "gauge", "Calls in progress that are streams.")
_STARVING = _metric("streams_waiting", "gauge", "Streams that wait for their readers.")
_AGENTS = _metric("agents", "gauge", "Agents, by class.", "class")
_WORKERS = _metric("workers", "gauge", "Worker threads, by what they do.", "state")
_CAPACITY = _metric("capacity", "gauge", "Agents that may run at the same moment.")
_LOOP_TASKS = _metric("loop_tasks", "gauge", "Coroutines of agents on the event loop.")
_LOOP_LAG = _metric("loop_lag_seconds", "gauge", "How late the event loop was to do what it was last asked to.")
_CHILDREN = _metric("children", "gauge", "Processes that run agents of the host.")
_RESTARTS = _metric("child_restarts_total", "counter", "Processes of agents that were started again.")
_CLIENTS = _metric("clients", "gauge", "Clients, by whether they are connected or lost for a moment.", "state")
_SESSIONS = _metric("sessions_total", "counter", "Clients that have come in for the first time.")
_RECONNECTS = _metric("reconnects_total", "counter", "Clients that have come back after their connection broke.")
_RESENT = _metric("calls_resent_total", "counter", "Calls that came a second time and were not run again.")
_BREACHES = _metric(
    "protocol_errors_total", "counter", "What clients have sent and may not send, by what was wrong.", "reason"
)
_AUTH = _metric("auth_failures_total", "counter", "Connections refused for their key or user.")
_RECEIVED_BYTES = _metric("received_bytes_total", "counter", "Bytes of the messages of clients, by door.", "door")
_SENT_BYTES = _metric("sent_bytes_total", "counter", "Bytes sent to clients, by door.", "door")
_STORE = _metric("store_entries", "gauge", "Results in the store, by state.", "state")
_STORE_BYTES = _metric("store_bytes", "gauge", "Bytes of finished results in the store.")
_STORE_LIMIT = _metric("store_limit_bytes", "gauge", "What these may be at most.")
_STORE_DROPPED = _metric("store_dropped_total", "counter", "Results that the store dropped or did not take.", "reason")
_STORE_UP = _metric("store_up", "gauge", "1 if the store answers and takes results.")
_STORE_TRIP = _metric("store_round_trip_seconds", "gauge", "The last exchange with Redis; absent for a local store.")
_CPU = _metric("process_cpu_seconds_total", "counter", "Processor time of the host process.")
_MEMORY = _metric("process_resident_memory_bytes", "gauge", "Memory of the host process.")
_FDS = _metric("process_open_fds", "gauge", "Descriptors that the host process has open.")
_LOST_LINES = _metric("log_lines_dropped_total", "counter", "Log lines that were not written: too many at once.")
_LEASE = _metric(
    "cluster_lease_left_ratio", "gauge", "What is left of the lease of a member; at most 0.8: a fifth is kept back."
)
_MEMBERS = _metric("cluster_members", "gauge", "Members of the cluster, by state, as this one knows them.", "state")
_HOMED = _metric("cluster_agents", "gauge", "Agents of the cluster that live here.")
_WAITING = _metric("cluster_activations_waiting", "gauge", "Agents that wait for a place to be claimed and made.")
_CLAIMS = _metric("cluster_claims_total", "counter", "Claims of agents.")
_ACTIVATION = _metric(
    "cluster_activation_seconds", "histogram", "From the first call of an agent at its home until its code may run."
)
_RELAYED = _metric("cluster_relayed_total", "counter", "Calls that were passed on to other members.")
_ELSEWHERE = _metric(
    "cluster_elsewhere_total", "counter",
    "Calls that came to a member without their agent: told so by this one, or met by it at another.", "side",
)  # fmt: skip
_SAVES = _metric("cluster_saves_total", "counter", "States of agents that Redis has taken.")
_SAVES_REFUSED = _metric(
    "cluster_saves_refused_total", "counter", "States that Redis has refused: the agent has another home by now."
)
_FENCED = _metric("cluster_fenced_total", "counter", "Agents that were dropped: they have another home by now.")
_HEALED = _metric("cluster_healed_total", "counter", "Records that Redis had lost, written again.")
_HOMES = _metric("cluster_homes", "gauge", "Agents elsewhere whose home is known.")
_LOOKUPS = _metric("cluster_home_lookups_total", "counter", "Looks for the home of an agent among these.", "found")
_CLUSTER_TRIP = _metric(
    "cluster_redis_round_trip_seconds", "gauge", "The last exchange with Redis about agents of the cluster."
)
_DRAINING = _metric("draining", "gauge", "1 while the host takes no new calls.")
_STARTED = _metric("start_time_seconds", "gauge", "When the host has started, since the epoch.")
_BUILD = _metric("build_info", "gauge", "1; the labels tell what runs.", "version", "python")


def samples(figures: Mapping[str, Any]) -> Iterator[Sample]:
    """The values of all metrics that a host has; those of one metric come one after the other."""
    edges = tuple(figures["edges_s"])
    methods = figures["methods"]
    for each in methods:
        for outcome, count in each["ends"].items():
            if count or outcome == "ok":
                yield Sample(_CALLS, (each["class"], each["method"], outcome), count)
    for metric, key in ((_QUEUED, "queued"), (_RAN, "ran"), (_TOOK, "took")):
        for each in methods:
            told = each[key]
            value = Buckets(edges, tuple(told["counts"]), told["sum_s"], told.get("examples", {}))
            yield Sample(metric, (each["class"], each["method"]), value)
    for metric, key in _BY_LABEL.items():
        for label, count in figures[key].items():
            yield Sample(metric, (label,), count)
    for metric, key in _SINGLE.items():
        if figures.get(key) is not None:
            yield Sample(metric, (), figures[key])
    doors = figures["doors"]
    for metric, key in ((_RECEIVED_BYTES, "received_bytes"), (_SENT_BYTES, "sent_bytes")):
        for door, counts in doors.items():
            yield Sample(metric, (door,), counts[key])
    yield from _of_store(figures["store"])
    yield Sample(_STORE_LIMIT, (), figures["store_limit_bytes"])
    if figures.get("cluster") is not None:
        yield from _of_cluster(figures["cluster"], edges)
    yield Sample(_BUILD, (figures["version"], figures["python"]), 1)


_BY_LABEL = {
    _REFUSED: "refused", _LIMITS: "limits", _OPEN: "calls", _AGENTS: "agents", _WORKERS: "workers", _CLIENTS: "clients",
    _BREACHES: "breaches",
}  # fmt: skip
_SINGLE = {
    _OLDEST: "oldest_s", _MAILBOX: "longest_mailbox", _BYTES: "queued_bytes", _BYTES_LIMIT: "queued_limit_bytes",
    _STREAMS: "streams", _STARVING: "streams_waiting", _CAPACITY: "capacity", _LOOP_TASKS: "loop_tasks",
    _LOOP_LAG: "loop_lag_s", _CHILDREN: "children", _RESTARTS: "child_restarts", _SESSIONS: "sessions",
    _RECONNECTS: "reconnects",
    _RESENT: "resent", _AUTH: "auth_failures", _CPU: "cpu_s", _MEMORY: "resident_bytes", _FDS: "open_fds",
    _LOST_LINES: "log_lines_dropped", _DRAINING: "draining", _STARTED: "started",
}  # fmt: skip


def _of_store(store: Mapping[str, Any]) -> Iterator[Sample]:
    for state in ("pending", "done"):
        yield Sample(_STORE, (state,), store[state])
    yield Sample(_STORE_BYTES, (), store["bytes"])
    for reason in ("expired", "evicted", "refused", "given_up"):
        if reason in store:
            yield Sample(_STORE_DROPPED, (reason,), store[reason])
    yield Sample(_STORE_UP, (), int(store.get("state", "up") == "up"))
    if "round_trip_ms" in store:
        yield Sample(_STORE_TRIP, (), store["round_trip_ms"] / 1000)


_OF_CLUSTER = {
    _LEASE: "lease_left", _HOMED: "agents", _WAITING: "activations_waiting", _CLAIMS: "claims", _RELAYED: "relayed",
    _SAVES: "saves", _SAVES_REFUSED: "saves_refused", _FENCED: "fenced", _HEALED: "healed", _HOMES: "homes",
}  # fmt: skip


def _of_cluster(told: Mapping[str, Any], edges: tuple[float, ...]) -> Iterator[Sample]:
    for metric, key in _OF_CLUSTER.items():
        yield Sample(metric, (), told[key])
    for state, count in told["members"].items():
        yield Sample(_MEMBERS, (state,), count)
    for side in ("told", "met"):
        yield Sample(_ELSEWHERE, (side,), told[f"elsewhere_{side}"])
    for found, key in (("yes", "home_hits"), ("no", "home_misses")):
        yield Sample(_LOOKUPS, (found,), told[key])
    yield Sample(_ACTIVATION, (), Buckets(edges, tuple(told["took"]["counts"]), told["took"]["sum_s"]))
    yield Sample(_CLUSTER_TRIP, (), told["round_trip_ms"] / 1000)


def percentile(edges: tuple[float, ...], counts: tuple[int, ...], share: float) -> float | None:
    """About the duration below which ``share`` of those in a histogram lie: within its bucket, evenly; None: no data.

    Of those beyond the last edge no more is known than that edge.
    """
    total = sum(counts)
    if not total:
        return None
    left, low = share * total, 0.0
    for edge, count in zip(edges, counts, strict=False):
        if count and left <= count:
            return low + (edge - low) * left / count
        left, low = left - count, edge
    return low
