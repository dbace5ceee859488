"""The way to a Redis (6.2 or newer) or Valkey, on redis-py: its addresses, scripts in pipelines, and what went wrong.

The only module that imports redis. The scripts are in `store.scripts` and `store.cluster_scripts`.

*A Redis Cluster* is reached by a client for each node (`_Shards`), not by redis-py's own: that one repeats the commands
of a pipeline which failed one by one, each with its time limit, for minutes while a node stands still. Here what fails
is told at once, and whoever asked sends it again. An ASK is not followed: while a slot is on its way to another node,
the one that it leaves carries out no script, whose key is a prefix that nobody writes; and the other one would find no
record of an agent whose record has not arrived.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import random
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis
import redis.backoff
import redis.cluster
import redis.crc
import redis.retry
import redis.sentinel

from ..config import without_password
from ..errors import ConfigError, StoreError, StoreFull, StoreUnavailable, ZmqAgentsError
from .scripts import Script

__all__ = ["FAILURES", "Command", "RedisClient", "RedisListener", "client_of"]

# Explicit, since the defaults of redis-py 5 to 8 differ (no retry at all, 3 with pauses of up to 10 s, 10).
# A URL's query overrides them. A time-out is not tried again: a frozen Redis would take three times as long to tell.
_SETTINGS: dict[str, Any] = {
    "socket_timeout": 2.0, "socket_connect_timeout": 1.0, "socket_keepalive": True, "health_check_interval": 15,
    "protocol": 2,
}  # fmt: skip
FAILURES = (redis.RedisError, redis.exceptions.RedisClusterException)
_IDENTITY = re.compile(rb"^(?:run_id|master_replid):(\w+)", re.M)
# Errors of no type of their own that are the whole server's, and pass.
_OF_SERVER = re.compile(
    "READONLY|LOADING|MASTERDOWN|MISCONF|NOREPLICAS|CLUSTERDOWN|TRYAGAIN|BUSY|NOAUTH|NOPERM|WRONGPASS"
)

# Of a Redis Cluster: the slot is on its way to another node.
_MOVING = (redis.exceptions.AskError, redis.exceptions.TryAgainError)
# In redis-py 5 only the parser of its own client of clusters knows the errors by which a node names another one.
_PARSER = getattr(redis.cluster, "ClusterParser", None)
_NODE_SETTINGS = {} if _PARSER is None else {"parser_class": _PARSER}
_LOOKS = 3  # for the node that has a slot, until a command is given up

Command = tuple[Script, str, tuple[Any, ...]]  # a script, its key, its arguments
_Place = tuple[str, int]


class RedisClient:
    """A Redis at ``url``; see `store.redis.RedisStore` for its forms. For any thread.

    Connects with the first command. With ``scripts`` each new connection asks which server it has reached, before any
    command is sent (see `identity`), and loads them: a command whose script is missing would be carried out after those
    behind it. Raises `ConfigError` for a wrong URL, `StoreUnavailable` for a cluster that cannot be reached.
    """

    def __init__(self, url: str, scripts: Iterable[Script] = ()) -> None:
        self.shown_url = without_password(url)
        self._identities: dict[_Place | None, str] = {}  # of each node of a cluster, else of None
        self._secrets = _secrets_in(url)
        self._scripts = tuple(scripts)
        # No health check: its PING goes out within `_prepare`, and begins that again if the connection is closed.
        more = {"redis_connect_func": self._prepare, "health_check_interval": 0}
        self._shards: _Shards | None = None
        self._redis: Any = None
        self._open(url, more if self._scripts else {})

    @property
    def identity(self) -> str:
        """Names the server, and what it has been through, as of the latest connection; of a cluster: all primaries."""
        if self._shards is None:
            return self._identities.get(None, "")
        return ", ".join(
            f"{host}:{port} {self._identities.get((host, port), '')}" for host, port in self._shards.primaries
        )

    def run(self, script: Script, key: str, arguments: Sequence[Any]) -> Any:
        """What ``script`` gives. Raises `StoreUnavailable` or `StoreFull`."""
        try:
            return self._at_home(key, lambda home: self._call(home, script, key, arguments))
        except FAILURES as exc:
            error = self._error(exc)
        raise error  # out here: in its context the password might be read

    def run_many(self, commands: Sequence[Command], *, tolerant: bool = False) -> list[Any]:
        """What each of ``commands`` gives, or the `StoreError` that it failed with; in one round trip.

        ``tolerant``: one that meets something else in place of its record fails alone; else no answer is believed.
        """
        try:
            got = self._execute(commands)
            if self._scripts and any(isinstance(answer, redis.exceptions.NoScriptError) for answer in got):
                for home in self._homes():  # somebody has flushed them
                    for script in self._scripts:
                        home.script_load(script.text)
                got = self._execute(commands)  # all, for those behind the missing ones have overtaken them
        except FAILURES as exc:
            error = self._error(exc)
        else:
            pairs = zip(commands, got, strict=True)
            return [self._answer(command, answer, tolerant) for command, answer in pairs]
        raise error

    def publish(self, channel: str, text: str) -> None:
        """Tell those that listen to ``channel``, if Redis can be reached."""
        with contextlib.suppress(*FAILURES):
            self._at_home(channel, lambda home: home.publish(channel, text))

    def listen(self, channel: str) -> RedisListener:
        """What is told on ``channel``."""
        return RedisListener(lambda: self._home(channel), channel)

    def policy(self) -> str:
        """The server's ``maxmemory-policy``; "noeviction" if this user may not know it. Of a cluster: the worst one."""
        found = set()
        for home in self._homes():
            with contextlib.suppress(*FAILURES):
                found.add(str(home.info("memory").get("maxmemory_policy", "noeviction")))
        return min(found - {"noeviction"}, default="noeviction")  # allkeys-* come first

    def look(self) -> None:
        """Notice if a node of a cluster is another one than before, although nothing is asked of it; see `identity`."""
        if self._shards is not None:
            with contextlib.suppress(*FAILURES):
                self._shards.look(self._shards.latest)  # not one that stands still, as long as this one answers
            for home in self._shards.homes():
                with contextlib.suppress(*FAILURES):
                    pool = home.connection_pool
                    pool.release(pool.get_connection())  # opened anew if the other side has closed it

    def close(self) -> None:
        """Close the connections."""
        if self._shards is not None:
            self._shards.close()
            return
        self._redis.close()
        manager = getattr(getattr(self._redis, "connection_pool", None), "sentinel_manager", None)
        for sentinel in manager.sentinels if manager is not None else ():
            sentinel.close()

    def without_secrets(self, exc: Exception) -> str:
        """What ``exc`` says, without the passwords of the URL."""
        text = str(exc)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def _home(self, key: str) -> Any:
        """The client of the server that has the key."""
        return self._redis if self._shards is None else self._shards.home(key)

    def _homes(self) -> Sequence[Any]:
        return [self._redis] if self._shards is None else self._shards.homes()

    def _call(self, home: Any, script: Script, key: str, arguments: Sequence[Any]) -> Any:
        try:
            return home.execute_command("EVALSHA", script.sha, 1, key, *arguments)
        except redis.exceptions.NoScriptError:  # the first time on this server, or since its restart
            return home.execute_command("EVAL", script.text, 1, key, *arguments)

    def _at_home(self, key: str, action: Callable[[Any], Any]) -> Any:
        """What ``action`` gives with the server that has the key."""
        if self._shards is None:
            return action(self._redis)
        for left in reversed(range(_LOOKS)):
            try:
                return action(self._shards.home(key))
            except redis.exceptions.MovedError as exc:
                self._shards.look((exc.host, exc.port))
                if not left:
                    raise
            except (redis.ConnectionError, redis.TimeoutError, redis.exceptions.ClusterDownError):
                self._shards.look()  # for the next try, which is the caller's
                raise
        raise AssertionError("unreachable")

    def _execute(self, commands: Sequence[Command]) -> list[Any]:
        """What each of ``commands`` gives, or the error that it met. Commands of one key are carried out in order."""
        if self._shards is None:
            return self._send(commands, self._redis)
        got: list[Any] = [None] * len(commands)
        todo = list(range(len(commands)))
        for left in reversed(range(_LOOKS)):
            shares: dict[str, list[int]] = {}
            for index in todo:
                shares.setdefault(self._shards.place(commands[index][1]), []).append(index)
            for share in shares.values():
                some = [commands[index] for index in share]
                answers = self._at_home(some[0][1], functools.partial(self._send, some))
                for index, answer in zip(share, answers, strict=True):
                    got[index] = answer
            todo = [index for index in todo if isinstance(got[index], redis.exceptions.MovedError)]
            if not todo or not left:
                return got
            self._shards.look((got[todo[0]].host, got[todo[0]].port))
        raise AssertionError("unreachable")

    def _send(self, commands: Sequence[Command], home: Any) -> list[Any]:
        pipeline = home.pipeline(transaction=False)
        for script, key, arguments in commands:
            pipeline.execute_command("EVALSHA", script.sha, 1, key, *arguments)
        got: list[Any] = pipeline.execute(raise_on_error=False)
        return got

    def _answer(self, command: Command, answer: Any, tolerant: bool) -> Any:
        if isinstance(answer, redis.exceptions.NoScriptError):
            try:
                return self._call(self._home(command[1]), *command)
            except FAILURES as exc:
                answer = exc
        if isinstance(answer, redis.RedisError):
            error = self._error(answer)
            if not isinstance(error, StoreUnavailable):
                return error
            if tolerant and type(answer) is redis.ResponseError and not _OF_SERVER.search(str(answer)):
                return StoreError(str(error))
            raise error
        return answer

    def _prepare(self, connection: Any) -> None:
        """Instead of what redis-py does with a new connection."""
        connection.on_connect()
        loads = [("SCRIPT", "LOAD", script.text) for script in self._scripts]
        connection.send_packed_command(connection.pack_commands([*loads, ("INFO",)]))  # one way, however slow it is
        *_, told = [connection.read_response() for _ in range(len(loads) + 1)]
        place = None if self._shards is None else (connection.host, connection.port)
        self._identities[place] = " ".join(text.decode() for text in _IDENTITY.findall(told))

    def _error(self, exc: Exception) -> StoreError:
        if isinstance(exc, redis.sentinel.MasterNotFoundError):  # whose text shows all that redis-py knows of itself
            return StoreUnavailable(f"Redis at {self.shown_url}: no sentinel that answers knows of such a master")
        if isinstance(exc, _MOVING):
            return StoreUnavailable(f"Redis at {self.shown_url}: what was asked for is on its way to another node")
        text = self.without_secrets(exc)
        # In a script of Redis 6.2 it is no error of its own.
        if isinstance(exc, redis.exceptions.OutOfMemoryError) or "OOM " in text:
            return StoreFull(f"Redis at {self.shown_url} has reached its maxmemory and takes no further result")
        return StoreUnavailable(f"Redis at {self.shown_url}: {text}")

    def _open(self, url: str, more: dict[str, Any]) -> None:
        error: ZmqAgentsError
        try:
            if url.partition("://")[0].endswith("+cluster"):
                nodes, _, settings = _parts_of(url, more)
                self._shards = _Shards(nodes, settings)
                self._shards.look()
            else:
                self._redis = client_of(url, more)
            return
        except FAILURES as exc:  # a cluster
            error = self._error(exc)
        except (ValueError, TypeError) as exc:
            error = ConfigError(f"redis_url {self.shown_url}: {self.without_secrets(exc)}")
        raise error


class _Shards:
    """The nodes of a Redis Cluster: a client for each, and which has which slots. For any thread.

    ``seeds``: nodes to begin with. Sends nothing before `look`, which raises a `redis.ConnectionError`
    if no node tells.
    """

    def __init__(self, seeds: Sequence[_Place], settings: dict[str, Any]) -> None:
        self.primaries: list[_Place] = []
        self.latest: _Place | None = None  # the node that was asked last, and has answered
        self._settings = settings
        self._known = list(seeds)  # the primaries, their replicas, the seeds
        self._seeds = list(seeds)
        self._firsts: list[int] = []  # the first slot of each range, rising
        self._ranges: list[tuple[int, _Place]] = []  # the last slot of each, and who has it
        self._clients: dict[_Place, Any] = {}
        self._lock = threading.Lock()

    def place(self, key: str) -> str:
        """The name of the node that has a key; keys with one name are of one node."""
        return "{}:{}".format(*self._place(key))

    def home(self, key: str) -> Any:
        """The client of the node that has a key."""
        return self._client(self._place(key))

    def homes(self) -> list[Any]:
        """The clients of all primaries."""
        return [self._client(place) for place in self.primaries]

    def look(self, first: _Place | None = None) -> None:
        """Ask a node which has which slots: ``first`` before all others, or any."""
        others = [place for place in self._known if place != first]
        random.shuffle(others)
        error: Exception = redis.ConnectionError("no node of the cluster is known")
        for place in [first, *others] if first is not None else others:
            try:
                rows = self._client(place).execute_command("CLUSTER SLOTS")
            except FAILURES as exc:
                error = exc
            else:
                self._learn(place, rows)
                return
        raise error

    def close(self) -> None:
        """Close the connections."""
        for client in list(self._clients.values()):
            client.close()

    def _place(self, key: str) -> _Place:
        slot = redis.crc.key_slot(key.encode())
        with self._lock:
            index = bisect.bisect_right(self._firsts, slot) - 1
            if index >= 0 and slot <= self._ranges[index][0]:
                return self._ranges[index][1]
        raise redis.ConnectionError(f"no node of the cluster has the slot {slot}")

    def _client(self, place: _Place) -> Any:
        with self._lock:
            if place not in self._clients:
                client = redis.Redis(host=place[0], port=place[1], **self._settings)
                client.connection_pool.connection_kwargs.update(_NODE_SETTINGS)
                self._clients[place] = client
            return self._clients[place]

    def _learn(self, told_by: _Place, rows: Sequence[Any]) -> None:
        ranges: list[tuple[int, int, _Place]] = []
        known: list[_Place] = []
        for begin, end, *nodes in rows:
            places = [(_text(node[0]) or told_by[0], int(node[1])) for node in nodes]
            ranges.append((begin, end, places[0]))
            known += places
        ranges.sort()
        primaries = sorted({place for _, _, place in ranges})
        with self._lock:
            # Connections from when it was a replica have not been asked what it is now.
            risen = [
                self._clients[place] for place in primaries if place not in self.primaries and place in self._clients
            ]
            self.primaries, self.latest = primaries, told_by
            self._firsts = [begin for begin, _, _ in ranges]
            self._ranges = [(end, place) for _, end, place in ranges]
            self._known = list(dict.fromkeys([*known, *self._seeds]))
        for client in risen:
            client.connection_pool.disconnect(inuse_connections=False)


def _text(name: bytes | str | None) -> str:
    """An address as a node tells it; "" for its own, which it may not know."""
    text = name.decode() if isinstance(name, bytes) else name or ""
    return "" if text == "?" else text


class RedisListener:
    """Tells an owner which of the tasks that it waits for are settled. For one thread."""

    def __init__(self, client: Callable[[], Any], channel: str) -> None:
        self._client = client  # of any server from which the channel is heard
        self._channel = channel
        self._pubsub: Any = None

    def get(self, timeout_s: float) -> str | None:
        """The next settled task id; "" when messages may have been lost before; None after ``timeout_s``.

        Raises `StoreUnavailable`; the next call subscribes anew.
        """
        try:
            if self._pubsub is None:
                self._pubsub = self._client().pubsub()
                self._pubsub.subscribe(self._channel)
            message = self._pubsub.get_message(timeout=timeout_s)
        except (*FAILURES, OSError) as exc:
            self.close()
            raise StoreUnavailable(f"the connection that listens is lost: {type(exc).__name__}") from None
        if message is None:
            return None
        if message["type"] == "subscribe":
            return ""
        return str(message["data"].decode()) if message["type"] == "message" else None

    def close(self) -> None:
        """Close the connection."""
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            with contextlib.suppress(*FAILURES, OSError):
                pubsub.close()


# ---------------------------------------------------------------- addresses


def client_of(url: str, more: dict[str, Any]) -> Any:
    """A client of redis-py for any form of URL. Sends nothing, but for a cluster, whose nodes must be known."""
    scheme = url.partition("://")[0]
    settings = {**_SETTINGS, "retry": _retry(), **more}
    if scheme in ("redis", "rediss"):
        return redis.Redis.from_url(url, **settings)
    if scheme == "unix":
        del settings["socket_keepalive"]
        return redis.Redis.from_url(url, **settings)
    nodes, path, settings = _parts_of(url, more)
    return _sentinel_client(nodes, path, settings) if scheme.endswith("+sentinel") else _cluster_client(nodes, settings)


def _parts_of(url: str, more: dict[str, Any]) -> tuple[list[_Place], str, dict[str, Any]]:
    """The nodes, the path and the settings in a URL of several nodes."""
    settings = {**_SETTINGS, "retry": _retry(), **more}
    plain, _, kind = url.partition("://")[0].partition("+")
    if plain not in ("redis", "rediss") or kind not in ("sentinel", "cluster"):
        forms = "redis://, rediss://, unix://, redis+sentinel://, redis+cluster:// (rediss+... for TLS)"
        raise ValueError(f"the schemes are {forms}")
    parts = urlsplit(url)
    settings.update(redis.connection.parse_url(f"redis://?{parts.query}"))  # type: ignore[no-untyped-call]
    user_info, _, places = parts.netloc.rpartition("@")
    user, _, password = user_info.partition(":")
    settings.update({name: unquote(text) for name, text in (("username", user), ("password", password)) if text})
    if plain == "rediss":
        settings["ssl"] = True
    nodes = [_place(place, 26379 if kind == "sentinel" else 6379) for place in places.split(",")]
    return nodes, parts.path, settings


def _sentinel_client(nodes: list[_Place], path: str, settings: dict[str, Any]) -> Any:
    service, _, db = path.strip("/").partition("/")
    if not service:
        raise ValueError("redis+sentinel:// needs the name of the service: redis+sentinel://host:26379/service/0")
    own = {name: settings[name] for name in ("socket_timeout", "socket_connect_timeout")}
    own["retry"] = redis.retry.Retry(redis.backoff.NoBackoff(), 0)  # the next sentinel is asked instead
    for name in ("username", "password"):  # of the sentinels themselves
        if f"sentinel_{name}" in settings:
            own[name] = settings.pop(f"sentinel_{name}")
    own |= {name: value for name, value in settings.items() if name.startswith("ssl")}
    sentinel = redis.sentinel.Sentinel(nodes, sentinel_kwargs=own, db=int(db or 0), **settings)  # type: ignore[no-untyped-call]
    return sentinel.master_for(service)  # type: ignore[no-untyped-call]


def _cluster_client(nodes: list[_Place], settings: dict[str, Any]) -> Any:
    found = [redis.cluster.ClusterNode(*node) for node in nodes]  # type: ignore[no-untyped-call]
    return redis.cluster.RedisCluster(startup_nodes=found, **settings)


def _place(text: str, default_port: int) -> _Place:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError(f"{text!r} is no host:port")
    return parts.hostname, parts.port or default_port


def _retry() -> Any:
    backoff = getattr(redis.backoff, "ExponentialWithJitterBackoff", redis.backoff.ExponentialBackoff)
    return redis.retry.Retry(backoff(base=0.02, cap=0.2), 2, supported_errors=(redis.ConnectionError,))


def _secrets_in(url: str) -> list[str]:
    """What must not be shown of ``url``, as it is and decoded."""
    parts = urlsplit(url)
    found = [parts.netloc.rpartition("@")[0].partition(":")[2]]
    found += [text for name, texts in parse_qs(parts.query).items() if "password" in name for text in texts]
    return [secret for text in found if text for secret in {text, unquote(text)}]
