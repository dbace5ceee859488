"""Reminders of a cluster's agents, on real hosts and a real Redis: they come, in time, and end with the agent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cluster_hosts import Hosts, hosts_on
from hosts import eventually
from redis_server import RedisServer
from scale import linux_only

pytestmark = [pytest.mark.program, pytest.mark.timeout(180), linux_only("CLOCK_BOOTTIME")]


@pytest.fixture(scope="module")
def hosts(lasting_redis: RedisServer) -> Iterator[Hosts]:
    """Three hosts that no test harms."""
    with hosts_on(lasting_redis, 3) as hosts:
        yield hosts


def ticks(hosts: Hosts, name: str) -> list[Any]:
    found: list[Any] = hosts.callers[0].call(name, "ticks_so_far")
    return found


def test_a_reminder_calls_its_agent_once_and_in_time(hosts: Hosts) -> None:
    for number in range(12):
        hosts.callers[number % 3].call(f"Alarmed/once-{number}", "remind", "tea", 1.0, None)
    assert eventually(lambda: all(ticks(hosts, f"Alarmed/once-{number}") for number in range(12)), 10)
    for number in range(12):
        [(text, late_s)] = ticks(hosts, f"Alarmed/once-{number}")
        assert text == "tea"
        assert -0.1 < late_s < 1.0
