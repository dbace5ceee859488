"""What the tests of adapters have in common: a host for their factories, and what each of its agents must do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actors import client_of
from fake_words import FIRST, LAST
from hosts import eventually
from zmqagents import RpcAgentServerLauncher, RpcClient

FREE_S = 0.2  # after a cancel the agent answers the next call within that
ROUNDS = 3  # the best counts: the machine has other work, too


@contextmanager
def hosted(
    known: Sequence[Callable[..., Any]] = (), grace_s: float = 0.2, **factories: Callable[..., Any]
) -> Iterator[RpcClient]:
    """A client of a host with an agent of each factory, by these names. ``known``: what the host knows besides."""
    launcher = RpcAgentServerLauncher(
        agents=factories,
        custom_agent_classes=known,
        local_mode=True,
        grace_s=grace_s,
        launch_timeout_s=100.0,  # of which nearly all goes into the import of a framework
    )
    with launcher, client_of(launcher) as client:
        client.is_alive()
        yield client


def new_agent(adapter: type, client: RpcClient, factory: Callable[..., Any], *args: Any) -> Any:
    """A new agent that ``factory`` makes, whose messages are known by its ``adapter``."""
    return client.get_agent(client.create_agent(factory, *args).agent_id, adapter)


def check_first_before_last(stream: Callable[[str], Any], path: Path, text_of: Callable[[Any], str] = str) -> None:
    """The first token arrives although the model waits for this test before it makes the last."""
    items = iter(stream(f"wait {path}"))
    texts = [text_of(next(items))]
    while not texts[-1]:
        texts.append(text_of(next(items)))
    assert texts[-1] == FIRST
    path.touch()
    rest = [text_of(item) for item in items]
    assert LAST in "".join(rest)


def check_cancel(begin: Callable[[str], Any], again: Callable[[str], Any], path: Path) -> None:
    """A call that is cancelled in the middle leaves the agent free for the next one."""
    took = []
    for turn in range(ROUNDS):
        gate = path.with_name(f"{path.name}-{turn}")
        call = begin(f"wait {gate}")
        assert eventually(Path(f"{gate}.waits").exists, 30)
        start = time.monotonic()
        call.cancel()
        again("again")
        took.append(time.monotonic() - start)
        assert call.cancelled()
        gate.touch()  # for the thread of a model that cannot be broken off
    assert min(took) <= FREE_S, took
