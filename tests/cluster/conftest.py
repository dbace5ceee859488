"""A Redis for each test, or for all tests of a module that do no harm to the hosts on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster_hosts import all_hosts
from redis_server import RedisServer, running_redis


@pytest.fixture(autouse=True)
def isolation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where the agents of all hosts live that a test starts; see `cluster_hosts.CHILDREN_TOO`."""
    given = getattr(request, "param", "thread")
    with all_hosts(**({} if given == "thread" else {"isolation": given, "processes": 1})):
        yield


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture(scope="module")
def lasting_redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server
