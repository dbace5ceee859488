"""The events that other threads hand to the router thread: `Router` of the execution package, as the broker has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ZmqAgentsError
from ..execution.gate import Wait
from ..scheduler.records import Peer, Ticket
from ..wire.messages import Call, Frame

__all__ = ["Events"]

Fail = Callable[[ZmqAgentsError], None]


class Events:
    """Posts each event to the broker's inbox. ``leads``: see `Router.leads`."""

    def __init__(self, post: Callable[..., None], leads: Callable[[], bool]) -> None:
        self._post = post
        self.leads = leads

    def call(self, peer: Peer, call: Call, parent: Ticket | None, wait: Wait | None) -> None:
        self._post("call", peer, call, parent, wait)

    def fetch(self, peer: Peer, call_id: int, task_id: str, timeout_s: float) -> None:
        self._post("fetch", peer, call_id, task_id, timeout_s)

    def cancel(self, peer: Peer, task_id: str, alone: bool) -> None:
        self._post("cancel", peer, 0, task_id, alone)

    def credit(self, peer: Peer, call_id: int, items: int) -> None:
        self._post("credit", peer, call_id, items)

    def wait(self, wait: Wait, task_ids: Sequence[str], any_of: bool) -> None:
        self._post("wait", wait, task_ids, any_of)

    def wait_outside(self, wait: Wait, task_ids: Sequence[str] = ()) -> None:
        self._post("wait_outside", wait, task_ids)

    def go_outside(self, wait: Wait) -> None:
        self._post("go_outside", wait)

    def wait_item(self, wait: Wait, stream: Any) -> None:
        self._post("wait_item", wait, stream)

    def wait_credit(self, wait: Wait) -> None:
        self._post("wait_credit", wait)

    def wait_over(self, wait: Wait) -> None:
        self._post("wait_over", wait)

    def await_result(self, ticket: Ticket, task_id: str, fail: Fail, ready: Callable[[], bool]) -> None:
        self._post("await", ticket, task_id, fail, ready)

    def await_outside(self, ticket: Ticket, task_id: str, fail: Fail, ready: Callable[[], bool]) -> None:
        self._post("await_outside", ticket, task_id, fail, ready)

    def await_credit(self, ticket: Ticket, fail: Fail, ready: Callable[[], bool]) -> None:
        self._post("await_credit", ticket, fail, ready)

    def unawait(self, ticket: Ticket, task_id: str) -> None:
        self._post("unwait", ticket, task_id)

    def unawait_outside(self, ticket: Ticket, task_id: str) -> None:
        self._post("unawait_outside", ticket, task_id)

    def chunk(self, ticket: Ticket, number: int, body: tuple[Frame, ...]) -> None:
        self._post("chunk", ticket, number, body)
