"""Several Redis servers that stand in for one: a primary whose replicas a sentinel watches, and a Redis Cluster."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from hosts import eventually
from redis_server import NO_SERVER, RedisServer, binaries

__all__ = ["RedisCluster", "Watched", "catch_up", "running_cluster", "running_watched"]

FAILOVER_S = 60.0  # generous: it takes a second or two on a machine of one's own
SLOTS = 16384
DOWN_MS = 1000  # less, and on a busy machine a second failover comes behind the first, with losses of its own
_AT_ONCE = {"repl_diskless_sync_delay": "0"}  # a replica's first copy comes after 5 s by default


class Watched:
    """A primary, its replicas, and a sentinel each; the sentinels agree on the next primary."""

    def __init__(self, stack: contextlib.ExitStack, binary: Path, replicas: int, **options: str) -> None:
        self._stack, self._binary = stack, binary
        options = {**_AT_ONCE, **options}
        self.servers = [self._made(**options)]
        first = self.servers[0]
        for _ in range(replicas):
            self.servers.append(self._made(replicaof=f"127.0.0.1 {first.port}", **options))
        self._sentinels = [self._made(watched=first) for _ in range(replicas + 1)]
        assert eventually(lambda: all(map(_is_in_step, self.servers[1:])), FAILOVER_S)
        for sentinel in self._sentinels:
            with sentinel.client as client:
                client.execute_command("SENTINEL", "SET", "service", "quorum", replicas // 2 + 1)
                client.execute_command("SENTINEL", "SET", "service", "down-after-milliseconds", DOWN_MS)
                client.execute_command("SENTINEL", "SET", "service", "failover-timeout", 5 * DOWN_MS)
        assert eventually(lambda: all(map(self._knows_all, self._sentinels)), FAILOVER_S)

    def _made(self, **options: Any) -> RedisServer:
        server = RedisServer(self._binary, **options)
        self._stack.callback(server.remove)
        return server

    def _knows_all(self, sentinel: RedisServer) -> bool:
        with sentinel.client as client:
            replicas = client.execute_command("SENTINEL", "REPLICAS", "service")
            others = client.execute_command("SENTINEL", "SENTINELS", "service")
        return (len(replicas), len(others)) == (len(self.servers) - 1, len(self._sentinels) - 1)

    @property
    def url(self) -> str:
        places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self._sentinels)
        return f"redis+sentinel://{places}/service/0"

    @property
    def primary(self) -> RedisServer:
        """The server that the sentinels name."""
        for sentinel in self._sentinels:
            if port := self._named_by(sentinel):
                return next(server for server in self.servers if server.port == port)
        raise AssertionError("no sentinel answers")

    @contextlib.contextmanager
    def losing(self) -> Iterator[None]:
        """The primary is killed at the end of the block, and a replica takes its place: what was written is lost."""
        primary = self.primary
        with _cut_off(primary, [server for server in self.servers if server is not primary]):
            yield
        self.new_primary(primary)

    @property
    def client(self) -> redis.Redis:
        """A plain client of the primary."""
        return self.primary.client

    def new_primary(self, former: RedisServer) -> RedisServer:
        """The server that takes the place of ``former``, which was killed or stands still."""
        assert eventually(lambda: self.primary is not former and self._is_settled(former), FAILOVER_S)
        return self.primary

    def _is_settled(self, former: RedisServer) -> bool:
        """Whether all sentinels name the same server, and all others but ``former`` follow it."""
        named = {self._named_by(sentinel) for sentinel in self._sentinels}
        others = [server for server in self.servers if server not in (former, self.primary)]
        return (
            named == {self.primary.port} and _role(self.primary) == "master"
            and all(_follows(server, self.primary) for server in others)
        )  # fmt: skip

    def _named_by(self, sentinel: RedisServer) -> int:
        try:
            with sentinel.client as client:
                _, port = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "service")
                return int(port)
        except redis.RedisError:
            return 0


class RedisCluster:
    """A Redis Cluster: so many primaries, each with a replica, on ports of 127.0.0.1."""

    def __init__(self, stack: contextlib.ExitStack, binary: Path, primaries: int, **options: str) -> None:
        settings: dict[str, Any] = {
            "cluster_enabled": "yes", "cluster_node_timeout": "1500", "cluster_replica_validity_factor": "0",
            **_AT_ONCE, **options,
        }  # fmt: skip
        self.servers = [RedisServer(binary, **settings) for _ in range(2 * primaries)]
        for server in self.servers:
            stack.callback(server.remove)
        first, homes = self.servers[0], self.servers[:primaries]
        with first.client as client:
            for other in self.servers[1:]:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port)
        for index, server in enumerate(homes):
            with server.client as client:
                begin, end = SLOTS * index // primaries, SLOTS * (index + 1) // primaries - 1
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", begin, end)
        assert eventually(lambda: all(len(self.nodes(server)) == 2 * primaries for server in self.servers), FAILOVER_S)
        for home, replica in zip(homes, self.servers[primaries:], strict=True):
            with replica.client as client:
                client.execute_command("CLUSTER", "REPLICATE", self.id_of(home))
        assert eventually(self.is_whole, FAILOVER_S)

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers[:3])

    @property
    def client(self) -> redis.RedisCluster:
        """A plain client, to look with."""
        return redis.RedisCluster(host="127.0.0.1", port=next(s.port for s in self.servers if s.is_running))

    def nodes(self, server: RedisServer) -> list[list[str]]:
        """What a server knows of the nodes: id, address, flags, primary …"""
        try:
            with server.client as client:
                told = client.execute_command("CLUSTER NODES")
        except redis.RedisError:
            return []
        if isinstance(told, bytes):
            told = told.decode()
        if isinstance(told, str):
            return [line.split() for line in told.splitlines()]
        return [[each["node_id"], address, each["flags"], each["master_id"]] for address, each in told.items()]

    def id_of(self, server: RedisServer) -> str:
        with server.client as client:
            return str(client.execute_command("CLUSTER", "MYID").decode())

    def is_whole(self) -> bool:
        """Whether all slots are served, and each replica that runs is in step."""
        for server in self.servers:
            if server.is_running:
                with server.client as client:
                    if client.cluster("INFO")["cluster_state"] != "ok":
                        return False
                if _role(server) == "slave" and not _is_in_step(server):
                    return False
        return True

    def is_primary(self, server: RedisServer) -> bool:
        """Whether it takes writes."""
        return _role(server) == "master"

    def home_of(self, key: str) -> RedisServer:
        """The server that has the slot of a key."""
        with self.client as client:
            node = client.get_node_from_key(key)
            return next(server for server in self.servers if server.port == node.port)

    def replica_of(self, home: RedisServer) -> RedisServer:
        """The server that would take the place of a primary."""
        own, running = self.id_of(home), [server for server in self.servers if server.is_running]
        for row in self.nodes(home):
            if row[3] == own:
                return next(server for server in running if row[1].split("@")[0].endswith(f":{server.port}"))
        raise AssertionError("it has no replica")

    @contextlib.contextmanager
    def losing(self, home: RedisServer) -> Iterator[None]:
        """The same as `Watched.losing` for one shard."""
        successor = self.replica_of(home)
        with _cut_off(home, [successor]):
            yield
        self._await(successor)

    def move(self, key: str) -> None:
        """Move the slot of a key to another primary, as ``redis-cli --cluster reshard`` does."""
        source = self.home_of(key)
        target = next(server for server in self.servers if server is not source and _role(server) == "master")
        with source.client as here, target.client as there:
            slot = here.execute_command("CLUSTER", "KEYSLOT", key)
            there.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
            here.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))
            while keys := here.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 10):
                here.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
                time.sleep(0.05)  # so that there is time to meet it half done
            for client in (there, here):
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", self.id_of(target))

    def _await(self, successor: RedisServer) -> None:
        assert eventually(lambda: _role(successor) == "master", FAILOVER_S)
        assert eventually(self.is_whole, FAILOVER_S)

    def fail_over(self, home: RedisServer) -> RedisServer:
        """Kill the primary of a shard; the server that has taken its place."""
        successor = self.replica_of(home)
        home.kill()
        self._await(successor)
        return successor


def catch_up(primary: RedisServer, replicas: Iterable[RedisServer]) -> None:
    """Wait until the replicas have all that the primary has been told so far."""
    with primary.client as client:
        offset = int(client.info("replication")["master_repl_offset"])
    assert eventually(lambda: all(_offset(replica) >= offset for replica in replicas), FAILOVER_S)


def _offset(replica: RedisServer) -> int:
    with replica.client as client:
        return int(client.info("replication").get("slave_repl_offset", -1))


@contextlib.contextmanager
def _cut_off(primary: RedisServer, replicas: list[RedisServer]) -> Iterator[None]:
    """No replica hears from the primary within the block, at whose end it is killed; until then each has heard all."""
    catch_up(primary, replicas)
    with contextlib.ExitStack() as stack:
        for replica in replicas:
            stack.enter_context(replica.frozen())
        with primary.client as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "replica")
        yield
        primary.kill()


def _role(server: RedisServer) -> str:
    try:
        with server.client as client:
            return str(client.info("replication")["role"])
    except redis.RedisError:
        return ""


def _follows(server: RedisServer, primary: RedisServer) -> bool:
    try:
        with server.client as client:
            told = client.info("replication")
    except redis.RedisError:
        return False
    return (told.get("master_port"), told.get("master_link_status")) == (primary.port, "up")


def _is_in_step(server: RedisServer) -> bool:
    with server.client as client:
        return bool(client.info("replication").get("master_link_status") == "up")


def _binary() -> Path:
    found = binaries()
    if not found:
        pytest.skip(NO_SERVER)
    return found[0]


@contextlib.contextmanager
def running_watched(replicas: int = 2, **options: str) -> Iterator[Watched]:
    """A primary, replicas and sentinels of this block alone."""
    with contextlib.ExitStack() as stack:
        yield Watched(stack, _binary(), replicas, **options)


@contextlib.contextmanager
def running_cluster(primaries: int = 3, **options: str) -> Iterator[RedisCluster]:
    """A Redis Cluster of this block alone."""
    with contextlib.ExitStack() as stack:
        yield RedisCluster(stack, _binary(), primaries, **options)
