"""Streams from end to end: a generator on a host, its reader in another process, real sockets.

The host has one worker slot, so that every test here also shows that a stream which waits for its reader, and a
reader which waits for its stream, give it back.
"""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, cast

import psutil
import pytest

from actors import CALL_TIMEOUT_S, client_of, client_on_host, host, within
from hosts import eventually, freeze, output_of, started, told
from world import World
from zmqagents import (
    AgentBase,
    AgentCallError,
    AgentDeleted,
    AgentProxy,
    BlockingCallError,
    CallCancelled,
    CallLost,
    CallTimeout,
    DeadlockError,
    RpcAgentServerLauncher,
    RpcClient,
    SerializationError,
    Stream,
    UnknownAgent,
    async_func,
    concurrent,
    register_type,
    stream_func,
    sync_func,
)
from zmqagents.client.result import Condition
from zmqagents.codec import encode
from zmqagents.execution.router import Router
from zmqagents.execution.stream_sender import StreamSender
from zmqagents.wire.messages import MAX_TIME_MS, STREAM_WINDOW, Flag

pytestmark = pytest.mark.timeout(60)
ENDLESS = 10**9
FLAT_MIB = 4.0  # how much a process may grow by while items flow through it: less than any queue of them


def _refuse(_: Any) -> Any:
    raise LookupError("no object can be made of this")


@register_type(to_data=lambda _: 0, from_data=_refuse)
class Unreadable:
    """Can be sent and not be read."""


class Source(AgentBase):
    """Makes items. ``made`` counts those of the latest stream, ``ended`` the streams whose finally has run.

    Those two and `open_gate` run on the host's event loop: they answer also while a generator sits on the only slot.
    """

    def __init__(self) -> None:
        super().__init__()
        self._gate = threading.Event()
        self._made = 0
        self._ended = 0

    def count(self, n: int) -> Iterator[int]:
        """0, 1, ... n - 1."""
        try:
            for i in range(n):
                self._made = i + 1
                yield i
        finally:
            self._ended += 1

    async def count_on_loop(self, n: int) -> AsyncIterator[int]:
        try:
            for i in range(n):
                self._made = i + 1
                yield i
        finally:
            self._ended += 1

    def gated(self, before: int, after: int) -> Iterator[int]:
        """Item number ``before`` is made when somebody opens the gate."""
        for i in range(before + after):
            self._made = i + 1
            if i == before:
                self._gate.wait(CALL_TIMEOUT_S)
            yield i

    async def gated_on_loop(self, before: int, after: int) -> AsyncIterator[int]:
        for i in range(before + after):
            self._made = i + 1
            while i == before and not self._gate.is_set():
                await asyncio.sleep(0.001)
            yield i

    @concurrent
    def beside(self, n: int) -> Iterator[int]:
        yield from range(n)

    def breaks(self, after: int) -> Iterator[Any]:
        yield from range(after)
        raise KeyError("midway")

    async def breaks_on_loop(self, after: int) -> AsyncIterator[Any]:
        for i in range(after):
            yield i
        raise KeyError("midway")

    def unsendable(self) -> Iterator[Any]:
        yield 1
        yield {"lock": threading.Lock()}

    def unreadable(self, n: int) -> Iterator[Any]:
        for _ in range(n):
            yield Unreadable()

    def blobs(self, n: int, size: int) -> Iterator[bytes]:
        for i in range(n):
            self._made = i + 1
            yield b"\xaa" * size

    @stream_func
    def listed(self) -> Any:
        return [1, 2, 3]

    @stream_func
    async def listed_on_loop(self) -> Any:
        return [1, 2, 3]

    def count_as_value(self, other: Any) -> Any:
        return other.count(3)

    def echo(self, x: Any) -> Any:
        return x

    @sync_func
    @concurrent
    async def made(self) -> int:
        return self._made

    @sync_func
    @concurrent
    async def ended(self) -> int:
        return self._ended

    @sync_func
    @concurrent
    async def open_gate(self) -> None:
        self._gate.set()


class Reader(AgentBase):
    """Reads the streams of others."""

    def total(self, source: Any, n: int) -> int:
        return sum(source.count(n))

    async def total_on_loop(self, source: Any, n: int) -> int:
        total = 0
        async for i in source.count(n):
            total += i
        return total

    def twice(self, source: Any, n: int) -> Iterator[int]:
        for i in source.count(n):
            yield 2 * i

    async def twice_on_loop(self, source: Any, n: int) -> AsyncIterator[int]:
        async for i in source.count_on_loop(n):
            yield 2 * i

    @stream_func
    def passed_on(self, source: Any, n: int) -> Any:
        return source.count(n)

    @async_func
    def of_itself(self, me: Any) -> int:
        return sum(me.twice(me, 1))

    async def of_itself_on_loop(self, me: Any) -> int:
        return len([i async for i in me.twice_on_loop(me, 1)])

    def echoes(self, source: Any, n: int) -> list[int]:
        """Calls the agent whose stream it reads."""
        return [source.echo(i) for i in source.count(n)]

    @async_func
    def reads_for(self, source: Any, n: int, seconds: float) -> int:
        return sum(source.count.with_timeout(seconds)(n))


@pytest.fixture(scope="module")
def server() -> Iterator[RpcAgentServerLauncher]:
    with host(Source, Reader, capacity=1) as launcher:
        yield launcher


@pytest.fixture
def source(client: RpcClient) -> AgentProxy:
    proxy: Any = client.create_agent(Source)
    return proxy


@pytest.fixture
def reader(client: RpcClient) -> AgentProxy:
    proxy: Any = client.create_agent(Reader)
    return proxy


both_kinds = pytest.mark.parametrize("kind", ["count", "count_on_loop"])


def first_items(stream: Stream[Any], how_many: int) -> list[Any]:
    return [next(stream) for _ in range(how_many)]


# ---------------------------------------------------------------- items


@both_kinds
def test_items_arrive_in_order_and_then_it_ends(source: AgentProxy, kind: str) -> None:
    stream = getattr(source, kind)(200)
    assert list(stream) == list(range(200))
    assert list(stream) == []
    assert list(getattr(source, kind)(0)) == []


@both_kinds
def test_a_stream_is_an_asynchronous_iterator_too(source: AgentProxy, kind: str) -> None:
    async def read() -> list[int]:
        return [i async for i in getattr(source, kind)(200)]

    assert asyncio.run(read()) == list(range(200))


@pytest.mark.parametrize("method", ["listed", "listed_on_loop"])
def test_stream_func_sends_the_items_of_what_the_method_gives(source: AgentProxy, method: str) -> None:
    assert list(getattr(source, method)()) == [1, 2, 3]


@pytest.mark.parametrize("kind", ["gated", "gated_on_loop"])
def test_the_first_item_is_there_before_the_third_is_made(source: AgentProxy, kind: str) -> None:
    stream = getattr(source, kind)(2, 3)
    with within(1.0):
        assert first_items(stream, 2) == [0, 1]
    source.open_gate()
    assert list(stream) == [2, 3, 4]


@both_kinds
def test_the_producer_is_at_most_a_window_ahead_of_its_reader(source: AgentProxy, kind: str) -> None:
    with getattr(source, kind)(ENDLESS) as stream:
        for taken in range(1, 100):
            next(stream)
            assert source.made() <= taken + STREAM_WINDOW
        assert eventually(lambda: source.made() > 99, 1.0)


def test_many_streams_are_read_in_step_on_one_slot(client: RpcClient) -> None:
    streams = [client.create_agent(Source).count(100) for _ in range(20)]
    assert [sum(items) for items in zip(*streams, strict=True)] == [20 * i for i in range(100)]


def test_an_open_stream_has_its_agents_turn_and_no_more(client: RpcClient, source: AgentProxy) -> None:
    other = client.create_agent(Source)
    with source.count(ENDLESS) as stream:
        first_items(stream, 3)
        assert other.echo(1) == 1  # neither the slot
        assert sum(source.beside(100)) == 4950  # nor what runs beside the turn
        with pytest.raises(CallTimeout, match="behind 1 call"):
            source.echo(1, timeout=0.2)
    assert source.echo(1) == 1


def test_large_items_keep_to_the_window_too(server: RpcAgentServerLauncher, source: AgentProxy) -> None:
    size = 1 << 20
    before = memory_mib(server.pid)
    with source.blobs(200, size) as stream:
        next(stream)
        assert eventually(lambda: source.made() == STREAM_WINDOW, 2.0)
        assert memory_mib(server.pid) - before < 3 * STREAM_WINDOW  # they come here, and go on from here
        assert sum(len(blob) for blob in stream) == 199 * size


@both_kinds
def test_memory_is_flat_while_items_flow(server: RpcAgentServerLauncher, source: AgentProxy, kind: str) -> None:
    stream = getattr(source, kind)(20_000, timeout=60)
    first_items(stream, 1000)
    before = memory_mib(server.pid), memory_mib(os.getpid())
    assert sum(1 for _ in stream) == 19_000
    assert memory_mib(server.pid) - before[0] < FLAT_MIB
    assert memory_mib(os.getpid()) - before[1] < FLAT_MIB


def memory_mib(pid: int | None) -> float:
    return float(psutil.Process(pid).memory_info().rss / 2**20)


# ---------------------------------------------------------------- the end, early and otherwise


@both_kinds
@pytest.mark.parametrize("how", ["close", "with", "drop", "aclose", "break"])
def test_a_stream_that_is_left_runs_the_generators_finally(source: AgentProxy, kind: str, how: str) -> None:
    leave = {"close": _close, "with": _with, "drop": _drop, "aclose": _aclose, "break": _break}[how]
    leave(getattr(source, kind)(ENDLESS))
    with within(1.0):
        assert eventually(lambda: source.ended() == 1, 1.0)
    assert source.made() < 2 * STREAM_WINDOW
    assert source.echo("free") == "free"


def _close(stream: Stream[Any]) -> None:
    first_items(stream, 3)
    stream.close()
    stream.close()
    assert list(stream) == []


def _with(stream: Stream[Any]) -> None:
    with stream:
        first_items(stream, 3)


def _drop(stream: Stream[Any]) -> None:
    first_items(stream, 3)


def _aclose(stream: Stream[Any]) -> None:
    async def read() -> None:
        async with stream:
            await anext(stream)
        await stream.aclose()

    asyncio.run(read())


def _break(stream: Stream[Any]) -> None:
    async def read() -> None:
        async for item in stream:
            if item == 3:
                break

    asyncio.run(read())


@pytest.mark.parametrize("how", ["value", "result", "stream", "timeout"])
def test_an_error_beside_an_open_stream_does_not_keep_it_open(client: RpcClient, source: AgentProxy, how: str) -> None:
    """A traceback holds the frames that it went through, and those what was in them: until it is gone, no longer."""
    other: Any = client.create_agent(Source)

    def fail() -> None:
        stream = source.count(ENDLESS)
        next(stream)
        if how == "value":
            other.count_as_value()
        elif how == "result":
            other.count_as_value.aio().result()
        elif how == "stream":
            list(other.breaks(0))
        else:
            source.echo(1, timeout=0.05)

    gc.disable()
    try:
        with pytest.raises((TypeError, KeyError, CallTimeout)) as caught:
            fail()
        del caught
        assert source.echo("free", timeout=1.0) == "free"
    finally:
        gc.enable()


def by_for(source: AgentProxy) -> None:
    for _ in source.gated(3, ENDLESS):
        pass


def by_for_over_a_variable(source: AgentProxy) -> None:
    stream = source.gated(3, ENDLESS)
    for _ in stream:
        pass


def by_list(source: AgentProxy) -> None:
    list(source.gated_on_loop(3, ENDLESS))


@pytest.mark.parametrize("read", [by_for, by_for_over_a_variable, by_list])
def test_ctrl_c_in_a_reader_that_waits_ends_the_stream_while_the_traceback_is_kept(
    source: AgentProxy, read: Callable[[AgentProxy], None]
) -> None:
    """As an interactive Python keeps it: in `sys.last_traceback`, until the next error."""
    main = threading.get_ident()

    def ctrl_c() -> None:
        assert eventually(lambda: source.made() == 4, 10.0)
        signal.pthread_kill(main, signal.SIGINT)

    killer = threading.Thread(target=ctrl_c)
    killer.start()
    with pytest.raises(KeyboardInterrupt) as kept:
        read(source)
    killer.join()
    source.open_gate()  # the generator waits for it, not for its reader
    with within(1.0):
        assert source.echo("free") == "free"
    del kept


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_exception_in_the_body_of_a_loop_ends_the_stream_while_the_traceback_is_kept(
    source: AgentProxy, asynchronous: bool
) -> None:
    async def read_in_loop() -> None:
        async for item in source.count(ENDLESS):
            raise LookupError(item)

    def read() -> None:
        for item in source.count(ENDLESS):
            raise LookupError(item)

    with pytest.raises(LookupError) as kept:
        asyncio.run(read_in_loop()) if asynchronous else read()
    assert source.echo("free", timeout=1.0) == "free"
    del kept


def test_with_ends_a_stream_that_has_a_name_while_the_traceback_is_kept(source: AgentProxy) -> None:
    def read() -> None:
        with source.count(ENDLESS) as stream:
            for item in stream:
                raise LookupError(item)

    with pytest.raises(LookupError) as kept:
        read()
    assert source.echo("free", timeout=1.0) == "free"
    del kept


def test_an_item_that_cannot_be_read_ends_the_stream(source: AgentProxy) -> None:
    stream = source.unreadable(ENDLESS)
    with pytest.raises(SerializationError) as kept:
        next(stream)
    assert source.echo("free", timeout=1.0) == "free"
    assert list(stream) == []
    del kept


def test_closing_it_from_another_thread_wakes_its_reader(source: AgentProxy) -> None:
    stream = source.gated(1, 1)
    next(stream)
    closer = threading.Timer(0.05, stream.close)
    closer.start()
    with within(1.0):
        assert list(stream) == []
    closer.join()
    source.open_gate()


@pytest.mark.parametrize("kind", ["breaks", "breaks_on_loop"])
@pytest.mark.parametrize("after", [0, 1, STREAM_WINDOW, 40])
def test_an_exception_comes_at_its_place(source: AgentProxy, kind: str, after: int) -> None:
    stream = getattr(source, kind)(after)
    assert first_items(stream, after) == list(range(after))
    with pytest.raises(KeyError, match="midway") as caught:
        next(stream)
    assert isinstance(caught.value, AgentCallError)
    assert list(stream) == []


def test_an_item_that_cannot_travel_is_an_error_at_its_place(source: AgentProxy) -> None:
    stream = source.unsendable()
    assert next(stream) == 1
    with pytest.raises(SerializationError, match="lock"):
        next(stream)
    assert source.echo("free") == "free"


def test_what_is_wrong_with_the_call_comes_with_the_first_item(client: RpcClient, source: AgentProxy) -> None:
    with within(1.0), pytest.raises(TypeError, match="positional argument"):
        next(source.count())
    client.delete_agent(source.agent_id)
    with within(1.0), pytest.raises(UnknownAgent):
        next(source.count(3))


@both_kinds
def test_a_deleted_agents_stream_ends(client: RpcClient, source: AgentProxy, kind: str) -> None:
    stream = getattr(source, kind)(ENDLESS)
    first_items(stream, 3)
    client.delete_agent(source.agent_id)
    with within(1.0), pytest.raises(AgentDeleted):
        list(stream)


@both_kinds
def test_a_stream_ends_at_its_deadline(source: AgentProxy, kind: str) -> None:
    stream = getattr(source, kind).with_timeout(0.3)(ENDLESS)
    with within(1.3), pytest.raises(CallTimeout):
        list(stream)
    assert eventually(lambda: source.ended() == 1, 1.0)


def test_another_client_may_cancel_a_stream_by_its_task_id(server: RpcAgentServerLauncher, source: AgentProxy) -> None:
    stream = source.count(ENDLESS)
    next(stream)
    with client_of(server) as other:
        assert other.cancel(stream.task_id)
    with within(1.0), pytest.raises(CallCancelled):
        list(stream)


def test_a_host_that_dies_ends_its_streams() -> None:
    with client_on_host(Source) as client:
        stream: Any = client.create_agent(Source).count(ENDLESS)
        first_items(stream, 3)
        os.kill(client.get_server_info()["pid"], signal.SIGKILL)
        with within(1.0), pytest.raises(CallLost):
            list(stream)
        assert list(stream) == []


READ_AND_STAY = """
import json, os, sys, time, zmqagents
host, port, agent_id, kind = sys.argv[1:]
stream = getattr(zmqagents.RpcClient(host, int(port)).get_agent(agent_id), kind)(10**9)
print(json.dumps(next(stream)), flush=True)
time.sleep(60)
"""


INTERACTIVE = """
import code, sys, zmqagents
host, port, agent_id = sys.argv[1:]
sys.ps1 = sys.ps2 = ""
code.interact("", local={"source": zmqagents.RpcClient(host, int(port)).get_agent(agent_id)})
"""


@pytest.mark.parametrize(
    ("before", "over"), [("", "source.gated(3, 10**9)"), ("stream = source.gated(3, 10**9)", "stream")]
)
def test_ctrl_c_in_an_interactive_python_ends_the_stream_that_it_reads(
    server: RpcAgentServerLauncher, source: AgentProxy, before: str, over: str
) -> None:
    with started(INTERACTIVE, server.host, str(server.port), source.agent_id) as program:
        assert program.stdin is not None
        program.stdin.write(f"{before}\nfor item in {over}: print(item, flush=True)\n\n")
        program.stdin.flush()
        assert [told(program) for _ in range(3)] == [0, 1, 2]
        assert eventually(lambda: psutil.Process(program.pid).status() == psutil.STATUS_SLEEPING, 10.0)
        program.send_signal(signal.SIGINT)
        source.open_gate()
        assert source.echo("free", timeout=2.0) == "free"
        assert program.poll() is None


@both_kinds
def test_the_stream_of_a_client_that_was_killed_ends(
    server: RpcAgentServerLauncher, source: AgentProxy, kind: str
) -> None:
    with started(READ_AND_STAY, server.host, str(server.port), source.agent_id, kind) as program:
        assert told(program) == 0
        assert source.ended() == 0
        program.kill()
        assert eventually(lambda: source.ended() == 1, 15.0)  # after resume_s, 5 s: the client might have come back
    assert source.echo("free") == "free"


def test_a_reader_that_stands_still_disturbs_nobody(
    server: RpcAgentServerLauncher, client: RpcClient, source: AgentProxy
) -> None:
    other = client.create_agent(Source)
    with started(READ_AND_STAY, server.host, str(server.port), source.agent_id, "count") as program:
        assert told(program) == 0
        freeze(program.pid)
        with within(2.0):
            assert sum(other.count(2000)) == 1_999_000
        assert source.made() <= 1 + STREAM_WINDOW


def test_a_program_may_end_with_a_stream_open(server: RpcAgentServerLauncher, source: AgentProxy) -> None:
    source_code = READ_AND_STAY.replace("time.sleep(60)", "")
    assert output_of(source_code, server.host, str(server.port), source.agent_id, "count", timeout_s=10) == 0
    assert eventually(lambda: source.ended() == 1, 2.0)


# ---------------------------------------------------------------- agents that read


@pytest.mark.parametrize("how", ["total", "total_on_loop"])
def test_an_agent_reads_another_agents_stream_on_one_slot(reader: AgentProxy, source: AgentProxy, how: str) -> None:
    total = getattr(reader, how)(source, 500)
    assert (total if how == "total" else total.result()) == 124_750


@pytest.mark.parametrize("how", ["twice", "twice_on_loop"])
def test_a_stream_may_be_made_of_another(reader: AgentProxy, source: AgentProxy, how: str) -> None:
    assert sum(getattr(reader, how)(source, 500)) == 249_500


def test_a_method_may_give_the_stream_of_another_as_its_own(reader: AgentProxy, source: AgentProxy) -> None:
    assert sum(reader.passed_on(source, 500)) == 124_750


@pytest.mark.parametrize("how", ["twice", "twice_on_loop"])
def test_leaving_the_outer_stream_ends_the_inner_one(reader: AgentProxy, source: AgentProxy, how: str) -> None:
    with getattr(reader, how)(source, ENDLESS) as stream:
        assert first_items(stream, 20) == list(range(0, 40, 2))
    assert eventually(lambda: source.ended() == 1, 1.0)


def test_the_deadline_of_the_inner_stream_is_the_callers(reader: AgentProxy, source: AgentProxy) -> None:
    with within(1.5), pytest.raises(CallTimeout):
        reader.reads_for(source, ENDLESS, 60, timeout=0.3).result()
    assert eventually(lambda: source.ended() == 1, 1.0)


@pytest.mark.parametrize("how", ["of_itself", "of_itself_on_loop"])
def test_an_agent_that_reads_its_own_stream_is_a_deadlock(reader: AgentProxy, how: str) -> None:
    with within(1.0), pytest.raises(DeadlockError, match=f"{reader.agent_id}.*{reader.agent_id}"):
        getattr(reader, how)(reader).result()


def test_calling_the_agent_whose_stream_one_reads_is_a_deadlock_and_not_a_hang(
    reader: AgentProxy, source: AgentProxy
) -> None:
    with within(1.0), pytest.raises(DeadlockError, match=source.agent_id):
        reader.echoes(source, 10 * STREAM_WINDOW)
    assert source.echo("free") == "free"


# ---------------------------------------------------------------- what a stream is not


def test_a_stream_is_no_argument_and_no_value(client: RpcClient, source: AgentProxy) -> None:
    other = client.create_agent(Source)
    with source.count(3) as stream:
        with pytest.raises(SerializationError, match=r"args\[0\]: a stream belongs to its reader .*: send its items"):
            other.echo(stream)
        with pytest.raises(TypeError, match="cannot be sent"):
            pickle.dumps(stream)
    with pytest.raises(SerializationError, match="result: a stream belongs to its reader"):
        other.count_as_value(source)


def test_a_stream_is_no_result_to_be_fetched(client: RpcClient, source: AgentProxy) -> None:
    with source.count(ENDLESS) as stream:
        next(stream)
        with within(1.0), pytest.raises(LookupError, match="stream"):
            client.get_result(stream.task_id).result(CALL_TIMEOUT_S)


def test_reading_in_a_done_callback_is_refused(source: AgentProxy, client: RpcClient) -> None:
    seen: list[Any] = []
    done = threading.Event()

    def on_done(_: Any) -> None:
        try:
            seen.append(list(other.count(3)))
        except BlockingCallError as exc:
            seen.append(type(exc))
        done.set()

    other = client.create_agent(Source)
    with source.count(ENDLESS):  # has the turn, so the callback is there before the result is
        source.echo.aio(1).add_done_callback(on_done)
    with within(2.0):
        done.wait(CALL_TIMEOUT_S)
    assert seen == [BlockingCallError]
    assert other.echo(1) == 1


# ---------------------------------------------------------------- in an event loop


def test_a_read_that_was_given_up_loses_no_item(source: AgentProxy) -> None:
    async def read() -> list[int]:
        stream = source.gated(1, 4)
        assert await anext(stream) == 0
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(stream), 0.05)
        source.open_gate()
        return [i async for i in stream]

    assert asyncio.run(read()) == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["gated", "gated_on_loop"])
def test_a_task_that_is_cancelled_ends_its_stream_while_its_exception_is_kept(source: AgentProxy, kind: str) -> None:
    async def read() -> None:
        async for _ in getattr(source, kind)(3, ENDLESS):
            pass

    async def cancel() -> None:
        task = asyncio.create_task(read())
        while await source.made.aio() < 4:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])
        source.open_gate()
        with within(1.0):
            assert await source.echo.aio("free") == "free"

    asyncio.run(cancel())


def test_two_tasks_that_read_one_stream_share_its_items(source: AgentProxy) -> None:
    async def read() -> list[int]:
        stream = source.gated_on_loop(1, 40)

        async def rest() -> list[int]:
            return [i async for i in stream]

        tasks = [asyncio.create_task(rest()) for _ in range(3)]
        await asyncio.sleep(0.02)  # all three wait for an item now
        source.open_gate()
        return sorted(i for part in await asyncio.gather(*tasks) for i in part)

    assert asyncio.run(read()) == list(range(41))


def test_one_loop_reads_many_streams_at_once(client: RpcClient) -> None:
    streams: Any = [client.create_agent(Source).count_on_loop(100) for _ in range(20)]

    async def total(stream: Stream[Any]) -> int:
        return sum([i async for i in stream])

    async def read() -> list[int]:
        return await asyncio.gather(*map(total, streams))

    assert asyncio.run(read()) == [4950] * 20


def test_a_reader_cannot_grant_more_than_a_window_at_a_time() -> None:
    world = World()
    world.agent("a")
    nobody = cast(Router, object())  # whatever were told to it would fail
    outlet = StreamSender(world.running("a", flags=Flag.STREAM).t, nobody, lambda ticket: None)
    outlet.grant(MAX_TIME_MS)
    for _ in range(STREAM_WINDOW):
        assert outlet.acquire()
    assert not outlet.acquire()
    outlet.grant(1)
    assert outlet.acquire()
    assert not outlet.acquire()


def test_an_item_counts_before_its_reader_can_have_it() -> None:
    class Reader:
        def chunk(self, ticket: Any, number: int, body: Any) -> None:
            seen.append((number, outlet.items))

    seen: list[tuple[int, int]] = []
    world = World()
    world.agent("a")
    running = world.running("a", flags=Flag.STREAM).t
    outlet = StreamSender(running, cast(Router, Reader()), lambda ticket: None)
    for value in range(2):
        outlet.send(encode(value))
    assert seen == [(0, 1), (1, 2)]


def test_no_python_runs_between_a_lock_and_its_block_where_ctrl_c_could_leave_it_locked() -> None:
    called: list[str] = []
    condition = Condition()
    sys.setprofile(lambda frame, event, arg: called.append(frame.f_code.co_name) if event == "call" else None)
    try:
        with condition:
            pass
    finally:
        sys.setprofile(None)
    assert called == []


def test_that_lock_wakes_those_who_wait() -> None:
    condition = Condition()
    waiting: list[int] = []
    woken: list[bool] = []

    def wait() -> None:
        with condition:
            waiting.append(threading.get_ident())
            woken.append(condition.wait(10))  # from here on another thread may have the lock

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert eventually(lambda: len(waiting) == 3, 10)
    with condition:
        assert not condition.wait(0.01)
        condition.notify_all()
    for thread in threads:
        thread.join()
    assert woken == [True] * 3
