"""The way to a Redis (6.2 or newer) or Valkey, on redis-py: its addresses, scripts in pipelines, and what went wrong.

The only module that imports redis. The scripts are in `store.scripts` and `store.cluster_scripts`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis
import redis.backoff
import redis.cluster
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

Command = tuple[Script, str, tuple[Any, ...]]  # a script, its key, its arguments


class RedisClient:
    """A Redis at ``url``; see `store.redis.RedisStore` for its forms. For any thread.

    Connects with the first command. With ``scripts`` each new connection asks which server it has reached, before any
    command is sent (see `identity`), and loads them: a command whose script is missing would be carried out after those
    behind it. Raises `ConfigError` for a wrong URL, `StoreUnavailable` for a cluster that cannot be reached.
    """

    def __init__(self, url: str, scripts: Iterable[Script] = ()) -> None:
        self.shown_url = without_password(url)
        self.identity = ""  # of the server, and of what it has been through, as of the latest connection
        self._secrets = _secrets_in(url)
        self._is_cluster = url.partition("://")[0].endswith("+cluster")
        self._scripts = tuple(scripts)
        # No health check: its PING goes out within `_prepare`, and begins that again if the connection is closed.
        more = {"redis_connect_func": self._prepare, "health_check_interval": 0}
        self._redis = self._open(url, more if self._scripts else {})

    def run(self, script: Script, key: str, arguments: Sequence[Any]) -> Any:
        """What ``script`` gives. Raises `StoreUnavailable` or `StoreFull`."""
        try:
            try:
                return self._redis.execute_command("EVALSHA", script.sha, 1, key, *arguments)
            except redis.exceptions.NoScriptError:  # the first time on this server, or since its restart
                return self._redis.execute_command("EVAL", script.text, 1, key, *arguments)
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
                for script in self._scripts:  # somebody has flushed them
                    self._redis.script_load(script.text)
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
            self._redis.publish(channel, text)

    def listen(self, channel: str) -> RedisListener:
        """What is told on ``channel``."""
        return RedisListener(self._redis, channel)

    def policy(self) -> str:
        """The server's ``maxmemory-policy``; "noeviction" if this user may not know it."""
        try:
            memory = self._redis.info("memory")
        except FAILURES:
            return "noeviction"
        if "maxmemory_policy" not in memory:  # of a cluster: a dict for each node
            memory = next(iter(memory.values()), {})
        return str(memory.get("maxmemory_policy", "noeviction"))

    def close(self) -> None:
        """Close the connections."""
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

    def _execute(self, commands: Sequence[Command]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for script, key, arguments in commands:
            pipeline.execute_command("EVALSHA", script.sha, 1, key, *arguments)
        got: list[Any] = pipeline.execute(raise_on_error=False)
        return got

    def _answer(self, command: Command, answer: Any, tolerant: bool) -> Any:
        if isinstance(answer, redis.exceptions.NoScriptError):
            try:
                return self._redis.execute_command("EVAL", command[0].text, 1, command[1], *command[2])
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
        if not self._is_cluster:  # its client has done it before
            connection.on_connect()
        for script in self._scripts:
            connection.send_command("SCRIPT", "LOAD", script.text)
            connection.read_response()
        connection.send_command("INFO")
        told = connection.read_response()
        self.identity = " ".join(text.decode() for text in _IDENTITY.findall(told))

    def _error(self, exc: Exception) -> StoreError:
        if isinstance(exc, redis.sentinel.MasterNotFoundError):  # whose text shows all that redis-py knows of itself
            return StoreUnavailable(f"Redis at {self.shown_url}: no sentinel that answers knows of such a master")
        text = self.without_secrets(exc)
        # In a script of Redis 6.2 it is no error of its own.
        if isinstance(exc, redis.exceptions.OutOfMemoryError) or "OOM " in text:
            return StoreFull(f"Redis at {self.shown_url} has reached its maxmemory and takes no further result")
        return StoreUnavailable(f"Redis at {self.shown_url}: {text}")

    def _open(self, url: str, more: dict[str, Any]) -> Any:
        error: ZmqAgentsError
        try:
            return client_of(url, more)
        except FAILURES as exc:  # a cluster
            error = self._error(exc)
        except (ValueError, TypeError) as exc:
            error = ConfigError(f"redis_url {self.shown_url}: {self.without_secrets(exc)}")
        raise error


class RedisListener:
    """Tells an owner which of the tasks that it waits for are settled. For one thread."""

    def __init__(self, client: Any, channel: str) -> None:
        self._client = client
        self._channel = channel
        self._pubsub: Any = None

    def get(self, timeout_s: float) -> str | None:
        """The next settled task id; "" when messages may have been lost before; None after ``timeout_s``.

        Raises `StoreUnavailable`; the next call subscribes anew.
        """
        try:
            if self._pubsub is None:
                self._pubsub = self._client.pubsub()
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
    plain, _, kind = scheme.partition("+")
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
    return _sentinel_client(nodes, parts.path, settings) if kind == "sentinel" else _cluster_client(nodes, settings)


def _sentinel_client(nodes: list[tuple[str, int]], path: str, settings: dict[str, Any]) -> Any:
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


def _cluster_client(nodes: list[tuple[str, int]], settings: dict[str, Any]) -> Any:
    found = [redis.cluster.ClusterNode(*node) for node in nodes]  # type: ignore[no-untyped-call]
    return redis.cluster.RedisCluster(startup_nodes=found, **settings)


def _place(text: str, default_port: int) -> tuple[str, int]:
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
