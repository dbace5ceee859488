"""Agents on a host: how they come and go, what they may raise and what they may be."""

from __future__ import annotations

import asyncio
import builtins
import concurrent.futures
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from actors import CLASSES, Desk, Fragile, Latch, Node, client_on_host, within
from scale import LATE_S
from zmqagents import (
    AgentBase,
    AgentCallError,
    AgentDeleted,
    AgentExists,
    AgentProxy,
    CallTimeout,
    ConfigError,
    DeadlockError,
    HostBusy,
    RpcClient,
    SerializationError,
    UnknownAgent,
    UnknownClass,
    UnknownMethod,
    agent,
    async_func,
    errors,
    register_exception,
)
from zmqagents.execution.classes import ClassTable

pytestmark = pytest.mark.timeout(60)
ROUND_TRIP_S = 0.5 + LATE_S


class Teapot(Exception):
    """Known to the caller by `register_exception`."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text, code)
        self.code = code


class NoArguments(Exception):
    def __init__(self) -> None:
        super().__init__("fixed text")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise SystemExit("from __str__")

    __repr__ = __str__


class NoArgs(Exception):
    @property
    def args(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no args")


class OddFields(Exception):
    """Properties with the names of fields that errors of ours have."""

    @property
    def path(self) -> str:
        raise RuntimeError("no path")

    size = limit = chain = retry_after = path


class Holding(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()
        self.args = (text, self.lock)


class OddModule(Exception):
    __module__ = 5  # type: ignore[assignment]


class OddDoc(Exception):
    """Its class attributes are not what anyone expects."""

    __notes__ = 7
    __cause__ = "text"  # type: ignore[assignment]


class Raiser(AgentBase):
    """Raises whatever it is told to."""

    def builtin(self, name: str, *args: Any) -> None:
        import builtins

        raise getattr(builtins, name)(*args)

    @async_func
    def builtin_later(self, name: str, *args: Any) -> None:
        self.builtin(name, *args)

    async def builtin_on_loop(self, name: str, *args: Any) -> None:
        self.builtin(name, *args)

    def own(self, name: str) -> None:
        made = {"Teapot": lambda: Teapot("short and stout", 418), "Holding": lambda: Holding("holding")}
        raise made.get(name, globals()[name])()

    def group(self) -> None:
        raise builtins.ExceptionGroup("both", [ValueError("a"), KeyError("b")])  # type: ignore[attr-defined]  # from 3.11

    def circle(self) -> None:
        one, two = ValueError("one"), ValueError("two")
        one.__cause__, two.__cause__ = two, one
        raise one

    def huge(self, size: int) -> None:
        raise ValueError("x" * size)

    def deep(self) -> None:
        error: Any = ValueError("end")
        for _ in range(100):
            error = ValueError(error)
        raise error

    def caused(self) -> None:
        try:
            dict[str, int]()["missing"]
        except KeyError as exc:
            raise RuntimeError("because") from exc

    def recursion(self) -> int:
        return 1 + self.recursion()

    def open_missing(self) -> None:
        os.stat("/no/such/file")

    def decode_badly(self) -> None:
        b"\xff".decode("utf-8")

    def surrogate(self) -> None:
        raise ValueError("lone \udc80 surrogate")

    def cancelled(self) -> None:
        raise asyncio.CancelledError

    def fine(self) -> str:
        return "fine"


class Misfit(AgentBase):
    """Public names that are no methods."""

    constant = 7
    helper = str.upper  # a function of str: callable, though not written here

    def __init__(self) -> None:
        super().__init__()
        self.function = lambda: 1
        self.state = type("State", (), {"context": ["remembered"]})()
        self._zero = 0

    @property
    def zero(self) -> float:
        return 1 / self._zero

    class Inner:
        pass


@agent(max_concurrency=2)
class Plain:
    """An agent without a base class."""

    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.memory = None

    def times(self, x: int) -> int:
        return self.factor * x


class Busy(Latch, on_busy="reject"):
    """A call that would have to queue is refused."""


class Again(Node, reentrant=True):
    """Its own chain may come back to it."""


@pytest.fixture(scope="module")
def client() -> Iterator[RpcClient]:
    with client_on_host(*CLASSES, Raiser, Misfit, Plain, Busy, Again, capacity=8) as client:
        client.is_alive()
        yield client


@pytest.fixture
def raiser(client: RpcClient) -> AgentProxy:
    proxy: Any = client.create_agent(Raiser)
    return proxy


# ---------------------------------------------------------------- errors come back whole


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("ValueError", ("text",)),
        ("KeyError", ("key",)),
        ("ZeroDivisionError", ()),
        ("OSError", (2, "text", "/f")),
        ("TimeoutError", ("slow",)),
        ("LookupError", (1, [2], {"three": 4})),
        ("AssertionError", ()),
        ("NotImplementedError", ("later",)),
        ("UnicodeDecodeError", ("utf-8", b"x", 0, 1, "bad")),
        ("ConnectionResetError", (104, "reset")),
        ("RecursionError", ()),
        ("MemoryError", ()),
    ],
)
@pytest.mark.parametrize("method", ["builtin", "builtin_later", "builtin_on_loop"])
def test_an_exception_of_a_builtin_type_is_of_both_types(
    raiser: AgentProxy, method: str, name: str, args: tuple[Any, ...]
) -> None:
    import builtins

    original = getattr(builtins, name)(*args)
    with pytest.raises(type(original)) as caught:
        getattr(raiser, method)(name, *args).result()
    error = caught.value
    assert isinstance(error, AgentCallError)
    assert error.args == original.args
    assert str(original) in str(error)
    kind = type(original).__name__  # OSError makes a subclass of itself by its number
    assert error.type_name == f"builtins:{kind}"
    assert kind in error.remote_traceback
    assert (error.agent, error.method) == (raiser.agent_id, method)


def test_an_os_error_keeps_its_number_and_its_file(raiser: AgentProxy) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        raiser.open_missing()
    assert (caught.value.errno, caught.value.filename) == (2, "/no/such/file")


def test_a_unicode_error_keeps_its_place(raiser: AgentProxy) -> None:
    with pytest.raises(UnicodeDecodeError) as caught:
        raiser.decode_badly()
    assert (caught.value.object, caught.value.start) == (b"\xff", 0)


@pytest.mark.parametrize(
    "name", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "StopIteration", "StopAsyncIteration"]
)
@pytest.mark.parametrize("method", ["builtin", "builtin_later", "builtin_on_loop"])
def test_what_would_end_a_thread_or_an_iterator_is_a_plain_agent_error(
    raiser: AgentProxy, name: str, method: str
) -> None:
    with pytest.raises((AgentCallError, RuntimeError)) as caught:  # Python makes RuntimeError of it in coroutines
        getattr(raiser, method)(name).result()
    assert isinstance(caught.value, AgentCallError)
    assert name in str(caught.value)
    assert raiser.fine() == "fine"


def test_a_registered_exception_arrives_as_itself(raiser: AgentProxy) -> None:
    with pytest.raises(AgentCallError) as before:
        raiser.own("Teapot")
    assert not isinstance(before.value, Teapot)
    assert before.value.type_name.endswith(":Teapot")
    register_exception(Teapot)
    with pytest.raises(Teapot) as caught:
        raiser.own("Teapot")
    assert isinstance(caught.value, AgentCallError)
    assert caught.value.args == ("short and stout", 418)


@pytest.mark.parametrize(
    "name", ["NoArguments", "Unprintable", "NoArgs", "OddFields", "Holding", "OddModule", "OddDoc"]
)
def test_no_exception_however_odd_breaks_the_reply(raiser: AgentProxy, name: str) -> None:
    with pytest.raises(AgentCallError) as caught, within(ROUND_TRIP_S):
        raiser.own(name)
    assert name in str(caught.value)
    assert "test_host.py" in caught.value.remote_traceback
    assert raiser.fine() == "fine"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups are new in Python 3.11")
def test_an_exception_group_arrives_as_one(raiser: AgentProxy) -> None:
    with pytest.raises(AgentCallError) as caught:
        raiser.group()
    assert isinstance(caught.value, builtins.ExceptionGroup)  # type: ignore[attr-defined]  # from 3.11
    one, two = caught.value.exceptions
    assert (isinstance(one, ValueError), isinstance(two, KeyError)) == (True, True)
    assert "both" in str(caught.value)


@pytest.mark.parametrize("how", ["circle", "deep", "recursion", "surrogate", "caused"])
def test_tangled_errors_arrive(raiser: AgentProxy, how: str) -> None:
    with pytest.raises((ValueError, RuntimeError)) as caught, within(2 * ROUND_TRIP_S):
        getattr(raiser, how)()
    assert isinstance(caught.value, AgentCallError)


def test_the_cause_of_an_error_is_in_its_remote_traceback(raiser: AgentProxy) -> None:
    with pytest.raises(RuntimeError, match="because") as caught:
        raiser.caused()
    assert isinstance(caught.value, AgentCallError)
    assert "KeyError: 'missing'" in caught.value.remote_traceback
    assert "direct cause" in caught.value.remote_traceback


@pytest.mark.parametrize("size", [10_000, 1_000_000, 20_000_000])
def test_a_huge_message_is_cut_and_its_type_kept(raiser: AgentProxy, size: int) -> None:
    with pytest.raises(ValueError, match="xxx") as caught:
        raiser.huge(size)
    assert isinstance(caught.value, AgentCallError)
    assert len(str(caught.value)) < 10_000


def test_an_agent_that_raises_cancelled_error_is_not_a_broken_reply(raiser: AgentProxy) -> None:
    with pytest.raises((errors.CallCancelled, AgentCallError)), within(ROUND_TRIP_S):
        raiser.cancelled()


def test_an_error_passes_through_two_agents_with_its_type(client: RpcClient, raiser: AgentProxy) -> None:
    with pytest.raises(KeyError, match="key") as caught:
        client.create_agent(Node).ask(raiser, "builtin", "KeyError", "key").result()
    assert isinstance(caught.value, AgentCallError)
    assert caught.value.type_name == "builtins:KeyError"


# ---------------------------------------------------------------- agents come and go


def test_an_agent_is_made_found_listed_and_deleted(client: RpcClient) -> None:
    desk = client.create_agent(Desk, agent_id="front", colour="red")
    assert desk.agent_id == "front"
    assert desk.colour == "red"
    assert client.get_agent("front") == desk
    (info,) = [info for info in client.get_agent_list() if info["agent_id"] == "front"]
    assert (info["class"], info["type"]) == ("actors:Desk", "Desk")
    assert client.delete_agent("front") is True
    for gone in (lambda: client.get_agent("front"), lambda: client.delete_agent("front"), lambda: desk.echo(1)):
        with pytest.raises(UnknownAgent, match="front"), within(ROUND_TRIP_S):
            gone()


def test_an_id_that_is_taken_is_refused(client: RpcClient) -> None:
    first = client.create_agent(Desk, agent_id="only one")
    with pytest.raises(AgentExists, match="only one"):
        client.create_agent(Desk, agent_id="only one")
    client.delete_agent("only one")
    assert client.create_agent(Desk, agent_id="only one") == first


def test_of_50_that_want_one_id_one_gets_it(client: RpcClient) -> None:
    def make(_: int) -> bool:
        try:
            client.create_agent(Desk, agent_id="wanted")
        except AgentExists:
            return False
        return True

    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        assert sum(pool.map(make, range(50))) == 1


@pytest.mark.parametrize("agent_id", ["", "x" * 256, "tab\t", "\udc80", 7])
def test_an_id_that_is_no_name_is_refused(client: RpcClient, agent_id: Any) -> None:
    with pytest.raises(ConfigError, match="agent_id"), within(ROUND_TRIP_S):
        client.create_agent(Desk, agent_id=agent_id)


def test_an_unknown_class_is_told_with_those_that_are_known(client: RpcClient) -> None:
    for unknown in ("Nobody", AgentBase):
        with pytest.raises(UnknownClass, match="Desk"), within(ROUND_TRIP_S):
            client.create_agent(unknown)


def test_a_class_is_found_by_its_short_and_its_full_name(client: RpcClient) -> None:
    assert client.create_agent("Desk").echo(1) == 1
    assert client.create_agent("actors:Desk").echo(1) == 1


def test_a_plain_class_is_an_agent_too(client: RpcClient) -> None:
    assert client.create_agent(Plain, 3).times(4) == 12


def test_wrong_arguments_for_init_are_a_type_error(client: RpcClient) -> None:
    with pytest.raises(TypeError, match="factor"):
        client.create_agent(Plain, agent_id="never")
    with pytest.raises(UnknownAgent):
        client.get_agent("never")


@pytest.mark.parametrize(("how", "kind"), [("raise", ValueError), ("exit", AgentCallError)])
def test_an_agent_whose_init_raises_is_not_there(client: RpcClient, how: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        client.create_agent(Fragile, how, agent_id="fallen")
    with pytest.raises(UnknownAgent):
        client.get_agent("fallen")
    assert client.create_agent(Fragile, agent_id="fallen").fine() == "fine"
    client.delete_agent("fallen")


def test_an_agent_whose_argument_failed_is_not_there(client: RpcClient) -> None:
    failed = client.create_agent(Desk).plus(1, "x")
    with pytest.raises(TypeError, match="unsupported"):
        client.create_agent(Desk, failed, agent_id="unmade")
    with pytest.raises(UnknownAgent):
        client.get_agent("unmade")


def test_an_agent_may_be_made_from_an_unfinished_result(client: RpcClient, latch: AgentProxy) -> None:
    name = latch.hold_async("named later")
    latch.entered()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        making = pool.submit(client.create_agent, Desk, name)
        latch.release()
        assert making.result().name == "named later"


def test_a_class_that_is_no_class_at_the_client_is_refused(client: RpcClient) -> None:
    with pytest.raises(ConfigError, match="class"):
        client.create_agent(5)  # type: ignore[call-overload]


def test_calls_wait_until_init_is_done(client: RpcClient, latch: AgentProxy) -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        making = pool.submit(client.create_agent, Fragile, "hold", latch, agent_id="slow")
        latch.entered()
        early = pool.submit(client.get_agent("slow").fine)
        assert not early.done()
        latch.release()
        assert making.result(5).fine() == "fine"
        assert early.result(5) == "fine"
    client.delete_agent("slow")


def test_an_init_that_takes_too_long_leaves_no_agent(client: RpcClient, latch: AgentProxy) -> None:
    impatient = RpcClient(link=client.link, timeout=0.3)
    with pytest.raises(CallTimeout), within(1.5):
        impatient.create_agent(Fragile, "hold", latch, agent_id="late")
    impatient.close()
    latch.release()
    end = time.monotonic() + 2
    while "late" in [info["agent_id"] for info in client.get_agent_list()] and time.monotonic() < end:
        pass  # its thread may need a moment to come back
    with pytest.raises(UnknownAgent):
        client.get_agent("late")


def test_an_init_may_call_other_agents(client: RpcClient) -> None:
    node = client.create_agent(Node)
    assert client.create_agent(Fragile, "ask", node).answer == "value"


def test_an_init_that_calls_itself_is_a_deadlock_or_unknown(client: RpcClient) -> None:
    node = client.create_agent(Node, agent_id="asker")
    with pytest.raises(DeadlockError), within(ROUND_TRIP_S):
        node.ask(node, "value").result()


def test_an_agent_knows_its_id_in_init(client: RpcClient) -> None:
    assert client.create_agent(Fragile, "own id", agent_id="known").seen_id == "known"


def test_deleting_an_agent_whose_concurrent_calls_wait_for_a_slot_is_told_to_them() -> None:
    with client_on_host(capacity=1) as client:
        latch, other = client.create_agent(Latch), client.create_agent(Latch)
        running = latch.hold_async("done")
        latch.entered()  # the one slot is taken
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(other.hold_beside) for _ in range(2)]
            waiting.append(pool.submit(lambda: other.marks))
            while len([call for call in client.get_call_list() if call["state"] == "ready"]) < 3:
                pass
            client.delete_agent(other.agent_id)
            latch.release()
            outcomes = [call.exception(5) for call in waiting]
        assert [type(outcome) for outcome in outcomes] == [AgentDeleted] * 3
        assert running.result() == "done"


def test_delete_all_agents_deletes_all() -> None:
    with client_on_host() as client:
        for _ in range(5):
            client.create_agent(Desk)
        assert client.delete_all_agent() is True
        assert client.get_agent_list() == []


def test_what_an_agent_remembers_can_be_asked_for(client: RpcClient, latch: AgentProxy) -> None:
    assert client.get_agent_memory(client.create_agent("Desk").agent_id) == ["hello", {"n": 1}]
    assert client.get_agent_memory(client.create_agent("Misfit").agent_id) == ["remembered"]
    with pytest.raises(UnknownMethod, match="no memory"):
        client.get_agent_memory(client.create_agent("Plain", 1).agent_id)
    with pytest.raises(UnknownAgent):
        client.get_agent_memory("nobody")
    running = latch.hold_async()
    latch.entered()
    with pytest.raises(UnknownMethod), within(ROUND_TRIP_S):  # beside the turn
        client.get_agent_memory(latch.agent_id)
    assert not running.done()


# ---------------------------------------------------------------- what classes may say


def test_public_names_that_are_no_methods(client: RpcClient) -> None:
    misfit = client.create_agent(Misfit)
    assert misfit.constant == 7
    with pytest.raises(ZeroDivisionError):
        _ = misfit.zero
    for name in ("function", "Inner"):
        with pytest.raises((SerializationError, UnknownMethod), match=name), within(ROUND_TRIP_S):
            getattr(misfit, name)


def test_on_busy_reject_refuses_instead_of_queueing(client: RpcClient) -> None:
    busy = client.create_agent(Busy)
    running = busy.hold_async(1)
    busy.entered()
    with pytest.raises(HostBusy, match="busy") as caught, within(ROUND_TRIP_S):
        busy.mark(1)
    assert caught.value.retry_after > 0
    assert busy.marks == []
    busy.release()
    assert running.result() == 1


def test_a_reentrant_agent_may_be_called_back(client: RpcClient) -> None:
    again, node = client.create_agent(Again), client.create_agent(Node)
    assert again.ask(node, "ask", again, "value").result() == "value"
    assert again.ask(again, "ask", again, "value").result() == "value"


# ---------------------------------------------------------------- the class table


def _class(name: str, module: str) -> type:
    return type(name, (AgentBase,), {"__module__": module})


def test_two_classes_of_one_name_are_refused_naming_both() -> None:
    one, two = _class("Same", "first"), _class("Same", "second")
    table = ClassTable([one])
    table.add(one)  # the same again is nothing
    with pytest.raises(ConfigError, match=r"first:Same.*second:Same"):
        table.add(two)
    assert table.find("Same") is one
    assert table.names() == ["first:Same"]


def test_a_class_may_replace_its_elder_where_that_is_asked_for() -> None:
    elder, younger = _class("Cell", "__main__"), _class("Cell", "__main__")
    table = ClassTable([elder])
    table.add(younger, replace=True)
    assert table.find("Cell") is younger
    assert table.names() == ["__main__:Cell"]


def test_a_short_name_of_two_classes_must_be_said_in_full() -> None:
    table = ClassTable([_class("Same", "first")])
    table.add(_class("Same", "second"), replace=True)
    with pytest.raises(UnknownClass, match="first:Same, second:Same"):
        table.find("Same")
    assert table.find("second:Same").__module__ == "second"


def test_an_empty_table_says_that_it_knows_none() -> None:
    with pytest.raises(UnknownClass, match="none"):
        ClassTable().find("Any")
    with pytest.raises(ConfigError):
        ClassTable().add("no class")  # type: ignore[arg-type]
