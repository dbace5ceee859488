"""What a host could tell of itself, with some of everything."""

from __future__ import annotations

from typing import Any

from zmqagents.telemetry.meters import EDGES_S, Meters, Outcome


def figures(methods: int = 2, *, cluster: bool = True) -> dict[str, Any]:
    meters = Meters()
    for number in range(methods):
        of_class = meters.of_class("m:A")
        of_class.at_once[f"f{number}"](0.00002)
        of_class[f"f{number}"].note(Outcome.ERROR, 0.002, 0.02)
    door = {"received_bytes": 500, "sent_bytes": 700}
    store = {"pending": 1, "done": 2, "bytes": 300, "expired": 4, "evicted": 5, "refused": 0}
    return {
        "edges_s": list(EDGES_S), "methods": meters.told(), "refused": {"HostBusy": 3},
        "limits": {"mailbox": 3}, "calls": {"queued": 1, "running": 2}, "agents": {"m:A": 9}, "oldest_s": 1.5,
        "longest_mailbox": 1, "queued_bytes": 10, "queued_limit_bytes": 1000, "streams": 1, "streams_waiting": 0,
        "workers": {"busy": 2, "waiting": 1, "idle": 3}, "capacity": 4, "loop_tasks": 0, "loop_lag_s": None,
        "children": 0, "child_restarts": 0, "clients": {"connected": 2, "lost": 0}, "sessions": 2, "resent": 0,
        "reconnects": 1, "breaches": {"malformed": 2},
        "auth_failures": 1, "doors": {"unix": door}, "store": store, "store_limit_bytes": 1000, "cpu_s": 0.5,
        "resident_bytes": 1_000_000, "open_fds": 20, "log_lines_dropped": 0, "draining": 0, "started": 1.7e9,
        "version": "1.0", "python": "3.11.1", "cluster": None if not cluster else {
            "lease_left": 0.7, "agents": 9, "activations_waiting": 0, "claims": 9, "relayed": 3, "saves": 70,
            "saves_refused": 1, "fenced": 1, "healed": 0, "homes": 5, "home_hits": 8, "home_misses": 5,
            "elsewhere_told": 1, "elsewhere_met": 2, "round_trip_ms": 0.3, "members": {"held": 2, "lapsed": 1},
            "took": {"counts": [0] * 3 + [9] + [0] * (len(EDGES_S) - 3), "sum_s": 0.03},
        },
    }  # fmt: skip
