"""The hooks at the beginning and at the end of an agent's life, on real hosts.

Each agent writes what happens to it into a file, whose lines the tests read.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from actors import CALL_TIMEOUT_S, client_of, client_on_host, host, within
from hosts import eventually
from zmqagents import (
    AgentBase,
    AsyncRpcClient,
    RpcClient,
    agent,
    async_func,
    concurrent,
    current_call,
)
from zmqagents.errors import (
    AgentDeleted,
    CallCancelled,
    CallTimeout,
    ConfigError,
    DeadlockError,
    UnknownAgent,
    UnknownMethod,
)

LONG_S = 60.0  # a hook that nobody ends takes so long
SOON_S = 5.0


class Diarist(AgentBase):
    """Writes what happens to it into a file."""

    def __init__(self, diary: str, *, fails: str = "", hangs: str = "") -> None:
        super().__init__()
        self.diary = diary
        self.fails = fails
        self.hangs = hangs
        self.note("init")

    def note(self, what: str) -> None:
        with open(self.diary, "a") as file:
            file.write(f"{what}\n")

    def pass_by(self, what: str) -> None:
        """Note ``what``, and do what the test has planned for it."""
        self.note(what)
        if self.hangs == what:
            time.sleep(LONG_S)
        if self.fails == what:
            raise KeyError(what)

    async def come_by(self, what: str) -> None:
        """The same on the event loop."""
        self.note(what)
        if self.hangs == what:
            try:
                await asyncio.sleep(LONG_S)
            except asyncio.CancelledError:
                self.note(f"{what} cancelled")
                raise
        if self.fails == what:
            raise KeyError(what)

    def work(self, seconds: float = 0.0) -> str:
        self.note("work")
        time.sleep(seconds)
        self.note("worked")
        return "done"

    @async_func
    def later(self, seconds: float = 0.0) -> str:
        return self.work(seconds)


class Plainly(Diarist):
    """Its hooks are not async."""

    def on_start(self) -> None:
        self.pass_by("start")

    def on_stop(self) -> None:
        self.pass_by("stop")


class Softly(Diarist):
    """Its hooks are async."""

    async def on_start(self) -> None:
        await self.come_by("start")

    async def on_stop(self) -> None:
        await self.come_by("stop")


class Within(Softly):
    """All hooks that there are, async."""

    async def __aenter__(self) -> Within:
        await self.come_by("enter")
        return self

    async def __aexit__(self, kind: Any, exc: Any, tb: Any) -> None:
        await self.come_by(f"exit {kind.__name__ if kind is not None else None}")


class Mixed(Within):
    """The same, but what is not of a context manager is not async."""

    def on_start(self) -> None:  # type: ignore[override]
        self.pass_by("start")

    def on_stop(self) -> None:  # type: ignore[override]
        self.pass_by("stop")


class Grouped(Diarist):
    """Has a task group of anyio open for its whole life: it must be left in the task that has entered it."""

    async def __aenter__(self) -> Grouped:
        self.group = anyio.create_task_group()
        self.broken = asyncio.Event()
        self.loop, self.task = asyncio.get_running_loop(), asyncio.current_task()
        await self.group.__aenter__()
        self.group.start_soon(self.watch)
        return self

    async def watch(self) -> None:
        try:
            await self.broken.wait()
        finally:
            self.note(f"watched in {current_call()}")
        raise KeyError("broken")

    async def __aexit__(self, kind: Any, exc: Any, tb: Any) -> bool | None:
        self.note(f"exit {kind.__name__ if kind is not None else None} {asyncio.current_task() is self.task}")
        self.group.cancel_scope.cancel()
        return await self.group.__aexit__(kind, exc, tb)

    def break_down(self) -> None:
        self.loop.call_soon_threadsafe(self.broken.set)


class Stacked(Diarist):
    """The same with an exit stack between ``on_start`` and ``on_stop``."""

    async def on_start(self) -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.connected())
            self.stack = stack.pop_all()

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep_forever)
                self.note("connected")
                yield
                self.note("disconnected")
                scope.cancel()

    async def on_stop(self) -> None:
        await self.stack.aclose()


class Knowing(Diarist):
    """Notes what its hooks know of the call in which they run."""

    def seen(self) -> str:
        call = current_call()
        assert call is not None
        left = call.remaining()
        told = "no limit" if left is None else f"{round(left, -1 if left > 5 else 0):g}"
        return f"{call.agent} {call.method} {told}"

    async def __aenter__(self) -> Knowing:
        self.note(f"enter {self.seen()}")
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.note(f"exit {self.seen()}")

    def on_start(self) -> None:
        self.note(f"start {self.seen()}")

    def on_stop(self) -> None:
        self.note(f"stop {self.seen()}")


class Slow(Diarist):
    """Starts in spite of everything, and takes its time."""

    def on_start(self) -> None:
        for _ in range(50):
            time.sleep(0.02)
        self.note("started")

    def on_stop(self) -> None:
        self.note("stop")


class Connecting(AgentBase):
    """Takes 0.3 s to start, and waits for it on the event loop."""

    async def on_start(self) -> None:
        await asyncio.sleep(0.3)

    def ping(self) -> str:
        return "pong"


class Calling(Diarist):
    """Calls agents from its hooks."""

    def __init__(self, diary: str, other: Any = None, way: str = "") -> None:
        super().__init__(diary)
        self.other = other
        self.way = way

    async def on_start(self) -> None:
        if self.way == "come back":
            await self.other.come_back(self.agent_id)
        elif self.other is not None:
            self.note(f"start {await self.other.soon()}")

    def on_stop(self) -> None:
        if self.other is not None:
            self.note(f"stop {self.other.work()}")

    def host(self) -> RpcClient:
        call = current_call()
        assert call is not None
        client: RpcClient = call.client()
        return client

    async def soon(self) -> str:
        return "soon"

    @async_func
    def come_back(self, agent_id: str) -> str:
        answer: str = self.host().get_agent(agent_id).work()
        return answer

    @async_func
    def delete(self, after_s: float, agent_id: str) -> None:
        time.sleep(after_s)
        self.host().delete_agent(agent_id)
        self.note("deleted")

    async def delete_async(self, _: float, agent_id: str) -> None:
        """Hand the deletion to a thread, which is none of this call."""
        await asyncio.to_thread(self.host().delete_agent, agent_id)

    @async_func
    def ask(self, other: Any, after_s: float) -> str:
        self.note("ask")
        time.sleep(after_s)
        answer: str = other.work()
        return answer


class Twice(Plainly, max_concurrency=2):
    """Runs two calls at a time."""

    @concurrent
    @async_func
    def beside(self, seconds: float) -> None:
        self.work(seconds)


@agent
class Marked:
    """No `AgentBase`, and an agent class all the same."""

    def __init__(self, diary: str) -> None:
        self.diary = diary

    def note(self, what: str) -> None:
        with open(self.diary, "a") as file:
            file.write(f"{what}\n")

    def on_start(self) -> None:
        self.note("start")

    async def on_stop(self) -> None:
        self.note("stop")


class Below(Marked):
    """A subclass, without a mark of its own."""


class Brief(AgentBase):
    """Has a last hook that takes no time."""

    def on_stop(self) -> None:
        pass


class Foreign:
    """Any class, whose methods happen to be called as hooks are."""

    def on_start(self, what: str = "mine") -> str:
        return what

    def save_state(self) -> str:
        return "saved"


ALL: list[type[Any]] = [Plainly, Softly, Within, Mixed]
MORE: list[type[Any]] = [Brief, Grouped, Stacked, Knowing, Slow, Connecting, Calling, Twice, Marked, Below, Foreign]


@pytest.fixture(scope="module")
def client() -> Iterator[RpcClient]:
    with client_on_host(*ALL, *MORE, capacity=4, grace_s=1.0) as client:
        client.is_alive()  # connected: the connection is no test's own
        yield client


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    return tmp_path / "diary"


def lines(diary: Path) -> list[str]:
    return diary.read_text().splitlines()


def comes(diary: Path, line: str) -> bool:
    """Whether ``line`` is in the diary, soon."""
    return eventually(lambda: line in lines(diary), SOON_S)


BEGIN = {Plainly: ["start"], Softly: ["start"], Within: ["enter", "start"], Mixed: ["enter", "start"]}
END = {Plainly: ["stop"], Softly: ["stop"], Within: ["stop", "exit None"], Mixed: ["stop", "exit None"]}


@pytest.mark.parametrize("cls", ALL)
def test_hooks_run_before_the_first_call_and_after_the_last(client: RpcClient, diary: Path, cls: type[Any]) -> None:
    one = client.create_agent(cls, str(diary))
    assert lines(diary) == ["init", *BEGIN[cls]], "create_agent returns when they have run"
    one.work()
    assert client.delete_agent(one.agent_id)
    assert lines(diary) == ["init", *BEGIN[cls], "work", "worked", *END[cls]], "and so does delete_agent"


@pytest.mark.parametrize("cls", ALL)
def test_an_agent_that_cannot_start_is_not_made(client: RpcClient, diary: Path, cls: type[Any]) -> None:
    with pytest.raises(KeyError, match="start"):
        client.create_agent(cls, str(diary), fails="start", agent_id="ann")
    entered = "enter" in BEGIN[cls]
    assert lines(diary) == ["init", *BEGIN[cls], *(["exit KeyError"] if entered else [])], "on_stop is not called"
    with pytest.raises(UnknownAgent):
        client.get_agent("ann")


@pytest.mark.parametrize("cls", [Within, Mixed])
def test_what_could_not_be_entered_is_not_left(client: RpcClient, diary: Path, cls: type[Any]) -> None:
    with pytest.raises(KeyError, match="enter"):
        client.create_agent(cls, str(diary), fails="enter")
    assert lines(diary) == ["init", "enter"]


@pytest.mark.parametrize("cls", ALL)
def test_the_error_of_a_last_hook_is_that_of_the_deletion(client: RpcClient, diary: Path, cls: type[Any]) -> None:
    one = client.create_agent(cls, str(diary), fails="stop")
    with pytest.raises(KeyError, match="stop"):
        client.delete_agent(one.agent_id)
    entered = "enter" in BEGIN[cls]
    assert lines(diary) == ["init", *BEGIN[cls], "stop", *(["exit KeyError"] if entered else [])]
    with pytest.raises(UnknownAgent):
        client.get_agent(one.agent_id)


# ---------------------------------------------------------------- one task


def test_what_is_entered_in_a_task_is_left_in_it(client: RpcClient, diary: Path) -> None:
    one = client.create_agent(Grouped, str(diary))
    one.work()
    assert client.delete_agent(one.agent_id)
    assert lines(diary) == ["init", "work", "worked", "exit None True", "watched in None"]


def test_a_stack_of_contexts_may_be_opened_by_one_hook_and_closed_by_another(client: RpcClient, diary: Path) -> None:
    one = client.create_agent(Stacked, str(diary))
    assert client.delete_agent(one.agent_id)
    assert lines(diary) == ["init", "connected", "disconnected"]


def test_what_breaks_down_in_an_agents_life_is_left_at_once(diary: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with client_on_host(Grouped) as client:
        one = client.create_agent(Grouped, str(diary), agent_id="ann")
        one.break_down()
        assert comes(diary, "exit CancelledError True")
        assert one.work() == "done", "the agent is there as before: what its methods miss they say themselves"
        assert client.delete_agent("ann")
    assert [line for line in lines(diary) if line.startswith("exit")] == ["exit CancelledError True"]
    assert "ann has ended by itself: " in capfd.readouterr().err


def test_an_agent_that_waits_for_its_connection_holds_no_worker(diary: Path) -> None:
    with client_on_host(Connecting, capacity=1) as client:
        made: list[Any] = []
        makers = [threading.Thread(target=lambda: made.append(client.create_agent(Connecting))) for _ in range(10)]
        with within(2.5):
            for maker in makers:
                maker.start()
            for maker in makers:
                maker.join()
        assert [one.ping() for one in made] == ["pong"] * 10


# ---------------------------------------------------------------- the call in which a hook runs


def test_a_hook_knows_its_call(client: RpcClient, diary: Path) -> None:
    client.create_agent(Knowing, str(diary), agent_id="ann")
    client.delete_agent("ann")
    begin, end = f"ann create_agent {round(CALL_TIMEOUT_S)}", "ann on_stop 1"
    assert lines(diary) == ["init", f"enter {begin}", f"start {begin}", f"stop {end}", f"exit {end}"]


@pytest.mark.parametrize("cls", [Softly, Within])
def test_a_hook_that_hangs_ends_at_the_deadline_of_the_creation(client: RpcClient, diary: Path, cls: type[Any]) -> None:
    host, _, port = client.address.rpartition(":")
    with RpcClient(host, int(port), timeout=0.5) as hasty, within(SOON_S), pytest.raises(CallTimeout):
        hasty.create_agent(cls, str(diary), hangs="start")
    assert comes(diary, "start cancelled")
    assert cls is not Within or comes(diary, "exit CancelledError")
    assert "stop" not in lines(diary)


def test_a_creation_that_is_cancelled_ends_the_hook_that_runs(client: RpcClient, diary: Path) -> None:
    host, _, port = client.address.rpartition(":")

    async def main() -> None:
        async with AsyncRpcClient(host, int(port)) as mine:
            making = asyncio.ensure_future(mine.create_agent(Softly, str(diary), hangs="start", agent_id="bob"))
            while not diary.exists() or "start" not in lines(diary):
                await asyncio.sleep(0.01)
            making.cancel()
            with pytest.raises(asyncio.CancelledError):
                await making

    asyncio.run(asyncio.wait_for(main(), CALL_TIMEOUT_S))
    assert comes(diary, "start cancelled")
    assert eventually(lambda: all(row["agent_id"] != "bob" for row in client.get_agent_list()), SOON_S)


def test_what_has_started_too_late_is_stopped_again(client: RpcClient, diary: Path) -> None:
    host, _, port = client.address.rpartition(":")
    with RpcClient(host, int(port), timeout=0.2) as hasty, pytest.raises(CallTimeout):
        hasty.create_agent(Slow, str(diary))
    assert comes(diary, "stop")
    assert lines(diary) == ["init", "started", "stop"]


def test_hooks_may_call_other_agents(client: RpcClient, diary: Path) -> None:
    other = client.create_agent(Calling, str(diary))
    client.create_agent(Calling, str(diary), other, agent_id="ann")
    client.delete_agent("ann")
    client.delete_agent(other.agent_id)
    assert lines(diary) == ["init", "init", "start soon", "work", "worked", "stop done"]


def test_a_hook_that_waits_for_its_own_agent_is_a_deadlock(client: RpcClient, diary: Path) -> None:
    other = client.create_agent(Calling, str(diary))
    with within(SOON_S), pytest.raises(DeadlockError):
        client.create_agent(Calling, str(diary), other, "come back")
    client.delete_agent(other.agent_id)


# ---------------------------------------------------------------- deletion


@pytest.mark.parametrize("cls", ALL)
def test_the_last_hook_waits_for_the_turn_and_queued_calls_do_not_run(
    client: RpcClient, diary: Path, cls: type[Any]
) -> None:
    one = client.create_agent(cls, str(diary))
    running, queued = one.later(0.5), one.later()
    assert comes(diary, "work")
    client.delete_agent(one.agent_id)
    assert running.result() == "done"
    with pytest.raises(AgentDeleted):
        queued.result()
    assert lines(diary) == ["init", *BEGIN[cls], "work", "worked", *END[cls]]


def test_the_last_hook_waits_for_all_that_run_beside_each_other(client: RpcClient, diary: Path) -> None:
    one = client.create_agent(Twice, str(diary))
    running: list[Any] = [one.later(0.4), one.later(0.2), one.beside(0.6)]
    assert eventually(lambda: lines(diary).count("work") == 3, SOON_S)
    client.delete_agent(one.agent_id)
    for each in running:
        each.result()
    assert lines(diary)[-2:] == ["worked", "stop"]
    assert lines(diary).count("worked") == 3


def test_an_agent_that_is_deleted_while_it_is_made_ends_when_it_has_begun(client: RpcClient, diary: Path) -> None:
    maker = threading.Thread(target=lambda: client.create_agent(Slow, str(diary), agent_id="slow"))
    maker.start()
    assert eventually(lambda: any(row["agent_id"] == "slow" for row in client.get_agent_list()), SOON_S)
    assert client.delete_agent("slow")
    maker.join()
    assert lines(diary) == ["init", "started", "stop"]


def test_two_deletions_of_one_agent_wait_for_one_end(client: RpcClient, diary: Path) -> None:
    one = client.create_agent(Plainly, str(diary))
    running = one.later(0.5)
    assert comes(diary, "work")
    with deleting(client, one.agent_id) as first, deleting(client, one.agent_id) as second:
        said = [first.result(), second.result()]
    assert (said, running.result(), lines(diary).count("stop")) == ([True, True], "done", 1)


def test_an_agent_may_delete_itself_and_ends_after_its_call(client: RpcClient, diary: Path) -> None:
    for method in ("delete", "delete_async"):
        other = client.create_agent(Calling, str(diary))
        one = client.create_agent(Calling, str(diary), other, agent_id="ann")
        with within(SOON_S):
            getattr(one, method)(0.0, "ann").result()
        assert comes(diary, "stop done"), method
        diary.unlink()


def test_a_call_of_an_agent_that_waits_for_its_deletion_is_a_deadlock(client: RpcClient, diary: Path) -> None:
    """``ann`` waits for bob's end, and so for bob's call, which now waits for ``ann``."""
    ann = client.create_agent(Calling, str(diary), agent_id="ann")
    bob = client.create_agent(Calling, str(diary), agent_id="bob")
    asking = bob.ask(ann, 0.5)
    assert comes(diary, "ask")
    with within(SOON_S):
        ann.delete(0.0, "bob").result()
        assert isinstance(asking.exception(), DeadlockError)
    assert lines(diary)[-1] == "deleted"
    client.delete_agent("ann")


def test_a_deletion_that_waits_for_itself_is_a_deadlock(client: RpcClient, diary: Path) -> None:
    """Bob's call waits for ``ann``, who is about to wait for bob's end. The agent is deleted in any case."""
    ann = client.create_agent(Calling, str(diary), agent_id="ann")
    bob = client.create_agent(Calling, str(diary), agent_id="bob")
    deleting = ann.delete(0.5, "bob")
    asking = bob.ask(ann, 0.0)
    with within(SOON_S):
        assert isinstance(deleting.exception(), DeadlockError)
        assert asking.result() == "done"
    with pytest.raises(UnknownAgent):
        client.get_agent("bob")
    client.delete_agent("ann")


@pytest.mark.parametrize("cls", [Softly, Within])
def test_a_last_hook_that_hangs_ends_at_the_grace(client: RpcClient, diary: Path, cls: type[Any]) -> None:
    one = client.create_agent(cls, str(diary), hangs="stop")
    with within(SOON_S), pytest.raises(CallTimeout, match=r"\.on_stop did not end within 1 s"):
        client.delete_agent(one.agent_id)
    assert "stop cancelled" in lines(diary)
    assert cls is not Within or lines(diary)[-1] == "exit CancelledError"


@contextmanager
def deleting(client: RpcClient, agent_id: str) -> Iterator[Future[bool]]:
    """The block runs while another thread deletes an agent."""
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(client.delete_agent, agent_id)


def test_an_end_that_takes_long_is_among_the_calls_of_the_host(client: RpcClient, diary: Path) -> None:
    client.create_agent(Softly, str(diary), hangs="stop", agent_id="ann")
    with deleting(client, "ann") as deletion:
        assert comes(diary, "stop")
        (row,) = [row for row in client.get_call_list() if row["agent"] == "ann"]
        assert (row["method"], row["caller"], row["state"]) == ("on_stop", "the host", "running")
        assert client.cancel(row["task_id"]), "who deletes it need not wait for it"
        assert isinstance(deletion.exception(), CallCancelled)
    assert comes(diary, "stop cancelled")


def test_an_end_that_is_cancelled_before_it_begins_leaves_nothing_behind(client: RpcClient, diary: Path) -> None:
    one = client.create_agent(Within, str(diary), agent_id="ann")
    running = one.later(0.5)
    assert comes(diary, "work")

    def ends() -> list[str]:
        return [row["task_id"] for row in client.get_call_list() if row["caller"] == "the host"]

    with deleting(client, "ann") as deletion:
        assert eventually(lambda: len(ends()) == 1, SOON_S)
        assert client.cancel(ends()[0])
        assert isinstance(deletion.exception(), CallCancelled)
    assert running.result() == "done"
    assert comes(diary, "exit CancelledError"), "its task ends with the agent, as a task that is cancelled does"


def test_all_agents_end_when_all_are_deleted_and_an_error_is_a_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with client_on_host(*ALL) as client:
        for number, cls in enumerate(ALL * 2):
            client.create_agent(
                cls, str(tmp_path / str(number)), fails="stop" if number == 1 else "", agent_id=f"a{number}"
            )
        assert client.delete_all_agent()
        for number, cls in enumerate(ALL * 2):
            assert lines(tmp_path / str(number))[1:] == BEGIN[cls] + END[cls]
        assert client.get_agent_list() == []
        assert client.is_alive()
    assert "a1.on_stop failed: KeyError: 'stop'" in capfd.readouterr().err


# ---------------------------------------------------------------- the end of the host


@pytest.mark.parametrize("cls", [*ALL, Grouped])
def test_agents_end_when_their_host_is_stopped(tmp_path: Path, cls: type[Any]) -> None:
    diaries = [tmp_path / str(number) for number in range(10)]
    with host(cls, grace_s=10.0, capacity=2) as launcher, client_of(launcher) as client:
        agents = [client.create_agent(cls, str(diary)) for diary in diaries]
        running = agents[0].later(0.3)
        assert comes(diaries[0], "work")
        with within(SOON_S):
            launcher.shutdown()
        assert running.result() == "done"
    last = END.get(cls, ["exit None True", "watched in None"])
    assert [lines(diary)[-len(last) :] for diary in diaries] == [last] * 10
    assert lines(diaries[0])[-len(last) - 1] == "worked", "the call first, then the hook"


@pytest.mark.parametrize("cls", ALL)
def test_a_hook_that_hangs_does_not_keep_the_host(
    tmp_path: Path, cls: type[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    with host(cls, grace_s=0.5) as launcher, client_of(launcher) as client:
        client.create_agent(cls, str(tmp_path / "hangs"), hangs="stop")
        client.create_agent(cls, str(tmp_path / "ends"))
        with within(0.5 + 2 + 1):  # the last one: for a busy machine
            launcher.shutdown()
    assert lines(tmp_path / "ends")[-1] == END[cls][-1]
    assert "stop" in lines(tmp_path / "hangs")
    said = capfd.readouterr().err
    assert "the stop has cut off the hooks of 1 agents" in said or "on_stop failed: CallTimeout" in said


def test_agents_end_although_a_call_of_another_one_takes_all_the_grace(tmp_path: Path) -> None:
    with host(Plainly, Softly, grace_s=0.3) as launcher, client_of(launcher) as client:
        busy = client.create_agent(Plainly, str(tmp_path / "busy"))
        client.create_agent(Plainly, str(tmp_path / "plainly"))
        client.create_agent(Softly, str(tmp_path / "softly"))
        busy.later(LONG_S)
        assert comes(tmp_path / "busy", "work")
        with within(0.3 + 2 + 1):
            launcher.shutdown()
    assert lines(tmp_path / "plainly")[-1] == lines(tmp_path / "softly")[-1] == "stop"
    assert "stop" not in lines(tmp_path / "busy"), "its turn is not free"


# ---------------------------------------------------------------- which methods are hooks


def test_a_hundred_agents_whose_last_hook_is_short_all_end(client: RpcClient, diary: Path) -> None:
    """Short methods of short arguments run in the router thread, which a hook without any must not do."""
    for number in range(100):
        one = client.create_agent(Brief)
        assert client.delete_agent(one.agent_id), f"the {number}th"


def test_hooks_are_not_for_callers(client: RpcClient, diary: Path) -> None:
    for cls in (Plainly, Marked, Below):
        one: Any = client.create_agent(cls, str(diary))
        assert not {"on_start", "on_stop", "__aenter__"} & set(dir(one))
        for name in ("on_start", "on_stop"):
            with pytest.raises(UnknownMethod, match=name):
                client.get_agent(one.agent_id).__getattr__(name)
        assert client.delete_agent(one.agent_id)
        assert lines(diary)[-2:] == ["start", "stop"]


def test_in_any_other_class_they_are_methods_like_all_others(client: RpcClient) -> None:
    one: Any = client.create_agent(Foreign)
    assert (one.on_start(), one.on_start("yours"), one.save_state()) == ("mine", "yours", "saved")
    client.delete_agent(one.agent_id)


def test_a_hook_that_the_host_cannot_call_is_an_error_of_the_class() -> None:
    class Wanting(AgentBase):
        """Its hook wants more than it gets."""

        def on_start(self, config: str) -> None: ...

    text = r"Wanting.on_start is a hook, which the host calls without arguments"
    with client_on_host(Wanting) as client, pytest.raises(ConfigError, match=text):
        client.create_agent(Wanting)
