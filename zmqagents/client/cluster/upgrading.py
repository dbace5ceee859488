"""`Upgrade`: the records of a cluster brought to the newest form that its hosts know, as ``as_server upgrade`` does it.

The hosts do it, by the steps of `store.forms`; this asks for one after the other. Each may be repeated, by another host
as well: what was interrupted is begun anew, and finds what is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, cast

from ... import errors
from ...checks import DEFAULT_TIMEOUT_S
from ...cluster.protocol import FormsRow, ReaderRow, RewrittenRow
from ...wire.messages import Op
from ..proxy import request_body, value_of
from ..rpc import facts, rows
from .handle import Cluster

__all__ = ["Forms", "Upgrade", "Upgraded"]

LOOK_EVERY_S = 0.2  # how often it looks whether all hosts have heard of the new form
HEAR_S = 10.0  # they may take two leases for that, and so long
TELL_EVERY_S = 2.0


class Forms(NamedTuple):
    """How things stand. ``newest``: the newest form that any host knows; ``lacking``: the hosts that do not."""

    form: int
    former: int
    hosts: list[ReaderRow]

    @property
    def newest(self) -> int:
        """The newest form that any host knows, or the one that is written."""
        return max([self.form, *(row["reads"][1] for row in self.hosts)])

    @property
    def lacking(self) -> list[ReaderRow]:
        """The hosts that do not read the newest form."""
        return [row for row in self.hosts if row["reads"][1] < self.newest]

    @property
    def is_done(self) -> bool:
        """Whether all records have the newest form."""
        return self.former >= self.newest


class Upgraded(NamedTuple):
    """What was done: whether the form was raised, and how many records were looked at and rewritten."""

    forms: Forms
    raised: bool = False
    seen: int = 0
    rewritten: int = 0


class Upgrade:
    """Asks any host of ``cluster``, in which the caller must be an admin. ``say`` is told what goes on."""

    def __init__(self, cluster: Cluster, say: Callable[[str], object]) -> None:
        self._link = cluster.link
        self._say = say

    def __repr__(self) -> str:
        return f"<Upgrade of the cluster {self._link.server_id}>"

    def look(self) -> Forms:
        """How things stand."""
        return self._step("look")

    def run(self) -> Upgraded:
        """Do what is to be done; nothing if a host does not read the newest form (`Forms.lacking`).

        Raises CallTimeout if a host does not hear of the new form, and what the requests raise.
        """
        forms = self.look()
        raised = False
        if not forms.lacking and forms.form < forms.newest:
            target, forms = forms.newest, self._step("raise", forms.newest)
            raised = forms.form >= target
        if forms.lacking:
            return Upgraded(forms, raised)
        seen, rewritten, target = 0, 0, forms.form
        while True:
            if not forms.is_done:
                self._wait_for_writers(target)
            looked, changed = self._rewrite(target)  # also if all is done: Redis may have lost the end of it
            seen, rewritten = max(seen, looked), rewritten + changed
            if not changed:
                forms = self._step("settle", target)
                if forms.former >= target:
                    return Upgraded(forms, raised, seen, rewritten)

    def _wait_for_writers(self, form: int) -> None:
        begun, told = time.monotonic(), False
        while True:
            hosts = self.look().hosts
            behind = [row for row in hosts if row["writes"] < form]
            if not behind:
                return
            limit_s = HEAR_S + 2 * max(row["lease_s"] for row in hosts)
            if time.monotonic() - begun > limit_s:
                names = ", ".join(map(shown, behind))
                raise errors.CallTimeout(
                    f"{names} has not heard within {limit_s:g} s that form {form} is to be written: no record is lost, "
                    "run as_server upgrade again"
                )
            if not told:
                names = ", ".join(row["server_id"] for row in behind)
                self._say(f"form {form} is written from now on; it takes half a lease until all have heard: {names}")
                told = True
            time.sleep(LOOK_EVERY_S)

    def _rewrite(self, form: int) -> tuple[int, int]:
        """One round over all records: how many there are, and how many were older."""
        after, seen, rewritten, told = "", 0, 0, time.monotonic()
        while True:
            page = cast(RewrittenRow, facts(self._ask({"step": "rewrite", "form": form, "after": after})))
            seen, rewritten, after = seen + page["seen"], rewritten + page["rewritten"], page["following"]
            if not after:
                return seen, rewritten
            if time.monotonic() - told > TELL_EVERY_S:
                told = time.monotonic()
                self._say(f"{seen:,} records looked at, {rewritten:,} rewritten")

    def _step(self, step: str, form: int = 0) -> Forms:
        row = cast(FormsRow, facts(self._ask({"step": step, "form": form})))
        return Forms(row["form"], row["former"], cast("list[ReaderRow]", rows(row["hosts"])))

    def _ask(self, options: dict[str, object]) -> object:
        link = self._link
        body = request_body(link, Op.UPGRADE, (), {})
        answer: object = value_of(link, link.call("", Op.UPGRADE, body, options=options, timeout=DEFAULT_TIMEOUT_S))
        return answer


def shown(row: ReaderRow) -> str:
    """A host as people know it."""
    if not row["address"]:
        return f"{row['incarnation']} (which has told nothing of itself yet)"
    state = f", {row['state']}" if row["state"] != "held" else ""
    return f"{row['server_id']} at {row['address']} (zmqagents {row['version']}{state})"
