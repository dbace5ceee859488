"""The watcher of a host: several threads ask it at a time, and one of them may learn late that its client is lost."""

from __future__ import annotations

import threading
from typing import Any, cast

from zmqagents import RpcClient, errors
from zmqagents.web.hosts.watcher import Watcher


class Client:
    """Answers when it is told to, or is lost."""

    def __init__(self, *, lost: bool) -> None:
        self.lost = lost
        self.asked, self.go_on = threading.Event(), threading.Event()
        self.closed = False

    def get_metrics(self) -> dict[str, Any]:
        self.asked.set()
        assert self.go_on.wait(30)
        if self.lost:
            raise errors.HostLost("gone")
        return {"server_id": "h1"}

    def get_health(self, timeout: float) -> dict[str, Any]:
        if self.lost:
            raise errors.HostLost("gone")
        return {"server_id": "h1", "reasons": []}

    def close(self) -> None:
        self.closed = True


def test_a_thread_that_learns_late_of_a_loss_leaves_the_new_client_alone() -> None:
    old, new = Client(lost=True), Client(lost=False)
    clients = iter([old, new])
    watcher = Watcher(lambda: cast(RpcClient, next(clients)), name="h1")
    late = threading.Thread(target=watcher.figures)
    late.start()
    assert old.asked.wait(30)
    assert watcher.not_ready() == ["HostLost: gone"]
    assert old.closed
    assert watcher.not_ready() == []  # of the new one
    old.go_on.set()
    late.join(30)
    assert not new.closed
    assert watcher.not_ready() == []  # still of that one: there is no third
