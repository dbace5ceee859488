"""A Redis for each test, or for all tests of a module that do no harm to the hosts on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from redis_server import RedisServer, running_redis


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture(scope="module")
def lasting_redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server
