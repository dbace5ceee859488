"""Which member a new agent goes to, and what members say of themselves. Pure: records in, a choice out.

The less loaded of two members taken at random: that is nearly as even as the least loaded of all, and hosts that choose
at the same time do not all take the same one. To the load in a member's record comes what was placed there since that
record was written.

*Labels* that an agent asks for are said where it is made, or else by its class. What a class asks for each member tells
of its own version of the class, and is judged by that.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from ..checks import check_host
from ..errors import ConfigError
from ..store.cluster import MemberRow
from ..store.forms import UNKNOWN, Forms

__all__ = ["MemberInfo", "Placement", "info_of", "record_of", "shown_labels"]


@dataclass(frozen=True)
class MemberInfo:
    """A member, as it describes itself. ``classes``: each class that it runs, with its state version.

    ``forms``: of records, that it reads; ``writes``: the one that it writes, 0 for none yet.
    """

    incarnation: str
    address: str
    version: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)
    load: float = 0.0  # agents, each with its running calls on top
    draining: bool = False
    lease_left_s: float = 0.0
    number: int | None = None
    figures: Mapping[str, int] = field(default_factory=dict)  # counts since its start, for people
    needs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # the labels that some of its classes ask for
    forms: Forms = UNKNOWN
    writes: int = 0

    def takes(self, cls: str, version: int, labels: Mapping[str, str] | None = None) -> bool:
        """Whether an agent of this class, state version and labels may be placed here."""
        if self.draining or self.lease_left_s <= 0 or self.classes.get(cls, -1) < version:
            return False
        return self.has(self.asked_by(cls, labels))

    def asked_by(self, cls: str, labels: Mapping[str, str] | None) -> Mapping[str, str]:
        """The labels that an agent asks for: ``labels``, or what its class says here if that is None."""
        return self.needs.get(cls, {}) if labels is None else labels

    def has(self, labels: Mapping[str, str]) -> bool:
        """Whether it has all of these labels."""
        return labels.items() <= self.labels.items()


def record_of(info: MemberInfo) -> bytes:
    """What a beat says of a member."""
    said = {key: value for key, value in asdict(info).items() if key in _SAID and (value or key != "needs")}
    return json.dumps(said, separators=(",", ":")).encode()


_SAID = ("address", "version", "labels", "classes", "load", "figures", "needs")


def info_of(row: MemberRow) -> MemberInfo | None:
    """The member of a row; None if its record is not understood."""
    try:
        said = json.loads(row.record)
        return MemberInfo(
            row.incarnation, _address(said["address"]), str(said["version"]),
            {str(key): str(value) for key, value in said["labels"].items()},
            {str(key): int(value) for key, value in said["classes"].items()},
            float(said["load"]), row.draining, row.lease_left_us / 1e6, row.number,
            {str(key): int(value) for key, value in said.get("figures", {}).items()},
            {str(key): dict(value) for key, value in said.get("needs", {}).items()}, row.forms, row.writes,
        )  # fmt: skip
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, ConfigError):
        return None  # something else has written there


def _address(said: str) -> str:
    """An address that a connection can be made to. Raises what `info_of` takes for a record of something else."""
    host, _, port = said.rpartition(":")
    check_host(host)
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65_536):
        raise ValueError(said)
    return said


def shown_labels(labels: Mapping[str, str]) -> str:
    """Labels as a text: ``gpu=yes, zone=a``."""
    return ", ".join(f"{name}={value}" for name, value in sorted(labels.items()))


class Placement:
    """The members that there are, and what was placed on them lately. For one thread."""

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance = chance or random.Random()
        self._members: dict[str, MemberInfo] = {}
        self._placed: Counter[str] = Counter()  # since the record that is known

    def __repr__(self) -> str:
        return f"<Placement over {len(self._members)} members>"

    @property
    def members(self) -> list[MemberInfo]:
        """All that are known."""
        return list(self._members.values())

    def find(self, incarnation: str) -> MemberInfo | None:
        """The member of an incarnation, if it is known."""
        return self._members.get(incarnation)

    def saw(self, members: Iterable[MemberInfo]) -> None:
        """These are the members now."""
        now = {member.incarnation: member for member in members}
        for incarnation, member in now.items():
            known = self._members.get(incarnation)
            if known is None or known.number != member.number:
                self._placed.pop(incarnation, None)
        for incarnation in self._members.keys() - now.keys():
            self._placed.pop(incarnation, None)
        self._members = now

    def drop(self, incarnation: str) -> None:
        """It is dead, or it does not answer."""
        self._members.pop(incarnation, None)
        self._placed.pop(incarnation, None)

    def choose(
        self, cls: str, version: int, labels: Mapping[str, str] | None = None, *, but: Iterable[str] = ()
    ) -> MemberInfo | None:
        """The member that a new agent goes to; None if none takes it (see `why_none`). ``but``: not one of these."""
        without = set(but)
        able = [
            member
            for member in self._members.values()
            if member.incarnation not in without and member.takes(cls, version, labels)
        ]
        if not able:
            return None
        pair = self._chance.sample(able, min(2, len(able)))
        best = min(pair, key=lambda member: member.load + self._placed[member.incarnation])  # the first of equal ones
        self._placed[best.incarnation] += 1
        return best

    def why_none(
        self, cls: str, version: int, labels: Mapping[str, str] | None = None, *, but: Iterable[str] = ()
    ) -> str:  # fmt: skip
        """Why no member takes an agent, as a sentence. ``but``: as for `choose`."""
        without = set(but)
        members = [member for member in self._members.values() if member.incarnation not in without]
        if not members:
            return f"the cluster has no {'other ' if self._members else ''}member that beats"
        some = "other member" if without & self._members.keys() else "member"
        having = [member for member in members if cls in member.classes]
        if not having:
            return f"no {some} has the class {cls}"
        reading = [member for member in having if member.classes[cls] >= version]
        if not reading:
            return f"no {some} reads version {version} of the state of {cls}"
        if not any(member.has(member.asked_by(cls, labels)) for member in reading):
            asked = sorted({shown_labels(member.asked_by(cls, labels)) for member in reading})
            return f"no {some} with the class {cls} has the labels {' or '.join(asked)}"
        return f"all {some}s that may have {cls} are draining or do not beat"
