"""Hosts of one cluster for the tests, on a real Redis, and a plain client that calls agents by reference."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from hosts import eventually
from redis_groups import RedisCluster, Watched
from redis_server import RedisServer
from zmqagents import AgentBase, RpcAgentServerLauncher, agent, codec, concurrent, idempotent, once, stream_func
from zmqagents.agents.context import current_call
from zmqagents.client.proxy import request_body
from zmqagents.connection.connection import Connection
from zmqagents.connection.target import target_of
from zmqagents.errors import CallLost
from zmqagents.wire.link import Waiter, rebuild_error
from zmqagents.wire.messages import Flag, Op, Reply

__all__ = [
    "CHILDREN_TOO", "Account", "Alarmed", "Brief", "Caller", "Diary", "Forgetful", "Hosts", "Lazy", "Nearby", "Picky",
    "Punctual", "Sleeper", "Stubborn", "Teller", "Till", "Trainer", "all_hosts", "hosts_on",
]  # fmt: skip

CLUSTER = "shop"
CHILDREN_TOO = pytest.mark.parametrize("isolation", ["thread", "pool"], indirect=True)  # of the agents of all hosts
T = TypeVar("T")


def _wait(seconds: float) -> None:
    call = current_call()
    assert call is not None
    call.wait_cancelled(seconds)


class Account(AgentBase):
    """Counts cents, and keeps them across crashes."""

    state_version = 2

    def __init__(self, currency: str = "EUR") -> None:
        self.currency, self.cents = currency, 0

    def save_state(self) -> dict[str, Any]:
        return {"currency": self.currency, "cents": self.cents}

    def load_state(self, state: dict[str, Any], version: int) -> None:
        self.currency, self.cents = state["currency"], state["cents"]

    def add(self, cents: int) -> int:
        self.cents += cents
        return self.cents

    @once
    def pay(self, cents: int) -> int:
        """Pays once, whatever is sent again; what is odd is an error, and counts nevertheless."""
        self.cents += cents
        if cents % 2:
            raise ValueError(self.cents)
        return self.cents

    def balance(self) -> int:
        return self.cents

    def fail_after(self, cents: int) -> None:
        self.cents += cents
        raise KeyError(cents)

    def slow(self, seconds: float) -> int:
        call = current_call()
        assert call is not None
        end = time.monotonic() + seconds
        while time.monotonic() < end and not call.cancelled:
            time.sleep(0.01)
        return self.cents

    @concurrent
    @idempotent
    def slow_look(self, seconds: float) -> int:
        _wait(seconds)
        return self.cents

    @stream_func
    def drip(self, most: int) -> Iterator[int]:
        for number in range(most):
            yield number
            _wait(0.05)

    def process(self) -> int:
        return os.getpid()

    def fence(self) -> int:
        call = current_call()
        assert call is not None
        return call.fence

    @stream_func
    def count(self, most: int) -> Iterator[int]:
        yield from range(most)


class Till(AgentBase):
    """Knows accounts, wherever they are, and keeps that."""

    def __init__(self) -> None:
        self.accounts: list[Any] = []

    def save_state(self) -> list[Any]:
        return self.accounts

    def load_state(self, state: list[Any]) -> None:
        self.accounts = state

    def remember(self, account: Any) -> int:
        self.accounts.append(account)
        return len(self.accounts)

    def total(self) -> int:
        return sum(account.balance() for account in self.accounts)

    async def later_total(self) -> int:
        return sum([await account.balance.aio() for account in self.accounts])

    def first(self) -> Any:
        return self.accounts[0]


class Teller(AgentBase):
    """Calls other agents of the cluster, the first of them while it is made."""

    def __init__(self) -> None:
        self.first = self.ask("Account/of-tellers", "add", 1)

    def ask(self, name: str, method: str, *args: Any) -> Any:
        call = current_call()
        assert call is not None
        return getattr(call.client().get_agent(f"cluster:{CLUSTER}/{name}"), method)(*args)

    def chain(self, names: list[str]) -> int:
        """Each calls the next one, by its own host."""
        return 1 if not names else 1 + self.ask(names[0], "chain", names[1:])


class Diary(AgentBase):
    """Notes what it is told, in that order."""

    def __init__(self) -> None:
        self.notes: list[int] = []

    def save_state(self) -> list[int]:
        return self.notes

    def load_state(self, state: list[int]) -> None:
        self.notes = state

    def note(self, number: int) -> None:
        self.notes.append(number)

    def read(self) -> list[int]:
        return self.notes


@agent(persist="idle")
class Lazy(AgentBase):
    """Is saved when it leaves its host, and when it says so."""

    state_version, state_writes = 3, 2

    def __init__(self) -> None:
        self.number, self.version = 0, 0

    def save_state(self) -> int:
        return self.number

    def load_state(self, state: int, version: int) -> None:
        self.number, self.version = state, version

    def put(self, number: int) -> None:
        self.number = number

    def save_now(self) -> None:
        call = current_call()
        assert call is not None
        call.save()

    def put_later(self, number: int) -> None:
        call = current_call()
        assert call is not None
        call.remind("later", after=0.2, method="put", args=[number])

    def get(self) -> list[int]:
        return [self.number, self.version]


@agent(labels={"gpu": "yes"})
class Trainer(AgentBase):
    """Lives where there is a GPU."""

    def __init__(self, name: str = "anonymous") -> None:
        self.name = name

    def process(self) -> int:
        return os.getpid()

    def who(self) -> str:
        return self.name


@agent(placement="local")
class Nearby(AgentBase):
    """Lives where it is asked for first."""

    def process(self) -> int:
        return os.getpid()

    def neighbour(self, key: str) -> int:
        """The process of another one, which this one is the first to call."""
        call = current_call()
        assert call is not None
        return int(call.client().get_agent(f"cluster:{CLUSTER}/Nearby/{key}").process())


class Brief(AgentBase, idle_s=0.4):
    """Is saved and given back soon."""

    def __init__(self) -> None:
        self.count = self.lives = 0

    def save_state(self) -> list[int]:
        return [self.count, self.lives]

    def load_state(self, state: list[int]) -> None:
        self.count, self.lives = state[0], state[1] + 1

    def add(self) -> list[int]:
        self.count += 1
        return [self.count, self.lives]


class Picky(AgentBase):
    """Can be made with some arguments only."""

    def __init__(self, number: int) -> None:
        if number < 0:
            raise ValueError(number)
        self.number = number

    def get(self) -> int:
        return self.number


class Forgetful(AgentBase):
    """Has no state that is kept."""

    def __init__(self) -> None:
        self.calls = 0

    def call(self) -> int:
        self.calls += 1
        return self.calls


class Alarmed(AgentBase):
    """Is reminded, and notes what of, how late, and by which call."""

    def __init__(self) -> None:
        self.ticks: list[tuple[str, float, str]] = []
        self.due = 0.0

    def save_state(self) -> list[Any]:
        return [self.ticks, self.due]

    def load_state(self, state: list[Any]) -> None:
        self.ticks, self.due = [tuple(tick) for tick in state[0]], state[1]

    def remind(self, name: str, after: float | None, every: float | None, method: str = "tick", *args: Any) -> None:
        self.due = time.time() + (after or every or 0.0)
        call = current_call()
        assert call is not None
        call.remind(name, after=after, every=every, method=method, args=args or (name,))

    def cancel(self, name: str) -> None:
        call = current_call()
        assert call is not None
        call.cancel_reminder(name)

    def tick(self, text: str) -> None:
        call = current_call()
        assert call is not None
        self.ticks.append((text, time.time() - self.due, call.call_id))

    def fail(self, text: str) -> None:
        self.tick(text)
        raise ValueError(text)

    def slow_tick(self, seconds: float) -> None:
        _wait(seconds)
        self.tick("slow")

    @concurrent
    def look(self) -> int:
        return len(self.ticks)

    def ticks_so_far(self) -> list[tuple[str, float, str]]:
        return self.ticks

    def process(self) -> int:
        return os.getpid()


class Punctual(Alarmed):
    """Is reminded from its first moment on."""

    def __init__(self) -> None:
        super().__init__()
        self.remind("since", 600.0, 600.0)


class Sleeper(AgentBase):
    """Has no state that is kept, and reminders nevertheless."""

    woken = 0

    def sleep(self, seconds: float, text: str) -> None:
        call = current_call()
        assert call is not None
        call.remind("wake", after=seconds, method="wake", args=[text])

    def wake(self, text: str) -> None:
        self.woken += 1
        self.text = text

    def ticks_so_far(self) -> list[Any]:
        return [self.text] * self.woken if self.woken else []


class Stubborn(AgentBase):
    """Cannot be made."""

    def __init__(self) -> None:
        raise ValueError("not today")

    def call(self) -> int:
        return 1


CLASSES = [
    Account, Alarmed, Brief, Diary, Forgetful, Lazy, Nearby, Picky, Punctual, Sleeper, Stubborn, Teller, Till, Trainer,
]  # fmt: skip


class _Items:
    """Takes the items of a stream, and grants credit for each."""

    def __init__(self, link: Connection) -> None:
        self.end, self.task_id, self.found = Waiter(), "", list[Any]()
        self.deliver, self.fail = self.end.deliver, self.end.fail
        self._link = link

    def chunk(self, item: Reply) -> None:
        self.found.append(codec.decode(item.body[0], item.body[1:]))
        self._link.credit(self.task_id, 1)


class Caller:
    """A client that says what it wants in plain messages."""

    def __init__(self, address: str, transport: Any = None) -> None:
        self.link = Connection(target_of(address)._replace(transport=transport))
        self._open: dict[Waiter, str] = {}

    def call(self, name: str, method: str, *args: Any, timeout: float | None = 20.0, flags: int = 0) -> Any:
        """The result of a method of ``Class/key``."""
        return self.ask(f"cluster:{CLUSTER}/{name}", method, *args, timeout=timeout, flags=flags)

    def sure(self, name: str, method: str, *args: Any) -> Any:
        """The same for a method that may run twice: a call that was under way to a host which died is made again."""
        for _ in range(5):
            with contextlib.suppress(CallLost):
                return self.call(name, method, *args)
        raise AssertionError(f"{name} is lost for ever")

    def ask(
        self, agent_id: str, method: str, *args: Any, timeout: float | None = 20.0, flags: int = 0, **options: Any
    ) -> Any:
        """The same for any agent, and for requests to the host."""
        body = request_body(self.link, method, args, {})
        reply = self.link.call(agent_id, method, body, options=options or None, timeout=timeout, flags=flags)
        if reply.code:
            raise rebuild_error(reply)
        return codec.decode(reply.body[0], reply.body[1:])

    def begin(
        self, name: str, method: str, *args: Any, timeout: float | None = 20.0, flags: int = 0, **options: Any
    ) -> Waiter:
        """Make a call without waiting for it."""
        waiter = Waiter()
        body = request_body(self.link, method, args, {})
        self._open[waiter] = self.link.submit(
            f"cluster:{CLUSTER}/{name}", method, body, waiter, timeout=timeout, options=options or None, flags=flags
        )
        return waiter

    def task_of(self, waiter: Waiter) -> str:
        """The id under which the result of a call is kept."""
        return self._open[waiter]

    def fetched(self, task_id: str) -> Any:
        """A result that is kept."""
        waiter = Waiter()
        self.link.fetch(task_id, waiter, timeout=10)
        return result_of(waiter)

    def cancel(self, waiter: Waiter) -> None:
        """Cancel a call that was begun."""
        self.link.cancel(self._open[waiter])

    def stream(self, name: str, method: str, *args: Any) -> list[Any]:
        """All items of a stream."""
        items = _Items(self.link)
        body = request_body(self.link, method, args, {})
        items.task_id = self.link.submit(f"cluster:{CLUSTER}/{name}", method, body, items, flags=Flag.STREAM)
        result_of(items.end)
        return items.found

    def status(self) -> dict[str, Any]:
        """The figures of the host as a member."""
        figures: dict[str, Any] = self.ask("", Op.INFO)["cluster"]
        return figures

    def running(self) -> int:
        """How many calls run on the host, in its threads and its processes."""
        told = self.ask("", Op.INFO)
        return int(told["running"] + told["children"]["calls"])

    def close(self) -> None:
        self.link.close()


def result_of(waiter: Waiter, within_s: float = 20.0) -> Any:
    """What a call that was begun has ended in."""
    reply = waiter.wait(within_s)
    if reply.code:
        raise rebuild_error(reply)
    return codec.decode(reply.body[0], reply.body[1:])


_of_all: dict[str, Any] = {}


@contextlib.contextmanager
def all_hosts(**options: Any) -> Iterator[None]:
    """All hosts that are made within have these options, unless they are given others."""
    _of_all.update(options)
    try:
        yield
    finally:
        for name in options:
            del _of_all[name]


class Hosts:
    """Hosts of one cluster, and a caller for each."""

    def __init__(
        self, redis: RedisServer | Watched | RedisCluster, classes: Sequence[type] = (), **options: Any
    ) -> None:  # fmt: skip
        self.redis: Any = redis
        self._classes = [*CLASSES, *classes]
        given = {"cluster": CLUSTER, "lease_s": 3.0, "local_mode": True, "grace_s": 2.0, "redis_url": redis.url}
        self._options: dict[str, Any] = {**given, **_of_all, **options}
        self.has_children = self._options.get("isolation", "thread") != "thread"
        self._stack = contextlib.ExitStack()
        self.launchers: list[RpcAgentServerLauncher] = []
        self.callers: list[Caller] = []

    def start(self, **options: Any) -> Caller:
        """Start one more."""
        given: dict[str, Any] = {"host": "127.0.0.1", "custom_agent_classes": self._classes, **self._options, **options}
        launcher = RpcAgentServerLauncher(**given)
        launcher.launch()
        self._stack.callback(launcher.shutdown)
        caller = Caller(f"{launcher.host}:{launcher.port}")
        self._stack.callback(caller.close)
        self.launchers.append(launcher)
        self.callers.append(caller)
        return caller

    def kill(self, index: int) -> None:
        """kill -9."""
        os.kill(self.launchers[index].pid or 0, signal.SIGKILL)
        path = Path(self.launchers[index].ipc or "").with_suffix(".start")
        self._stack.callback(path.unlink, missing_ok=True)  # as long as nobody else starts here

    def kill_in_turn(self, work: Callable[[T], None], shares: Iterable[T]) -> None:
        """Kill hosts that start again, while each of ``shares`` is worked on by a thread that ends after 12 s or so."""
        threads = [threading.Thread(target=work, args=(share,)) for share in shares]
        for thread in threads:
            thread.start()
        for victim in (1, 2, 1):
            time.sleep(3)  # the load itself, not a wait for something
            self.kill(victim)
        for thread in threads:
            thread.join(90)

    def home_of(self, name: str) -> int:
        """The index of the host that runs an agent which can tell its process."""
        return self.index_of(self.callers[0].call(name, "process"))

    def index_of(self, process: int) -> int:
        """The index of the host whose process this is, or that of its agents."""
        pids = [launcher.pid for launcher in self.launchers]
        return pids.index(process if process in pids else psutil.Process(process).ppid())

    def all_know(self, count: int) -> bool:
        """Whether each host has seen so many members."""
        found = [caller.status() for caller in self.callers]
        return all(figures is None or figures["members"] == count for figures in found)

    def close(self) -> None:
        self._stack.close()


@contextlib.contextmanager
def hosts_on(redis: RedisServer | Watched | RedisCluster, count: int, **options: Any) -> Iterator[Hosts]:
    """So many hosts of one cluster that know each other."""
    hosts = Hosts(redis, **options)
    try:
        for _ in range(count):
            hosts.start()
        assert eventually(lambda: hosts.all_know(count), 20)
        yield hosts
    finally:
        hosts.close()
