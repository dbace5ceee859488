"""Pools, one-way calls, agents for a block, objects as agents, progress bars, and what errors and notebooks show."""

from __future__ import annotations

import asyncio
import io
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from actors import host
from hosts import eventually
from zmqagents import (
    AgentBase,
    AgentCallError,
    AsyncRpcClient,
    ConfigError,
    Pool,
    RpcAgentServerLauncher,
    RpcClient,
    UnknownAgent,
    UnknownClass,
    UnknownMethod,
    async_func,
    progress,
    to_dist,
)
from zmqagents.client.many.bar import Seen, as_html
from zmqagents.server import private_host

pytestmark = pytest.mark.program


class Reader(AgentBase):
    """Reads."""

    def __init__(self, name: str = "reader") -> None:
        super().__init__(name)
        self.seen: list[Any] = []

    def load(self, item: int) -> int:
        """Load one item."""
        time.sleep(0.01)
        self.seen.append(item)
        return item * 2

    def look(self) -> list[Any]:
        return self.seen

    def up_to(self, n: int) -> Iterator[int]:
        self.seen.append("up_to")
        yield from range(n)

    @async_func
    def fail(self, text: str) -> None:
        raise ValueError(text)


class Plain:
    """No agent class, and not even importable from where a test runs it."""

    __slots__ = ("__dict__", "kept")

    def __init__(self, start: int) -> None:
        self.value = start
        self.kept = [start]

    def add(self, n: int) -> int:
        self.value += n
        self.kept.append(n)
        return self.value

    def history(self) -> list[int]:
        return self.kept


@pytest.fixture(scope="module")
def server() -> Iterator[RpcAgentServerLauncher]:
    with host(Reader, Stubborn) as launcher:
        yield launcher


@pytest.fixture
def client(server: RpcAgentServerLauncher) -> Iterator[RpcClient]:
    with RpcClient(server.host, server.port, timeout=60) as found:
        yield found


# ---------------------------------------------------------------- pools


def test_a_pool_maps_in_order_over_all_its_replicas_and_leaves_none(client: RpcClient) -> None:
    before = len(client.get_agent_list())
    with client.pool(Reader, 3) as readers:
        assert len(readers) == 3
        assert list(readers.load.map(range(30))) == [2 * n for n in range(30)]
        shares = [len(agent.look()) for agent in readers.agents]
        assert sum(shares) == 30
        assert min(shares) >= 5
    assert len(client.get_agent_list()) == before


def test_a_call_goes_to_the_replica_with_the_fewest_open_calls(client: RpcClient) -> None:
    with client.pool("Reader", 2) as readers:
        results = [readers.load(n) for n in range(4)]
        assert [result.result() for result in results] == [0, 2, 4, 6]
        assert [agent.look() for agent in readers.agents] == [[0, 2], [1, 3]]


def test_map_takes_items_as_replicas_become_free_and_ends_at_an_error(client: RpcClient) -> None:
    taken: list[int] = []

    def endless() -> Iterator[Any]:
        for n in range(10**9):
            taken.append(n)
            yield n if n != 7 else "x" * 3

    with client.pool(Reader, 2) as readers:
        values = readers.load.map(endless())
        assert [next(values) for _ in range(3)] == [0, 2, 4]
        assert len(taken) <= 3 + 2 * 2 + 1
        values.close()
        texts = list(zip(range(4), readers.load.map([1, 2, 3]), strict=False))
        assert texts == [(0, 2), (1, 4), (2, 6)]
        with pytest.raises(ValueError, match="no"):
            list(readers.fail.map(["no"]))


def test_a_pool_names_the_nearest_method_and_needs_an_agent(client: RpcClient) -> None:
    with client.pool(Reader, 1) as readers, pytest.raises(UnknownMethod, match=r"did you mean 'load'\?"):
        readers.laod(1)
    with pytest.raises(ConfigError, match="a pool has at least one agent, not 0"):
        client.pool(Reader, 0)
    with client.pool(Reader, 1) as readers, pytest.raises(ConfigError, match="up_to gives a stream"):
        readers.up_to(3)
    before = len(client.get_agent_list())
    with pytest.raises(AgentCallError):
        client.pool("Reader", 3, "a", "b", "c")
    assert len(client.get_agent_list()) == before
    assert Pool.__doc__


class Stubborn(AgentBase):
    """May end with an error."""

    def __init__(self) -> None:
        super().__init__()
        self.word = ""

    def fail_at_end(self, word: str) -> None:
        self.word = word

    def on_stop(self) -> None:
        if self.word:
            raise ValueError(self.word)

    def __call__(self) -> str:
        return "called"


def test_a_pool_that_is_closed_deletes_all_its_agents_whatever_their_ends_raise(client: RpcClient) -> None:
    before = len(client.get_agent_list())
    pool = client.pool(Stubborn, 4)
    for agent, word in zip(pool.agents, ["", "second", "third", ""], strict=True):
        agent.fail_at_end(word)
    with pytest.raises(ValueError, match="second"):
        pool.close()
    assert len(client.get_agent_list()) == before
    pool.close()


def test_a_pool_lists_what_it_offers(client: RpcClient) -> None:
    with client.pool(Stubborn, 1) as pool:
        assert [name for name in dir(pool) if name.startswith("_")] == []
        assert {"agents", "close", "fail_at_end"} <= set(dir(pool))
        with pytest.raises(TypeError, match="not callable"):
            pool()  # type: ignore[operator]
        assert pool.agents[0]().result() == "called"


# ---------------------------------------------------------------- one agent


def test_an_agent_of_a_block_is_gone_after_it(client: RpcClient) -> None:
    with client.create_agent(Reader, agent_id="brief") as reader:
        assert reader.load(1) == 2
    with pytest.raises(UnknownAgent):
        client.get_agent("brief")
    with client.create_agent(Reader, agent_id="brief"):
        client.delete_agent("brief")  # deleted already: no error


def test_of_clients_that_make_one_agent_at_once_one_makes_it_and_all_have_it(server: RpcAgentServerLauncher) -> None:
    found: list[Any] = []

    def make() -> None:
        with RpcClient(server.host, server.port) as client:
            maker = client.options(agent_id="shared", if_exists="get")
            maker.create_agent(Reader).load(len(found))
            found.append(1)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with RpcClient(server.host, server.port) as client:
        assert len(client.get_agent("shared").look()) == 8
        with pytest.raises(ConfigError, match="if_exists='get' needs an agent_id"):
            client.options(if_exists="get")


def test_an_asyncio_client_takes_the_agent_that_is_there_too(server: RpcAgentServerLauncher) -> None:
    async def main() -> list[Any]:
        async with AsyncRpcClient(server.host, server.port) as client:
            maker = client.options(agent_id="both", if_exists="get")
            await (await maker.create_agent(Reader)).load(1)
            with pytest.raises(ConfigError, match="if_exists must be 'error' or 'get', not 'take'"):
                client.options(agent_id="both", if_exists="take")  # type: ignore[arg-type]
            found: list[Any] = await (await maker.create_agent(Reader)).look()
            return found

    assert asyncio.run(main()) == [1]


def test_a_one_way_call_is_run_and_its_failure_is_logged(client: RpcClient, caplog: pytest.LogCaptureFixture) -> None:
    reader: Any = client.create_agent(Reader)
    reader.load.send(4)
    assert eventually(lambda: reader.look() == [4], 10)
    with caplog.at_level(logging.ERROR):
        reader.fail.send("nobody sees this")
        assert eventually(lambda: "fail failed, and nobody has looked at its result" in caplog.text, 10)
    assert "ValueError: nobody sees this" in caplog.text
    with pytest.raises(ConfigError, match="up_to gives a stream"):
        reader.up_to.send(3)
    assert reader.look() == [4]


def test_any_object_becomes_an_agent_with_its_state() -> None:
    plain = Plain(3)
    plain.add(1)
    agent = to_dist(plain)
    assert agent.add(10) == 14
    assert agent.history() == [3, 1, 10]
    assert plain.value == 4
    other = to_dist(Plain(100))
    assert (other.add(1), agent.add(1)) == (101, 15)
    assert to_dist(Reader()).load(2) == 4
    private_host.stop_private_host()


@pytest.mark.parametrize(("obj", "text"), [(3, "not 3"), (Plain, "takes an object of a class of yours")])
def test_what_is_no_object_of_a_class_is_refused(obj: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        to_dist(obj)


def test_an_object_that_keeps_no_arguments_cannot_go_to_another_host(server: RpcAgentServerLauncher) -> None:
    with pytest.raises(ConfigError, match=r"RpcClient\(host, port\).create_agent\(Plain, ...\)"):
        to_dist(Plain(1), server.host, server.port)


# ---------------------------------------------------------------- what is shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_draws_a_bar_in_a_terminal_and_counts_failures(client: RpcClient) -> None:
    reader: Any = client.create_agent(Reader)
    screen = Terminal()
    results = [reader.load.aio(n) for n in range(5)] + [reader.fail("no")]
    assert progress(results, "loading", file=screen) == results
    assert "loading" in screen.getvalue()
    assert "6 of 6, 1 failed" in screen.getvalue()


def test_progress_without_rich_is_a_line_of_text(client: RpcClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rich.progress", None)
    screen = Terminal()
    progress([client.create_agent(Reader).load.aio(1)], "loading", file=screen)  # type: ignore[attr-defined]
    assert "loading: 1 of 1, " in screen.getvalue()
    assert "#" * 30 in screen.getvalue()


def test_progress_draws_nothing_where_there_is_no_terminal(client: RpcClient) -> None:
    nowhere = io.StringIO()
    progress([client.create_agent(Reader).load.aio(1)], file=nowhere)  # type: ignore[attr-defined]
    assert nowhere.getvalue() == ""


def test_progress_draws_nothing_in_a_program_without_a_console(
    client: RpcClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = client.create_agent(Reader).load.aio(1)  # type: ignore[attr-defined]
    monkeypatch.setattr("sys.stderr", None)
    assert progress([result, result]) == [result, result]


def test_in_a_notebook_bars_proxies_and_clients_are_html(client: RpcClient) -> None:
    bar = as_html("a<b", Seen(4, 2, 1, 2.5, "<5> of 10"), 0.5)
    assert '<progress value="2.5" max="4"' in bar
    assert "a&lt;b: 2 of 4, 1 failed, 0.5 s, &lt;5&gt; of 10" in bar
    reader: Any = client.create_agent(Reader, agent_id="<i>")
    shown = reader._repr_html_()
    assert "Reader &#x27;&lt;i&gt;&#x27;" in shown
    assert "<td>Load one item.</td>" in shown
    table = client._repr_html_()
    assert "<th>agent_id</th>" in table
    assert "<td>&lt;i&gt;</td>" in table
    with RpcClient("localhost", 1) as nowhere:
        assert "nothing listens there" in nowhere._repr_html_()


def test_a_remote_traceback_begins_with_the_users_code(client: RpcClient) -> None:
    reader: Any = client.create_agent(Reader)
    with pytest.raises(ValueError, match="no") as caught:
        reader.fail("no").result()
    assert isinstance(caught.value, AgentCallError)
    files = [line for line in caught.value.remote_traceback.splitlines() if line.startswith("  File")]
    assert len(files) == 1
    assert files[0].endswith(", in fail")


def test_errors_name_the_nearest_name(client: RpcClient) -> None:
    reader: Any = client.create_agent(Reader)
    with pytest.raises(UnknownMethod, match=r"it has: .*; did you mean 'load'\?"):
        reader.laod(1)
    with pytest.raises(UnknownClass, match=r"did you mean 'Reader'\?"):
        client.create_agent("Raeder")
