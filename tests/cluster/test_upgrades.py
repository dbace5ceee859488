"""Hosts that know different forms of the cluster's records, and `as_server upgrade`.

The package knows one form. The hosts of these tests are told by their setting ``record_forms`` which ones they know:
form 2 differs from form 1 in its number alone, and all that is done with numbers is done as it will be.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster_hosts import Account, Caller, Hosts
from hosts import as_server, eventually
from redis_server import RedisServer
from scale import linux_only
from zmqagents import Cluster
from zmqagents.errors import ConfigError
from zmqagents.store.cluster import ClusterRecords
from zmqagents.wire.messages import Op

pytestmark = [pytest.mark.program, pytest.mark.timeout(120), linux_only("CLOCK_BOOTTIME")]

OLD, BOTH, NEW = (1, 1), (1, 2), (2, 2)


def upgrade(hosts: Hosts, *words: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and what was printed as JSON."""
    ended = as_server("upgrade", *words, "--json", port=hosts.launchers[-1].port)
    return ended.returncode, json.loads(ended.stdout)


@contextlib.contextmanager
def called(caller: Caller, name: str) -> Iterator[list[int]]:
    """What an account tells, to which a cent is added again and again, until the block ends."""
    values, over, begun = list[int](), threading.Event(), threading.Event()

    def call() -> None:
        while not over.is_set():
            values.append(caller.call(name, "add", 1))
            begun.set()

    thread = threading.Thread(target=call)
    thread.start()
    try:
        assert begun.wait(20)
        yield values
    finally:
        over.set()
        thread.join()


def form_of(redis: RedisServer, name: str) -> bytes:
    records = ClusterRecords(redis.url, "shop")
    with redis.client as client:
        found: Any = client.hget(records.key_of(name), "fm")
    records.close()
    return bytes(found)


def test_a_rolling_upgrade_to_another_form_of_the_records(redis: RedisServer) -> None:
    hosts = Hosts(redis)
    try:
        hosts.start(record_forms=OLD)
        for number in range(20):
            hosts.callers[0].call(f"Account/{number}", "add", 5)
        hosts.start(record_forms=BOTH)
        assert eventually(lambda: hosts.all_know(2), 20)

        code, told = upgrade(hosts)
        assert (code, told["form"], told["newest"], told["raised"]) == (7, 1, 2, False)
        assert told["lacking"] == [hosts.launchers[0].server_id]
        text = as_server("upgrade", port=hosts.launchers[0].port)
        assert (text.returncode, text.stdout) == (7, "")
        assert f"form 2 is not read by {hosts.launchers[0].server_id} at " in text.stderr
        assert text.stderr.count("\n") == 1

        drained = as_server("drain", hosts.launchers[0].server_id, port=hosts.launchers[1].port)
        assert drained.returncode == 0, drained.stderr
        shown = as_server("upgrade", "--dry-run", port=hosts.launchers[1].port)
        assert shown.returncode == 0
        assert "1 to 2" in shown.stdout
        assert "would be brought from form 1 to form 2" in shown.stdout
        assert form_of(redis, "Account/1") == b"1"

        hosts.start(record_forms=BOTH)
        assert eventually(lambda: hosts.callers[1].status()["members"] == 2, 20)
        assert hosts.callers[1].call("Account/1", "add", 1) == 6
        assert form_of(redis, "Account/1") == b"1", "what is there is written until it is raised"
        with called(hosts.callers[2], "Account/busy") as values:
            code, told = upgrade(hosts)
        assert (code, told["form"], told["former"], told["raised"]) == (0, 2, 2, True)
        assert (told["seen"], told["rewritten"]) in {(21, 20), (21, 21)}, "the busy one may have been saved first"
        assert values == list(range(1, len(values) + 1)), "agents go on meanwhile"
        assert form_of(redis, "Account/busy") == b"2"
        assert [row["writes"] for row in told["hosts"]] == [2, 2]
        assert form_of(redis, "Account/7") == b"2"
        assert [hosts.callers[2].call(f"Account/{number}", "add", 1) for number in (1, 7)] == [7, 6]
        hosts.callers[2].call("Account/new", "add", 1)
        assert form_of(redis, "Account/new") == b"2"
        code, told = upgrade(hosts)
        assert (code, told["raised"], told["rewritten"]) == (0, False, 0)
        assert "nothing to do" in as_server("upgrade", "--dry-run", port=hosts.launchers[1].port).stdout
        with Cluster(f"127.0.0.1:{hosts.launchers[1].port}") as cluster:
            upgrades = [event["what"] for event in cluster.events()["rows"] if event["kind"] == "upgraded"]
            assert upgrades == ["records from form 1 to 2"]
            assert [row["forms"] for row in cluster.hosts()] == [[1, 2], [1, 2]]

        with pytest.raises(ConfigError, match=r"form 2, and this host .* knows forms up to 1: install the version"):
            hosts.start(record_forms=OLD)
        hosts.start(record_forms=NEW)
        assert hosts.callers[-1].call("Account/1", "balance") == 7
    finally:
        hosts.close()


def test_a_host_that_needs_the_new_form_waits_for_the_upgrade(redis: RedisServer) -> None:
    hosts = Hosts(redis)
    try:
        hosts.start(record_forms=OLD)
        with pytest.raises(ConfigError, match=r"may still have records of form 1.*\(as_server upgrade\)"):
            hosts.start(record_forms=NEW)
    finally:
        hosts.close()


def test_an_older_host_that_was_taken_for_dead_may_not_come_back_and_says_why(redis: RedisServer) -> None:
    hosts = Hosts(redis)
    try:
        hosts.start(record_forms=OLD)
        hosts.callers[0].call("Account/ann", "add", 5)
        hosts.start(record_forms=BOTH)
        assert eventually(lambda: hosts.all_know(2), 20)
        start = Path(hosts.launchers[0].ipc or "").with_suffix(".start").read_text().split()[1]
        records = ClusterRecords(redis.url, "shop")
        records.obituary(start)
        records.close()
        assert upgrade(hosts)[0] == 0
        assert eventually(lambda: "form 2" in "".join(health(hosts)["reasons"]), 20)
        assert "may not join again" in "".join(health(hosts)["reasons"])
        assert hosts.callers[1].call("Account/ann", "add", 1) == 6
        with Cluster(", ".join(f"127.0.0.1:{launcher.port}" for launcher in hosts.launchers)) as cluster:
            assert cluster.get_agent("ann", cls=Account).add(1) == 7, "who asks it first is sent to the others"
        assert hosts.callers[0].ask("", Op.INFO)["agents"] == 0, "what it has beside the cluster goes on"
    finally:
        hosts.close()


def health(hosts: Hosts) -> dict[str, Any]:
    """Of the first host."""
    ended = as_server("health", "--ready", "--json", port=hosts.launchers[0].port)
    told: dict[str, Any] = json.loads(ended.stdout)
    return told
