"""The figures of members: what was claimed, saved, passed on and refused is what they say."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from cluster_hosts import Hosts, hosts_on
from hosts import eventually, freeze
from redis_server import RedisServer
from scale import linux_only
from zmqagents import RpcClient
from zmqagents.telemetry.metrics import METRICS, samples

pytestmark = [pytest.mark.program, pytest.mark.timeout(120), linux_only("CLOCK_BOOTTIME")]

OF_CLUSTER = {metric.name for metric in METRICS if metric.name.startswith("zmqagents_cluster_")}


def figures(hosts: Hosts, index: int) -> dict[str, Any]:
    """What a host tells of its cluster."""
    with RpcClient("127.0.0.1", hosts.launchers[index].port) as client:
        found: dict[str, Any] = client.get_metrics()
    assert {sample.metric.name for sample in samples(found)} >= OF_CLUSTER
    told: dict[str, Any] = found["cluster"]
    return told


def test_what_members_do_is_counted(redis: RedisServer) -> None:
    with hosts_on(redis, 2) as hosts:
        first, second = hosts.callers
        for number in range(6):
            first.call(f"Account/{number}", "add", 1)
            second.call(f"Account/{number}", "add", 1)
        one, two = (figures(hosts, index) for index in (0, 1))
        assert one["agents"] + two["agents"] == one["claims"] + two["claims"] == 6
        assert sum(one["took"]["counts"]) + sum(two["took"]["counts"]) == 6
        assert one["saves"] + two["saves"] == 6 + 12, "as it was made, and after each call"
        assert one["relayed"] + two["relayed"] == 6, "each agent is called at both"
        assert one["members"] == {"held": 2, "lapsed": 0, "draining": 0}
        assert 0.4 < one["lease_left"] <= 0.8
        assert 0 < one["round_trip_ms"] < 1000
        assert (one["saves_refused"], one["fenced"], one["activations_waiting"]) == (0, 0, 0)
        status = first.status()
        for key in ("activation_p50_s", "activation_p99_s"):
            assert 0 < status[key] < 5


def test_counters_go_on_when_a_member_was_declared_dead_and_joins_anew(redis: RedisServer) -> None:
    with hosts_on(redis, 2, lease_s=1.0) as hosts:
        for number in range(6):
            hosts.callers[0].call(f"Account/{number}", "add", 1)
        before, pid = figures(hosts, 1), hosts.launchers[1].pid or 0
        freeze(pid)
        try:
            assert eventually(lambda: hosts.callers[0].status()["members"] == 1, 20)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert eventually(lambda: hosts.all_know(2), 20)
        after = figures(hosts, 1)
        assert after["incarnation"] != before["incarnation"]
        assert before["claims"] > 0
        assert after["claims"] >= before["claims"]
        assert sum(after["took"]["counts"]) >= sum(before["took"]["counts"])
