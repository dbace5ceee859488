"""Who writes into Redis can mislead members, and neither pose as a host nor end one; only a member gives its orders."""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster_hosts import CLASSES, CLUSTER, Caller, Hosts, hosts_on
from hosts import eventually, meanwhile
from raw_peer import RawPeer
from redis_server import RedisServer
from scale import linux_only
from zmqagents import Cluster, ConfigError, RpcAgentServerLauncher, RpcClient, codec
from zmqagents.cluster.member import LOOK_AROUND_S
from zmqagents.connection.connection import connect
from zmqagents.connection.target import Target
from zmqagents.errors import PermissionRefused, RemoteProtocolError, ZmqAgentsError
from zmqagents.security.keys import KeyStore, new_pair
from zmqagents.store.cluster import ClusterRecords
from zmqagents.wire import messages
from zmqagents.wire.messages import Flag, Kind, Op

pytestmark = [pytest.mark.program, pytest.mark.timeout(120), linux_only("CLOCK_BOOTTIME")]

DEADLINE_S = 6.0
RECORD = {"version": "9", "labels": {}, "classes": {"Account": 99, "Diary": 99}, "load": -1e9, "figures": {}}


@contextlib.contextmanager
def stranger(**options: Any) -> Iterator[RpcAgentServerLauncher]:
    """A host with a key of its own, in a runtime directory of its own: only TCP leads there."""
    with pytest.MonkeyPatch.context() as patch:
        place = tempfile.mkdtemp(dir="/tmp", prefix="zaodd")
        patch.setenv("ZMQAGENTS_KEYS", f"{place}/keys")
        patch.setenv("ZMQAGENTS_RUNTIME", f"{place}/run")
        launcher = RpcAgentServerLauncher(
            host="127.0.0.7", custom_agent_classes=CLASSES, grace_s=0.2, **options,
        )  # fmt: skip
        try:
            launcher.launch()
            yield launcher
        finally:
            launcher.shutdown()
            shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def pretended(redis: RedisServer, incarnation: str, record: bytes) -> Iterator[None]:
    """A member that beats and is none."""

    def beat(is_over: threading.Event) -> None:
        with contextlib.closing(ClusterRecords(redis.url, CLUSTER)) as records:
            number = 0
            while not is_over.is_set():
                number += 1
                records.beat(incarnation, number, lease_s=3.0, draining=False, start="odd", record=record)
                is_over.wait(LOOK_AROUND_S)

    with meanwhile(beat):
        yield


def outcomes(caller: Caller, prefix: str, count: int) -> list[Any]:
    """What calls of new agents end in: a value, or the class of a typed error; none later than its deadline."""
    found = []
    for number in range(count):
        begun = time.monotonic()
        try:
            found.append(caller.call(f"Account/{prefix}-{number}", "add", 1, timeout=DEADLINE_S))
        except ZmqAgentsError as exc:
            found.append(type(exc))
        assert time.monotonic() - begun < DEADLINE_S + 3, "a call hangs"
    return found


def test_a_host_with_another_key_does_not_join(redis: RedisServer) -> None:
    with hosts_on(redis, 1), pytest.raises(ConfigError, match="has another key than this host"):  # noqa: SIM117
        with stranger(cluster=CLUSTER, redis_url=redis.url, lease_s=3.0):
            pass


def test_a_record_that_names_a_foreign_host_brings_no_call_there(redis: RedisServer) -> None:
    with hosts_on(redis, 2) as hosts, stranger() as odd:
        address = f"127.0.0.7:{odd.port}"
        before = [caller.status()["incarnation"] for caller in hosts.callers]
        with pretended(redis, f"odd/{time.time_ns() // 1000}/1", json.dumps({**RECORD, "address": address}).encode()):
            assert eventually(lambda: hosts.all_know(3), 20)
            found = outcomes(hosts.callers[0], "misled", 6)
            assert 1 in found, found
        with RpcClient(link=connect(Target("", None, ipc=odd.ipc)), timeout=10) as client:
            info = client.get_server_info()
        assert (info["agents"], info["calls"]["accepted"]) == (0, 0)
        assert eventually(lambda: hosts.all_know(2), 30)
        assert [hosts.callers[1].sure(f"Account/after-{number}", "add", 1) for number in range(4)] == [1] * 4
        assert [caller.status()["incarnation"] for caller in hosts.callers] == before


@pytest.mark.parametrize(
    "record",
    [
        json.dumps({**RECORD, "address": address}).encode()
        for address in ("", "nowhere", "ipc:/tmp/x", "127.0.0.1:0", "127.0.0.1:99999", "a b:1", "127.0.0.1:\u0661", 7)
    ]
    + [b"[" * 200_000, b"\xff\x00", b"{}", json.dumps({**RECORD, "address": "127.0.0.1:1", "load": "nan"}).encode()],
)
def test_a_record_of_nonsense_ends_no_member(hosts: Hosts, lasting_redis: RedisServer, record: bytes) -> None:
    before = [caller.status()["incarnation"] for caller in hosts.callers]
    number = zlib.crc32(record)
    with pretended(lasting_redis, f"odd/{time.time_ns() // 1000}/{number}", record):
        time.sleep(1)  # each member beats within this time
        found = outcomes(hosts.callers[0], f"odd-{number}", 3)
        assert 1 in found, found
    assert [caller.status()["incarnation"] for caller in hosts.callers] == before


@pytest.fixture(scope="module")
def hosts(lasting_redis: RedisServer) -> Iterator[Hosts]:
    with hosts_on(lasting_redis, 2) as hosts:
        yield hosts


@pytest.mark.parametrize(
    "fields",
    [
        {"own": "nobody/1/1", "act": "1", "ep": "5", "rev": "1", "cls": "Account"},
        {"own": b"\xff\xfe", "act": "x", "ep": "y", "rev": "z", "cls": "Account"},
        {"own": "", "act": "1", "ep": "5", "rev": "1", "sv": "1", "cls": "Account", "st": b"\xff" * 100},
        {"own": "", "act": "1", "ep": "5", "rev": "0", "cls": "Account", "args": b"\xff\x00", "opt": b"\xff\x00"},
        {"own": "", "act": "1", "ep": "5", "rev": "0", "cls": "Account", "opt": b"\x81\xa3env\x81\xa1A\xa1B"},
        {"own": "", "act": "1", "ep": "5", "rev": "0", "cls": "Account", "opt": b"\x92\x01\x02"},
        {"own": "", "act": "1", "ep": "5", "rev": "0", "cls": "Account", "opt": b"\x81\xa1x\x01"},
        {"own": "", "act": "1", "ep": "5", "rev": "1", "sv": "1", "cls": "Account", "st": b"\x07", "args": b"\x07"},
        {
            "own": "",
            "act": "1",
            "ep": "5",
            "rev": "1",
            "sv": "1",
            "cls": "Account",
            "st": b"\x91\x01",
            "args": b"\x91\x01",
        },
    ],
    ids=["owner", "garbled", "state", "arguments", "options", "no map", "unknown", "a number", "numbers"],
)
def test_a_record_of_an_agent_that_was_written_by_another_hurts_that_agent_alone(
    hosts: Hosts, lasting_redis: RedisServer, fields: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    name = f"Account/forged-{request.node.callspec.id}"
    with contextlib.closing(ClusterRecords(lasting_redis.url, CLUSTER)) as records, lasting_redis.client as client:
        client.hset(records.key_of(name), mapping=fields)
    for caller in hosts.callers:
        with contextlib.suppress(ZmqAgentsError):
            caller.call(name, "add", 1, timeout=DEADLINE_S)
        assert caller.call("Account/honest", "add", 0) == 0


def test_orders_of_members_are_refused_of_clients(redis: RedisServer) -> None:
    with hosts_on(redis, 1, insecure=True) as hosts:
        odd = Caller(f"127.0.0.1:{hosts.launchers[0].port}", transport="tcp-insecure")
        try:
            victim = hosts.callers[0].begin("Account/victim", "add", 1, flags=Flag.DETACHED)
            theirs = hosts.callers[0].task_of(victim)
            assert eventually(lambda: hosts.callers[0].call("Account/victim", "balance") == 1, 20)
            for option in ({"hop": 1}, {"user": "uid:0"}, {"activate": True}):
                with pytest.raises(PermissionRefused):
                    odd.ask("cluster:shop/Account/other", "add", 1, **option)
            # A task id of another client is not taken over: the call runs under an id of its own.
            assert odd.ask("cluster:shop/Account/victim", "add", 5, task=theirs) == 6
            assert hosts.callers[0].fetched(theirs) == 1
            assert hosts.callers[0].status()["refused"] == 3
        finally:
            odd.close()


@pytest.mark.parametrize("more", [{}, {"chain": []}])  # the short way, and the one of all other calls
def test_the_home_refuses_what_is_passed_on_for_a_user_whose_key_it_does_not_know(
    hosts: Hosts, more: dict[str, Any]
) -> None:
    """A member whose copy of the keys is older still lets that user in."""
    keys, pair, name, tasks = KeyStore.open(), new_pair(), f"Account/passed-on-{len(more)}", itertools.count(1)
    hosts.callers[0].call(name, "add", 1)
    at = hosts.callers[0].ask("", Op.WHERE, id=f"cluster:shop/{name}")["address"]
    home = next(c for c, host in zip(hosts.callers, hosts.launchers, strict=True) if at.endswith(f":{host.port}"))

    def add(user: str) -> int | type[ZmqAgentsError]:
        told: dict[str, Any] = {"task": f"{secrets.token_hex(8)}-{next(tasks)}", "user": user, "hop": 1, "leg": 1}
        try:
            return int(home.ask(f"cluster:shop/{name}", "add", 1, **told, **more))
        except ZmqAgentsError as exc:
            return type(exc)

    passer = f"key:passer:{pair.public}"
    assert [add(user) for user in (passer, "key:", "key:passer:", "")] == [PermissionRefused] * 3 + [2]
    keys.authorize("passer", pair.public)
    assert eventually(lambda: add(passer) == 3, 10)
    assert [add("uid:77777"), add(passer)] == [4, 5]
    keys.authorize("passer", pair.public, "view")
    assert eventually(lambda: add(passer) is PermissionRefused, 10)
    keys.revoke("passer")
    assert eventually(lambda: add(f"key:passer:{pair.public}") is PermissionRefused, 10)
    assert home.call(name, "balance") >= 5


@pytest.mark.parametrize("kind", [Kind.HINT, Kind.WAITS, Kind.WELCOME, Kind.RESULT, Kind.ERROR])
def test_what_only_hosts_say_is_refused_of_a_client_and_leads_no_call_away(hosts: Hosts, kind: Kind) -> None:
    name = f"Account/led-{kind.name}"
    hosts.callers[0].call(name, "add", 1)
    with RawPeer(hosts.launchers[0]) as peer:
        peer.hello()
        said = [f"cluster:shop/{name}", "127.0.0.7:1", 1 << 60]
        waits = [f"{'0' * 16}-1", [f"{'1' * 16}-1"], False, 0, None]
        for body in (said, waits):
            peer.send(messages.header(kind, 1, peer.token, code=5), codec.pack(body))
        peer.call(2, f"cluster:shop/{name}", "balance")
        head, _ = peer.answer_to(2)
        assert head.kind == Kind.RESULT
    assert [caller.call(name, "balance") for caller in hosts.callers] == [1, 1]
    for caller in hosts.callers:
        with contextlib.suppress(RemoteProtocolError):
            assert caller.ask("", Op.WHERE, id=f"cluster:shop/{name}")["address"] != "127.0.0.7:1"


def test_no_key_and_no_secret_is_in_redis(redis: RedisServer) -> None:
    with hosts_on(redis, 2) as hosts:
        with Cluster(f"127.0.0.1:{hosts.launchers[0].port}") as cluster:
            made: Any = cluster.create_agent("Account", "USD", name="made")
            assert made.add(5) == 5
        for number in range(8):
            hosts.callers[number % 2].call(f"Account/dumped-{number}", "pay", 2)
        hosts.callers[0].ask("", Op.MOVE, id="cluster:shop/Account/made")
        keys = KeyStore.open()
        pairs = [keys.server_keypair(), keys.client_keypair()]
        hidden = {text.encode() for pair in pairs for text in (pair.public, pair.secret)}
        hidden |= {path.read_bytes().strip() for path in Path(keys.path).rglob("*") if path.is_file()}
        with redis.client as client:
            client.config_set("rdbcompression", "no")
            client.save()
            dumped = (redis.directory / "dump.rdb").read_bytes()
        assert b"dumped-3" in dumped
        for secret in hidden:
            assert not secret or secret not in dumped
