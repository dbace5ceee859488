"""`Members`: what one host of a cluster tells of the others and of its agents, and does with these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import errors
from ...checks import DEFAULT_TIMEOUT_S
from ...cluster.protocol import AgentPage, EventPage, HostRow, WhereRow
from ...wire.link import Link
from ...wire.messages import Op
from ..deadlines import time_left
from ..proxy import bind_awaited, checked_name, request_body
from ..result import AsyncResult

__all__ = ["Members"]


class Members:
    """Requests to the host at the end of ``link``, each of which gives an `AsyncResult`: to be awaited, or asked for
    its ``result()``. An agent is named by its reference, ``cluster:shop/Account/ann``.

    `Cluster` is what programs use. This is for those who ask a certain host, over a connection in the name of a user.
    """

    def __init__(self, link: Link) -> None:
        self._link = link

    def __repr__(self) -> str:
        return f"<Members of the cluster of {self._link.address}>"

    def hosts(self) -> AsyncResult[list[HostRow]]:
        """All hosts, the one that is asked first."""
        return self._ask(Op.HOSTS, {})

    def agents(self, prefix: str = "", after: str = "", most: int = 500) -> AsyncResult[AgentPage]:
        """A page of the agents whose names begin with ``prefix``; ``after``: the ``following`` of the one before."""
        return self._ask(Op.LIST, {"cluster": True, "prefix": prefix, "after": after, "most": most})

    def where(self, agent_id: str) -> AsyncResult[WhereRow]:
        """Where an agent is."""
        return self._ask(Op.WHERE, {"id": checked_name(agent_id, errors.UnknownAgent)})

    def events(self, after: str = "", most: int = 500) -> AsyncResult[EventPage]:
        """What has happened behind ``after``, the oldest first."""
        return self._ask(Op.EVENTS, {"after": after, "most": most})

    def move(self, agent_id: str, to: str = "") -> AsyncResult[WhereRow]:
        """Move an agent to the host ``to``, a server id or an address, or to any other one; where it is then."""
        return self._ask(Op.MOVE, {"id": checked_name(agent_id, errors.UnknownAgent), "to": to}, DEFAULT_TIMEOUT_S)

    def _ask(self, op: str, options: Mapping[str, Any], timeout: float | None = None) -> AsyncResult[Any]:
        link = self._link
        left = time_left(link.management_timeout_s if timeout is None else timeout)
        body = request_body(link, op, (), {})
        return AsyncResult(link, op, bind_awaited, body, method=op, options=dict(options), timeout=left)
