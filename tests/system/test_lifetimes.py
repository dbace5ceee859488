"""How long agents live: with the host, with the client that made them, as long as they are called, or for a block."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import Latch, host
from hosts import eventually, started, told
from zmqagents import (
    AgentBase,
    AsyncRpcClient,
    ConfigError,
    RpcAgentServerLauncher,
    RpcClient,
    UnknownAgent,
    agent,
)

pytestmark = pytest.mark.program
WITHIN_S = 10.0


class Keeper(AgentBase):
    """Notes its end, if it is given a file for that."""

    def __init__(self, if_exists: str = "nothing") -> None:
        super().__init__()
        self.given = if_exists

    def given_as(self) -> str:
        return self.given

    async def on_stop(self) -> None:
        if self.given.startswith("/"):
            Path(self.given).write_text("ended")

    def make(self, client_options: dict[str, Any]) -> str:
        from zmqagents import current_call

        call = current_call()
        assert call is not None
        made = call.client().options(**client_options).create_agent("Plain")
        return str(made.agent_id)


class Plain:
    """Any class."""

    def ping(self) -> str:
        return "pong"


@agent(idle_s=0.2)
class Brief:
    """Goes soon."""

    def ping(self) -> str:
        return "pong"


MAKE = """
import sys, time
from zmqagents import RpcClient
client = RpcClient("localhost", int(sys.argv[1]))
client.options(agent_id=sys.argv[2], lifetime="client").create_agent("Keeper", sys.argv[4])
client.options(agent_id=sys.argv[2] + "-stays").create_agent("Keeper")
print("null", flush=True)
if sys.argv[3] == "wait":
    time.sleep(60)
"""


@pytest.fixture(scope="module", params=["thread", "pool"])
def server(request: pytest.FixtureRequest) -> Iterator[RpcAgentServerLauncher]:
    with host(Keeper, Plain, Brief, Latch, isolation=request.param) as launched:
        yield launched


def ids(client: RpcClient) -> set[str]:
    return {row["agent_id"] for row in client.get_agent_list()}


@pytest.mark.parametrize("end", ["leave", "wait"])
def test_an_agent_with_the_lifetime_of_its_client_goes_with_that_program(
    server: RpcAgentServerLauncher, client: RpcClient, end: str, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    with started(MAKE, str(server.port), f"{end}-a", end, str(note)) as program:
        told(program)
        if end == "wait":
            assert f"{end}-a" in ids(client)
            os.kill(program.pid, signal.SIGKILL)
        program.wait(WITHIN_S)
    assert eventually(lambda: f"{end}-a" not in ids(client), WITHIN_S)
    assert eventually(note.is_file, WITHIN_S)
    assert f"{end}-a-stays" in ids(client)


def test_an_idle_agent_is_deleted_and_one_that_is_called_stays(client: RpcClient) -> None:
    idle: Any = client.options(agent_id="idle", idle_s=0.2).create_agent("Plain")
    used: Any = client.options(agent_id="used", idle_s=1.0).create_agent("Plain")
    assert eventually(lambda: used.ping() == "pong" and "idle" not in ids(client), WITHIN_S)
    assert "used" in ids(client)
    with pytest.raises(UnknownAgent, match="there is no agent 'idle'"):
        idle.ping()
    assert eventually(lambda: "used" not in ids(client), WITHIN_S)


def test_a_class_may_say_how_long_its_agents_may_be_idle(client: RpcClient) -> None:
    client.create_agent("Brief", agent_id="brief")
    assert eventually(lambda: "brief" not in ids(client), WITHIN_S)


def test_a_call_that_runs_long_keeps_its_agent(client: RpcClient) -> None:
    latch: Any = client.options(agent_id="latch", idle_s=0.1).create_agent("Latch")
    held = latch.hold.aio()
    brief: Any = client.options(agent_id="brief", idle_s=0.1).create_agent("Plain")
    assert eventually(lambda: "brief" not in ids(client), WITHIN_S)
    del brief
    assert "latch" in ids(client)
    latch.release()
    held.result()
    assert eventually(lambda: "latch" not in ids(client), WITHIN_S)


def test_what_an_agent_makes_has_no_client_to_go_with(client: RpcClient) -> None:
    keeper: Any = client.create_agent("Keeper")
    if client.get_server_info()["settings"]["isolation"] == "thread":
        with pytest.raises(ConfigError, match="lifetime='client' is for a client outside of the host"):
            keeper.make({"lifetime": "client"})
    made = keeper.make({"idle_s": 0.1})
    assert eventually(lambda: made not in ids(client), WITHIN_S)


def test_an_agent_that_is_there_is_taken_instead(client: RpcClient) -> None:
    first: Any = client.create_agent("Plain", agent_id="one", if_exists="get")
    second: Any = client.create_agent("Plain", agent_id="one", if_exists="get")
    assert first.ping() == second.ping() == "pong"
    assert len(ids(client) & {"one"}) == 1
    with pytest.raises(ConfigError, match="if_exists='get' needs an agent_id"):
        client.create_agent("Plain", if_exists="get")
    with pytest.raises(ConfigError, match="if_exists must be 'error' or 'get', not 'replace'"):
        client.create_agent("Plain", agent_id="one", if_exists="replace")  # type: ignore[call-overload]


def test_a_constructor_that_has_such_a_parameter_gets_it(client: RpcClient) -> None:
    assert client.create_agent(Keeper, if_exists="get").given_as() == "get"


def test_an_asyncio_client_takes_it_too(server: RpcAgentServerLauncher) -> None:
    async def main() -> list[str]:
        async with AsyncRpcClient(server.host, server.port) as client:
            made = [client.create_agent("Plain", agent_id="many", if_exists="get") for _ in range(8)]
            return [await each.ping() for each in await asyncio.gather(*made)]

    assert asyncio.run(main()) == ["pong"] * 8


def test_agents_of_many_threads_that_go_idle_at_once_are_all_deleted(client: RpcClient) -> None:
    threads = [
        threading.Thread(target=client.options(agent_id=f"t{n}", idle_s=0.1).create_agent, args=("Plain",))
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert eventually(lambda: not any(each.startswith("t") and each[1:].isdigit() for each in ids(client)), WITHIN_S)
