"""What a host has of agents and calls, a page at a time and by filter; the calls around one; the errors of late.

`RpcClient.get_agent_list` gives all, which is what a program wants that has a hundred of them. A page that people look
at shows fifty of 100,000.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import UnknownTask
from ...wire.link import Link
from ...wire.messages import Op
from ..deadlines import time_left
from ..proxy import bind_awaited, checked_name, request_body
from ..result import AsyncResult

__all__ = ["Pages"]


class Pages:
    """Requests to a host, each of which gives an `AsyncResult`: to be awaited, or asked for its ``result()``."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def __repr__(self) -> str:
        return f"<Pages of {self._link.address}>"

    def agents(
        self, query: str = "", *, of_class: str | None = None, agent_id: str | None = None, sort: str = "",
        after: int = 0, most: int = 50,
    ) -> AsyncResult[dict[str, Any]]:  # fmt: skip
        """Those agents with ``query`` in the id or in the name of the class, the oldest first.

        A dict: agents (as in `RpcClient.get_agent_list`), next (the ``after`` of the next page, None at the end) and
        total (of all agents). The host looks at 5,000 for a page, so one with few rows may not be the last. ``sort``:
        "calls", "running", "queued" or "age", the most first. ``most``: 200 at most.
        """
        options = {"query": query, "class": of_class, "id": agent_id, "sort": sort, "after": after, "most": most}
        return self._ask(Op.LIST, options)

    def calls(
        self, query: str = "", *, state: str | None = None, agent: str | None = None, method: str | None = None,
        of_user: str | None = None, after: float = 0.0, most: int = 50,
    ) -> AsyncResult[dict[str, Any]]:  # fmt: skip
        """Those calls that are not answered yet and have ``query`` in ``agent.method`` or in the user's name, the
        oldest first.

        A dict: calls (as in `RpcClient.get_call_list`), next and total, as above.
        """
        options = {"query": query, "state": state, "agent": agent, "method": method, "of_user": of_user}
        return self._ask(Op.CALLS, {**options, "after": float(after), "most": most})

    def around(self, task_id: str | None = None) -> AsyncResult[dict[str, Any]]:
        """An open call with the stack of its code, and after it those that it waits for, that wait for it, or that are
        in a chain with it; without an id the oldest calls that wait for others.

        A dict: calls, 200 rows at most. Raises UnknownTask for a call that is not open, or that is another user's,
        unless the role is admin or view.
        """
        return self._ask(Op.GRAPH, {} if task_id is None else {"id": checked_name(task_id, UnknownTask)})

    def errors(self) -> AsyncResult[list[dict[str, Any]]]:
        """The errors in which calls have ended lately, by class, method and type: the latest first, 200 at most.

        A dict has class, method, error, count, first and last (seconds since 1970), agent, message, traceback and calls
        (the latest task ids). Needs the role admin or view.
        """
        return self._ask(Op.ERRORS, {})

    def _ask(self, op: str, options: Mapping[str, Any]) -> AsyncResult[Any]:
        link = self._link
        given = {name: value for name, value in options.items() if value is not None and value != ""}
        left = time_left(link.management_timeout_s)
        body = request_body(link, op, (), {})
        return AsyncResult(link, op, bind_awaited, body, method=op, options=given, timeout=left)
