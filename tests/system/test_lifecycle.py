"""The hooks at the beginning and at the end of an agent's life, on real hosts.

Each agent writes what happens to it into a file, whose lines the tests read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import client_on_host
from zmqagents import (
    AgentBase,
    RpcClient,
    UnknownAgent,
    async_func,
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


ALL: list[type[Any]] = [Plainly, Softly, Within, Mixed]


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


MORE: list[type[Any]] = []

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
