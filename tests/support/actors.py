"""Agent classes that the tests host, and a host to put them on.

`Latch` is how a test holds a call inside its method until it is ready, instead of sleeping: `hold` blocks until
`release`, and `entered` answers once somebody is in `hold`. Both of these run beside the turn, on the host's event
loop, so they need no worker.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zmqagents import (
    AgentBase,
    RpcAgentServerLauncher,
    RpcClient,
    async_func,
    concurrent,
    current_call,
    deadline,
    sync_func,
)

CALL_TIMEOUT_S = 30.0  # of every call in the tests: a call that hangs fails its test, not the session
HOLD_LIMIT_S = 600.0 if os.environ.get("ZMQAGENTS_SOAK") else 30.0  # a stuck agent of `make soak` stays stuck
ISOLATION = os.environ.get("ZMQAGENTS_TEST_ISOLATION", "thread")  # `make test-processes`: agents run in children


class Desk(AgentBase):
    """Takes and gives values of every kind."""

    motto = "first come"

    def __init__(self, name: str | None = None, *, colour: str = "grey") -> None:
        super().__init__(name)
        self.colour = colour
        self.count = 0
        self.memory = ["hello", {"n": 1}]
        self._secret = "hidden"

    def reply(self, x: Any = None, *, twice: bool = False) -> Any:
        """Give ``x`` back."""
        return [x, x] if twice else x

    def echo(self, x: Any) -> Any:
        """Give ``x`` back, while the caller waits."""
        return x

    def add(self, a: Any, b: Any = 0, /, *rest: Any, c: Any = 0, **more: Any) -> Any:
        return sum((a, b, *rest, c, *more.values()))

    @async_func
    def later(self, x: Any, *others: Any) -> Any:
        return x

    @async_func
    def plus(self, a: Any, b: Any = 0) -> Any:
        return a + b

    async def soon(self, x: Any) -> Any:
        """A coroutine."""
        await asyncio.sleep(0)
        return x

    @sync_func
    async def at_once(self, x: Any) -> Any:
        return x

    def returns_coroutine(self, x: Any) -> Any:
        return self.soon(x)

    @staticmethod
    def fixed(x: Any) -> Any:
        return ("fixed", x)

    @classmethod
    def of_class(cls, x: Any) -> Any:
        return (cls.__name__, x)

    @property
    def loud(self) -> str:
        return self.colour.upper()

    @property
    def broken(self) -> str:
        raise KeyError("broken property")

    def nothing(self) -> None:
        return None

    def bump(self) -> int:
        self.count += 1
        return self.count

    def type_of(self, x: Any) -> str:
        return type(x).__name__

    def nap(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def make_bytes(self, size: int) -> bytes:
        return b"\xaa" * size  # not zeros: those would cost no memory

    def patient(self, timeout: float) -> float:
        """Has a parameter of its own that is called timeout."""
        return timeout

    def seconds_in_name(self, timeout_s: float = 0, sep: str = "**") -> Any:
        return timeout_s

    def anything(self, **options: Any) -> Any:
        return options

    def pid(self) -> int:
        return os.getpid()

    def unsendable(self) -> Any:
        return {"a": [1, {"b": threading.Lock()}]}

    def _private(self) -> str:
        return "unreachable"


class Latch(AgentBase):
    """See the module's docstring."""

    def __init__(self) -> None:
        super().__init__()
        self._open = threading.Event()
        self._inside = 0
        self.marks: list[Any] = []
        self.saw_cancel = False

    def hold(self, value: Any = None) -> Any:
        self._inside += 1
        self._open.wait(HOLD_LIMIT_S)
        return value

    @async_func
    def hold_async(self, value: Any = None) -> Any:
        return self.hold(value)

    @concurrent
    def hold_beside(self, value: Any = None) -> Any:
        return self.hold(value)

    @async_func
    def hold_until_cancelled(self) -> bool:
        call = current_call()
        assert call is not None
        self._inside += 1
        self.saw_cancel = call.wait_cancelled(HOLD_LIMIT_S)
        return self.saw_cancel

    async def sleep_for_ever(self) -> None:
        self._inside += 1
        try:
            await asyncio.sleep(HOLD_LIMIT_S)
        except asyncio.CancelledError:
            self.saw_cancel = True
            raise

    def mark(self, value: Any) -> Any:
        self.marks.append(value)
        return value

    @async_func
    def mark_later(self, value: Any) -> Any:
        return self.mark(value)

    @sync_func
    @concurrent
    async def entered(self, how_many: int = 1) -> int:
        """Answers when ``how_many`` calls have come into one of the holds."""
        while self._inside < how_many:
            await asyncio.sleep(0.001)
        return self._inside

    @sync_func
    @concurrent
    async def cancel_seen(self) -> bool:
        """Answers when a hold has seen that it was cancelled."""
        while not self.saw_cancel:
            await asyncio.sleep(0.001)
        return True

    @sync_func
    @concurrent
    async def release(self) -> None:
        self._open.set()


class Counter(AgentBase):
    """Loses increments when two of them overlap."""

    def __init__(self) -> None:
        super().__init__()
        self.value = 0
        self.running = 0
        self.most_running = 0

    @async_func
    def increment(self) -> int:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        seen = self.value
        time.sleep(0.001)
        self.value = seen + 1
        self.running -= 1
        return self.value

    @async_func
    async def increment_on_loop(self) -> int:
        seen = self.value
        await asyncio.sleep(0.001)
        self.value = seen + 1
        return self.value

    @concurrent
    def progress(self) -> int:
        return self.value


class Together(Counter, max_concurrency=8):
    """Eight of its calls may run at once: they meet at a barrier that needs all eight."""

    def __init__(self) -> None:
        super().__init__()
        self._barrier = threading.Barrier(8)

    @async_func
    def meet(self) -> int:
        return self._barrier.wait(CALL_TIMEOUT_S)


class Node(AgentBase):
    """Calls other agents."""

    def reply(self, x: Any = None) -> Any:
        return x

    def value(self) -> str:
        return "value"

    def down(self, others: list[Any]) -> int:
        """How many agents there are in the chain: each calls the next and waits for it."""
        return 1 + (others[0].down(others[1:]) if others else 0)

    async def down_on_loop(self, others: list[Any]) -> int:
        return 1 + (await others[0].down_on_loop(others[1:]) if others else 0)

    @async_func
    def fan_out(self, others: list[Any]) -> Any:
        return sum(result.result() for result in [other.leaf() for other in others])

    @async_func
    def leaf(self) -> int:
        return 1

    @async_func
    def ask(self, other: Any, method: str, *args: Any) -> Any:
        value = getattr(other, method)(*args)
        return value.result() if hasattr(type(value), "add_done_callback") else value

    async def ask_on_loop(self, other: Any, method: str, *args: Any) -> Any:
        return await getattr(other, method)(*args)

    async def block_the_loop(self, latch: Any) -> Any:
        return latch.hold()

    async def block_the_loop_with_result(self, latch: Any) -> Any:
        return latch.hold_async().result()

    async def ask_in_thread(self, other: Any) -> Any:
        both = [asyncio.to_thread(other.value), asyncio.to_thread(other.leaf().result)]
        return await asyncio.gather(*both)

    def numbers(self, n: int) -> Any:
        yield from range(n)

    async def numbers_on_loop(self, n: int) -> Any:
        for i in range(n):
            yield i

    @async_func
    def read_stream(self, other: Any, n: int) -> int:
        return sum(other.numbers(n))

    async def read_stream_on_loop(self, other: Any, n: int) -> int:
        return sum([i async for i in other.numbers_on_loop(n)])

    @async_func
    def ask_for_argument(self, first: Any, second: Any) -> Any:
        return second.reply(first.leaf()).result()

    async def ask_for_argument_on_loop(self, first: Any, second: Any) -> Any:
        return await second.reply(first.leaf())

    @async_func
    def walk(self, path: list[int], nodes: list[Any]) -> int:
        """Call the agents of ``path``, each the next."""
        return 1 + (nodes[path[0]].walk(path[1:], nodes).result() if path else 0)

    async def walk_on_loop(self, path: list[int], nodes: list[Any]) -> int:
        method = nodes[path[0]].walk if path and path[0] % 2 else nodes[path[0]].walk_on_loop if path else None
        return 1 + (await method(path[1:], nodes) if method else 0)

    def forward(self, other: Any, x: Any) -> Any:
        """Gives the other's AsyncResult as its own value."""
        return other.reply(x)

    def forward_in_list(self, other: Any, *args: Any) -> Any:
        return {"results": [other.ask(*args)]}

    def read_from(self, source: Any, *args: Any) -> Any:
        return source.forward_in_list(*args)["results"][0].result()

    def coroutine_that_asks(self, other: Any, x: Any) -> Any:
        async def ask() -> Any:
            return await other.reply(x)

        return ask()

    @async_func
    def hold_then_ask(self, latch: Any, other: Any, method: str) -> Any:
        latch.hold_beside()
        return getattr(other, method)()

    def remaining(self) -> float | None:
        call = current_call()
        assert call is not None
        return call.remaining()

    def rest_of_both(self, other: Any) -> list[float | None]:
        return [self.remaining(), other.remaining()]

    def rest_within(self, other: Any, seconds: float) -> float | None:
        with deadline(seconds):
            rest: float | None = other.remaining()
            return rest

    def in_callback(self, latch: Any, other: Any) -> Any:
        """What a blocking call inside a done-callback ends in."""
        done, seen = threading.Event(), []

        def on_done(_: Any) -> None:
            try:
                seen.append(other.value())
            except Exception as exc:
                seen.append(type(exc).__name__)
            done.set()

        result = latch.hold_async()
        result.add_done_callback(on_done)
        latch.release()
        done.wait(CALL_TIMEOUT_S)
        return seen

    def exit_in_callback(self, latch: Any) -> str:
        result = latch.hold_async(1)
        result.add_done_callback(lambda _: sys.exit(3))
        latch.release()
        return str(result.result())

    def fibonacci(self, latch: Any, other: Any, n: int) -> Any:
        results = [latch.hold_async(0), other.plus(1, 0)]
        for _ in range(n):
            results.append(other.plus(results[-1], results[-2]))
        latch.release()
        return results[-1].result()

    def wait_and_collect(self, other: Any, n: int) -> Any:
        from zmqagents.client.waiting import as_completed, wait

        results = [other.leaf() for _ in range(n)]
        wait(results)
        return sum(result.result() for result in as_completed(results))


class Fragile(AgentBase):
    """Its __init__ does as it is told."""

    def __init__(self, how: str = "well", *args: Any) -> None:
        super().__init__()
        if how == "raise":
            raise ValueError("not today", *args)
        if how == "exit":
            raise SystemExit(4)
        if how == "hold":
            args[0].hold_beside()
        if how == "ask":
            self.answer = args[0].value()
        if how == "own id":
            self.seen_id = self.agent_id

    def fine(self) -> str:
        return "fine"


CLASSES = [Desk, Latch, Counter, Together, Node, Fragile]


@contextmanager
def host(*classes: type, **settings: Any) -> Iterator[RpcAgentServerLauncher]:
    """A host process with ``classes`` (default: all of these). It ends at once, whatever still runs on it."""
    settings.setdefault("local_mode", True)
    settings.setdefault("grace_s", 0.2)
    settings.setdefault("isolation", ISOLATION)
    settings.setdefault("processes", 2)
    launcher = RpcAgentServerLauncher(custom_agent_classes=list(classes) or CLASSES, **settings)
    launcher.launch()
    try:
        yield launcher
    finally:
        launcher.shutdown()


def is_router(name: str) -> bool:
    """Whether a thread of this name reads the sockets of its host, or may come to."""
    return name.startswith(("zmqagents-router", "zmqagents-standby"))


@contextmanager
def client_of(launcher: RpcAgentServerLauncher, **options: Any) -> Iterator[RpcClient]:
    options.setdefault("timeout", CALL_TIMEOUT_S)
    with RpcClient(launcher.host, launcher.port, **options) as client:
        yield client


@contextmanager
def client_on_host(*classes: type, **settings: Any) -> Iterator[RpcClient]:
    """A client of a host of its own."""
    with host(*classes, **settings) as launcher, client_of(launcher) as client:
        yield client


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """The block takes no longer, or the test fails."""
    start = time.monotonic()
    yield
    took = time.monotonic() - start
    assert took <= seconds, f"took {took:.3f} s, limit {seconds} s"
