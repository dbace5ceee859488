"""The records of a cluster, in Redis: its members, and where each agent lives and what its state is.

`ClusterRecords` is the only way there. Its operations are the scripts of `store.cluster_scripts`, which says what the
keys are and why each of these may be repeated and may come late. What members do is a method; what is done to agents is
a *request*, a named tuple, so that many can be sent in one round trip (`ClusterRecords.exchange`) and so that one which
had no answer can be sent again as it was:

    Claim → Mine, Other or Unclaimed    Save → Saved      Release → Released
    Delete → Deleted                    Locate → Located

An answer may also be a `StoreError`: `StoreFull` from a Redis at its maxmemory, which may take the same request later,
and a plain one if the record is not as this package writes it. `StoreUnavailable` is raised: nothing is known of any of
the requests then.

Times are microseconds of Redis's own clock, except where the name ends in ``_s``.
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import ConfigError, StoreError
from ..version import __version__
from .cluster_scripts import ClusterScripts, cluster_scripts
from .forms import FORMS, UNKNOWN, Forms, Rewritten
from .redis_client import Command, RedisClient
from .reminders import Change, Held, Polled, Row, Set, arguments_of, held_of, polled_of, rows_of

__all__ = [
    "BUCKETS", "MAX_AGENTS", "Answer", "Beat", "Claim", "ClusterRecords", "Delete", "Deleted", "Joined",
    "Locate", "Located", "LogEntry", "MemberRow", "Mine", "NamePage", "Other", "Outcome",
    "RecordForms", "Refusal", "Release", "Released", "Request", "Save", "Saved", "Unclaimed", "Verdict", "bucket_of",
]  # fmt: skip

BUCKETS = 256
BUCKETS_OF_PAGE = 16  # that are looked at for one page of `rewrite`: claims and saves of the host wait meanwhile
MAX_AGENTS = 1_000_000
# A bucket has 3,906 of a million names on average, with a deviation of 62: at 4,300 it is the cluster that is full.
BUCKET_NAMES = MAX_AGENTS // BUCKETS * 11 // 10


def bucket_of(name: str) -> int:
    """The bucket that the agent ``name`` is in."""
    return zlib.crc32(name.encode()) & (BUCKETS - 1)


# ---------------------------------------------------------------- members


class Joined(NamedTuple):
    """What a host learns before its first beat: Redis's time, for its incarnation, and the form that is written."""

    now_us: int
    form: int


class MemberRow(NamedTuple):
    """An incarnation that has not been declared dead.

    ``number``: of its last beat; None if Redis has no record of it, and then ``lease_us`` is 0. ``lease_us``: how long
    its lease is; ``lease_left_us``: what is left of it, below 0 when it is over. ``start``: the token of the start of
    its process. ``record``: what it says of itself, in its own bytes. ``forms``: of records, that it reads; ``writes``:
    the one that it writes, 0 if it has not been told yet.
    """

    incarnation: str
    lease_left_us: int
    number: int | None
    draining: bool
    start: str
    record: bytes
    lease_us: int = 0
    forms: Forms = UNKNOWN
    writes: int = 0


class Beat(NamedTuple):
    """The answer to a beat.

    ``alive`` False: this incarnation is dead, for ever. ``away``: Redis has been away, and has given all a new lease.
    ``view``: counts the changes of the members. ``form``: that records are to be written in.
    """

    alive: bool
    now_us: int
    view: int = 0
    away: bool = False
    members: tuple[MemberRow, ...] = ()
    form: int = 0


class RecordForms(NamedTuple):
    """The form that records are written in, the oldest that one may have, and what the members read and write."""

    form: int
    former: int
    members: tuple[MemberRow, ...]


class LogEntry(NamedTuple):
    """What has happened to a member or an agent. ``kind``: joined, draining, died, moved, fenced, upgraded."""

    entry_id: str
    kind: str
    what: str


# ---------------------------------------------------------------- what is asked


class Outcome(NamedTuple):
    """What an ``@once`` call has ended in, in the bytes of its host; kept for ``left_s`` more."""

    task_id: str
    left_s: float
    value: bytes


class Claim(NamedTuple):
    """Let ``owner`` run the agent from now on, as its activation ``number``.

    ``dead``: the owner that is known to be dead, from which the agent may be taken. ``new``: there must be no agent of
    the name. ``arguments`` and ``options`` are what it is made with, if there is none; ``form`` is theirs. ``unseen``:
    nobody has looked where the agent is; one that was made with options is not claimed so, for they may want another
    host.
    """

    name: str
    owner: str
    number: int
    cls: str
    version: int
    dead: str = ""
    new: bool = False
    arguments: bytes = b""
    options: bytes = b""
    form: int = FORMS.oldest
    unseen: bool = False


class Save(NamedTuple):
    """Write a state on top of ``revision``, and the outcomes of calls along with it.

    ``state`` None: the agent has none, and only what goes with it is written. ``call``: the task id of the ``@once``
    call that has led to this state, "" for none. ``forget``: task ids whose outcomes are needed no more. ``heal``: also
    if Redis has lost what was written before. ``reminders``: how the agent's reminders change. ``form``: of all of it.
    """

    name: str
    owner: str
    epoch: int
    revision: int
    version: int
    state: bytes | None
    call: str = ""
    outcomes: tuple[Outcome, ...] = ()
    forget: tuple[str, ...] = ()
    heal: bool = False
    reminders: tuple[Change, ...] = ()
    form: int = FORMS.oldest

    @property
    def size(self) -> int:
        """Bytes of what is written."""
        size = len(self.state or b"") + sum(len(outcome.value) for outcome in self.outcomes)
        return size + sum(len(change.what) for change in self.reminders if isinstance(change, Set))


class Release(NamedTuple):
    """Give the agent to ``following``, or to nobody; with ``last``, save it in the same step."""

    name: str
    owner: str
    epoch: int
    following: str = ""
    last: Save | None = None


class Delete(NamedTuple):
    """Remove the agent, its state and all that is kept of its calls."""

    name: str
    owner: str
    epoch: int


class Locate(NamedTuple):
    """Where is the agent? ``mark``: anything that tells this question from others; it is not sent."""

    name: str
    mark: int = 0


Request = Claim | Save | Release | Delete | Locate


# ---------------------------------------------------------------- what is answered


class Mine(NamedTuple):
    """The agent is the claimer's. ``version`` and ``state`` are None for one that has never been saved.

    ``fresh``: there was none before.
    """

    epoch: int
    revision: int
    version: int | None
    state: bytes | None
    arguments: bytes
    options: bytes
    outcomes: tuple[Outcome, ...]
    reminders: tuple[Row, ...] = ()
    fresh: bool = False


class Other(NamedTuple):
    """The agent is another one's."""

    owner: str
    epoch: int


class Refusal(enum.Enum):
    """Why a claim changed nothing."""

    EXISTS = "exists"  # of this name there is an agent, or one of another class
    NEWER = "newer"  # its state was written by a later version of the class
    STALE = "stale"  # a later activation of the same owner has claimed it
    FORM = "form"  # its record has a form that this host does not read
    FULL = "full"  # the cluster has as many agents as it may have
    CHOSEN = "chosen"  # it was ``unseen``, and the agent has options


class Unclaimed(NamedTuple):
    """The claim was refused. ``detail``: the class that the agent has, the version of its state, its record's form."""

    why: Refusal
    detail: str = ""


class Verdict(enum.Enum):
    """What a save has come to."""

    SAVED = "saved"
    TAKEN = "taken"  # it had been saved before
    HAD = "had"  # its call has had an effect before: nothing was written
    BEHIND = "behind"  # Redis has an earlier revision than it starts from: nothing was written
    FENCED = "fenced"  # the activation has been replaced: nothing was written


class Saved(NamedTuple):
    """The answer to a save. ``outcome``: for HAD, that of the former execution. ``revision``: for BEHIND, Redis's."""

    verdict: Verdict
    outcome: bytes = b""
    revision: int = 0


class Released(NamedTuple):
    """The answer to a release. ``behind``: as for `Verdict.BEHIND`. Neither: the agent was another activation's."""

    done: bool
    epoch: int = 0
    behind: bool = False


class Deleted(NamedTuple):
    """The answer to a deletion. ``fenced``: nothing was done, for the agent is another activation's."""

    fenced: bool


class Located(NamedTuple):
    """Where an agent is. ``owner``: "" for nobody; ``cls``: "" if there is no such agent; ``options``: its own."""

    owner: str
    epoch: int
    number: int
    revision: int
    cls: str
    options: bytes = b""


Answer = Mine | Other | Unclaimed | Saved | Released | Deleted | Located | StoreError


class NamePage(NamedTuple):
    """Some names of agents, each with its owner and epoch; ``following``: where to go on, "" at the end."""

    rows: tuple[tuple[str, str, int], ...]
    following: str


# ---------------------------------------------------------------- the records


class ClusterRecords:
    """The records of the cluster ``namespace`` in the Redis at ``url``. Each thread has one of its own.

    All methods raise `StoreUnavailable` if Redis does not answer; what was asked may have been done then, and may still
    be done later. ``scripts`` are the product's, unless a test has others. ``forms``: of records, that this host reads.
    """

    def __init__(
        self, url: str, namespace: str, *, scripts: ClusterScripts | None = None, forms: Forms = FORMS
    ) -> None:
        self._forms = forms
        self._scripts = scripts or cluster_scripts()
        self._client = RedisClient(url, self._scripts)
        self._base = f"za:{{{namespace}}}:"
        self._namespace = namespace
        self.shown_url = self._client.shown_url

    def __repr__(self) -> str:
        return f"<ClusterRecords {self._namespace} at {self.shown_url}>"

    @property
    def identity(self) -> str:
        """Names the server and its history, as of the latest connection; another one: writes may have been lost.

        That is its ``run_id`` and its ``master_replid``: a server that was replaced, followed its successor and was
        made the master again has the same run id, and another history. Of a Redis Cluster: of all its primaries.
        """
        return self._client.identity

    def look(self) -> None:
        """Notice if a node of a Redis Cluster is another one by now, without asking it anything; see `identity`."""
        self._client.look()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def check_settings(self) -> None:
        """Raise `ConfigError` if Redis may throw records away on its own."""
        policy = self._client.policy()
        if policy.startswith("allkeys-"):
            raise ConfigError(
                f"Redis at {self.shown_url} has the maxmemory-policy {policy}: it would drop the cluster's records; "
                "set noeviction"
            )

    # ------------------------------------------------------------ members

    def join(self, fingerprint: str) -> Joined:
        """Ask whether a host with the key of this ``fingerprint`` may join. Raises `ConfigError` if not."""
        oldest, newest = self._forms
        verdict, now, form = self._run(self._scripts.join, (fingerprint, oldest, newest))
        if verdict == b"key":
            raise ConfigError(f"the cluster {self._namespace} has another key than this host")
        if verdict == b"older":
            raise ConfigError(
                f"the records of the cluster {self._namespace} are written in form {form}, and this host (zmqagents "
                f"{__version__}) knows forms up to {newest}: install the version of the hosts that are members"
            )
        if verdict == b"newer":
            raise ConfigError(
                f"the cluster {self._namespace} may still have records of form {form}, and this host (zmqagents "
                f"{__version__}) knows forms from {oldest} on: bring all of them to form {oldest} with the members "
                "that there are (as_server upgrade), then start this host"
            )
        return Joined(int(now), form)

    def beat(
        self, incarnation: str, number: int, *, lease_s: float, draining: bool, start: str, record: bytes,
        writes: int = 0,
    ) -> Beat:  # fmt: skip
        """Say that ``incarnation`` lives, for ``lease_s`` from now. ``number`` rises with each beat.

        ``writes``: the form that it writes, 0 if it has not been told yet.
        """
        arguments = (incarnation, number, int(draining), start, record, *_lease_us(lease_s), *self._forms, writes)
        verdict, now, *rest = self._run(self._scripts.beat, arguments)
        if verdict != b"alive":
            return Beat(False, int(now))
        view, away, form, rows = rest
        return Beat(True, int(now), view, bool(away), tuple(map(_member, rows)), form)

    def declare(self, incarnation: str, number: int | None, *, watched: bool, lease_s: float) -> bool:
        """Declare ``incarnation`` dead, if its lease is over; True if it is dead now or was before.

        ``watched``: the caller has seen for a whole lease that its beat number is ``number`` (None: that there is no
        record of it). Else this only asks; one that Redis does not know gets a lease.
        """
        seen = "" if number is None else number
        answer = self._run(self._scripts.declare, (incarnation, seen, int(watched), *_lease_us(lease_s)))
        return bool(answer == b"dead")

    def obituary(self, start: str) -> tuple[str, ...]:
        """Tell that the process which was started with this token has ended; its incarnations, which are dead now."""
        if not start or not start.isalnum():
            raise ValueError(f"a start has a token of letters and digits, not {start!r}")
        return tuple(map(bytes.decode, self._run(self._scripts.obituary, (start,))))

    def note(self, kind: str, what: str) -> None:
        """Write into the log what has happened to an agent."""
        self._run(self._scripts.note, (kind, what))

    def log(self, after: str = "", most: int = 500) -> tuple[LogEntry, ...]:
        """What has happened, the oldest first. ``after``: the id of an entry that is known."""
        rows = self._run(self._scripts.log, (after, most))
        return tuple(LogEntry(entry.decode(), fields[1].decode(), fields[3].decode()) for entry, fields in rows)

    # ------------------------------------------------------------ the form

    def forms(self) -> RecordForms:
        """The form that records have, and what the members read and write."""
        return self._upgrade("look", 0)

    def raise_form(self, form: int) -> RecordForms:
        """Have ``form`` written from now on, if all members read it; else nothing changes."""
        return self._upgrade("raise", form)

    def settle_form(self, form: int) -> RecordForms:
        """No record is older than ``form``, if that is written, by all members; else nothing changes."""
        return self._upgrade("settle", form)

    def _upgrade(self, step: str, form: int) -> RecordForms:
        _, written, former, rows = self._run(self._scripts.upgrade, (step, form))
        return RecordForms(written, former, tuple(map(_member, rows)))

    def rewrite(self, form: int, after: str = "", most: int = 500) -> Rewritten:
        """Bring a page of the records to ``form``, if they are older; ``after``: what the page before gave."""
        number, _, last = after.partition(":")
        first, seen, rewritten = int(number or "0", 16), 0, 0
        for bucket in range(first, min(first + BUCKETS_OF_PAGE, BUCKETS)):
            asked = (last, most - seen, form)
            looked, changed, name = self._client.run(self._scripts.rewrite, self._bucket_key(bucket), asked)
            seen, rewritten, last = seen + looked, rewritten + changed, ""
            if seen >= most:
                return Rewritten(seen, rewritten, f"{bucket:02x}:{name.decode()}")
        following = first + BUCKETS_OF_PAGE
        return Rewritten(seen, rewritten, f"{following:02x}:" if following < BUCKETS else "")

    # ------------------------------------------------------------ agents

    def exchange(self, requests: Sequence[Request]) -> list[Answer]:
        """The answers to ``requests``, which are carried out in their order, in one round trip."""
        answers = self._client.run_many([self._command(request) for request in requests], tolerant=True)
        return [_answer(request, answer) for request, answer in zip(requests, answers, strict=True)]

    def names(self, prefix: str = "", after: str = "", most: int = 500) -> NamePage:
        """A page of the agents whose names begin with ``prefix``; ``after``: what the page before gave."""
        number, _, last = after.partition(":")
        rows: list[tuple[str, str, int]] = []
        for bucket in range(int(number or "0", 16), BUCKETS):
            key = self._bucket_key(bucket)
            found = self._client.run(self._scripts.names, key, (last, prefix, most - len(rows)))
            rows += [(name.decode(), owner.decode(), int(epoch)) for name, owner, epoch in found]
            if len(rows) >= most:
                return NamePage(tuple(rows), f"{bucket:02x}:{rows[-1][0]}")
            last = ""
        return NamePage(tuple(rows), "")

    def count(self) -> int:
        """How many agents the cluster has."""
        answers = self._client.run_many([(self._scripts.size, self._bucket_key(b), ()) for b in range(BUCKETS)])
        return sum(map(int, answers))

    # ------------------------------------------------------------ reminders

    def due(self, buckets: Sequence[int], *, for_s: float, most: int) -> list[Polled]:
        """Have what is due in ``buckets`` handed out for so long, ``most`` of each bucket."""
        arguments = (round(for_s * 1e6), most)
        commands = [(self._scripts.due, self._bucket_key(bucket), arguments) for bucket in buckets]
        answers = self._client.run_many(commands, tolerant=True)
        return [polled_of(bucket, answer) for bucket, answer in zip(buckets, answers, strict=True)]

    def hold(self, held: Sequence[Held]) -> None:
        """Have what was handed out handed out later, or sooner."""
        by_bucket: dict[int, list[Held]] = {}
        for each in held:
            by_bucket.setdefault(bucket_of(each.agent), []).append(each)
        commands = [(self._scripts.hold, self._bucket_key(b), tuple(held_of(some))) for b, some in by_bucket.items()]
        self._client.run_many(commands, tolerant=True)

    def reminders(self, name: str) -> tuple[Row, ...]:
        """The reminders of an agent."""
        pairs, now = self._client.run(self._scripts.reminders, self._bucket_key(bucket_of(name)), (name,))
        return rows_of(pairs, int(now))

    def key_of(self, name: str) -> str:
        """The key of an agent's record."""
        return f"{self._bucket_key(bucket_of(name))}a:{name}"

    def _bucket_key(self, bucket: int) -> str:
        return f"za:{{{self._namespace}/{bucket:02x}}}:"

    def _command(self, request: Request) -> Command:
        scripts = self._scripts
        key = self._bucket_key(bucket_of(request.name))
        if isinstance(request, Claim):
            return scripts.claim, key, (
                request.name, request.owner, request.number, request.cls, request.version, request.dead, BUCKET_NAMES,
                int(request.new), request.arguments, request.options, request.form, *self._forms, int(request.unseen),
            )  # fmt: skip
        if isinstance(request, Locate):
            return scripts.locate, key, (request.name,)
        of_activation = (request.name, request.owner, request.epoch)
        if isinstance(request, Save):
            return scripts.save, key, (*of_activation, *_body(request), request.call, *_kept(request))
        if isinstance(request, Delete):
            return scripts.delete, key, of_activation
        last = request.last
        if last is None:
            return scripts.release, key, (*of_activation, request.following, 0)
        return scripts.release, key, (*of_activation, request.following, 1, *_body(last), *_kept(last))

    def _run(self, script: Any, arguments: tuple[Any, ...]) -> Any:
        return self._client.run(script, self._base, arguments)


def _lease_us(lease_s: float) -> tuple[int, int]:
    """The lease, and how long nobody has beaten when it is Redis that was away."""
    return round(lease_s * 1e6), round(lease_s * 0.75e6)


def _member(row: tuple[bytes, bytes, bytes]) -> MemberRow:
    incarnation, left, value = row
    who = incarnation.decode(errors="replace")
    try:
        number, draining, start, lease, oldest, newest, writes, record = value.split(b" ", 7)
        return MemberRow(
            who, int(left), int(number), draining == b"1", start.decode(), record, int(lease),
            Forms(int(oldest), int(newest)), int(writes),
        )  # fmt: skip
    except ValueError:  # there is none, or something else has written there
        return MemberRow(who, int(left), None, False, "", b"")


def _body(save: Save) -> tuple[Any, ...]:
    version = "" if save.state is None else save.version
    return save.revision, version, save.state or b"", int(save.heal), save.form


def _kept(save: Save) -> Iterator[Any]:
    """What the scripts' ``remind`` and ``keep`` take."""
    yield from arguments_of(save.reminders)
    yield len(save.forget)
    yield from save.forget
    for outcome in save.outcomes:
        yield from (outcome.task_id, max(1, round(outcome.left_s * 1000)), outcome.value)


def _answer(request: Request, answer: Any) -> Answer:
    if isinstance(answer, StoreError):
        return answer
    try:
        read: Answer = _READERS[type(request)](answer)
        return read
    except (ValueError, TypeError, LookupError) as exc:  # something else has written there
        return StoreError(f"the record of {request.name} is not understood: {exc}")


def _claimed(answer: list[Any]) -> Mine | Other | Unclaimed:
    verdict, *rest = answer
    if verdict == b"mine":
        epoch, revision, version, state, arguments, options, outcomes, reminders, now, fresh = rest
        pairs = zip(outcomes[::2], outcomes[1::2], strict=True)
        kept = tuple(_outcome(task_id, value, int(now)) for task_id, value in pairs)
        number = None if version is None else int(version)
        rows = rows_of(reminders, int(now)) if reminders else ()
        return Mine(int(epoch), int(revision), number, state, arguments or b"", options or b"", kept, rows, bool(fresh))
    if verdict == b"other":
        return Other(rest[0].decode(), int(rest[1]))
    return Unclaimed(Refusal(verdict.decode()), rest[0].decode() if rest else "")


def _outcome(task_id: bytes, value: bytes, now_us: int) -> Outcome:
    until, _, body = value.partition(b":")
    return Outcome(task_id.decode(), max(0.0, (int(until) - now_us) / 1e6), body)


def _saved(answer: list[Any]) -> Saved:
    verdict = Verdict(answer[0].decode())
    if verdict is Verdict.HAD:
        return Saved(verdict, outcome=answer[1].partition(b":")[2])
    return Saved(verdict, revision=int(answer[1]) if verdict is Verdict.BEHIND else 0)


def _released(answer: list[Any]) -> Released:
    if answer[0] == b"released":
        return Released(True, int(answer[1]))
    return Released(False, behind=answer[0] == b"behind")


def _deleted(answer: bytes) -> Deleted:
    return Deleted(answer == b"fenced")


def _located(answer: list[Any]) -> Located:
    owner, epoch, number, revision, cls, options = answer
    return Located(
        (owner or b"").decode(), int(epoch or 0), int(number or 0), int(revision or 0), (cls or b"").decode(),
        options or b"",
    )  # fmt: skip


_READERS: Mapping[type, Any] = {
    Claim: _claimed, Save: _saved, Release: _released, Delete: _deleted, Locate: _located,
}  # fmt: skip
