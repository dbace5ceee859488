"""How much of each limit one key may take, so that one caller cannot use up what others need.

Every user has an `Account`: a key of the key store, or the Unix user at the other end of the Unix socket. Its numbers
say how much of each limit calls of that user hold. A call that another call makes counts for the user whose call began
the chain. A `Share` judges one limit by two rules:

    below seven eighths of the limit    everybody may take
    the last eighth                     is divided evenly among the users that the host knows at that moment

So one user alone gets all but an eighth, and a user that holds nothing always finds something left. A limit below 8 has
no eighth to keep, and only the limit counts. Of worker slots one user alone gets all: the eighth for others, one slot
at least, comes beside them.

What waits, waits in a `FairQueue`: the users have their turns one after the other, however much each has there.

The numbers are counted where a thing is taken and given back, and no more than a comparison of two numbers is needed
until seven eighths are taken. All of this but `Turn` belongs to the router thread.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from ..config import BrokerConfig

__all__ = ["Account", "FairQueue", "Share", "Shares", "Turn"]

T = TypeVar("T")

KEPT_FOR_OTHERS = 8  # one part in so many
STREAMS = 4  # one call in so many may be a stream whose reader takes nothing
FETCHES = 4  # and one in so many a question to a shared store
EARLY = 64  # one in so many a question that came before its call: few do, and those only for a moment
LISTINGS = 64  # requests for a list that wait for the thread which answers them
TURN_S = 5.0  # for the longest payload, which takes 1 s
LOOK_S = 0.05  # how often a thread that waits for its turn looks whether its call is cancelled


class Turn:
    """The turn of one user's threads at reading what is long: a lock that a thread loses which keeps it for too long.

    Any thread may use it.
    """

    __slots__ = ("_guard", "_holder", "_lock", "_since")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._guard = threading.Lock()  # of the other two
        self._holder = 0  # the ident of the thread that has the turn
        self._since = 0.0

    def take(self, is_over: Callable[[], bool]) -> None:
        """Wait until the calling thread has the turn, or ``is_over()``."""
        while not self._lock.acquire(timeout=LOOK_S):
            with self._guard:
                is_stuck = self._holder and time.monotonic() - self._since > TURN_S
                if is_stuck:
                    self._note_holder()
            if is_stuck or is_over():
                return
        with self._guard:
            self._note_holder()

    def leave(self) -> None:
        """Give the turn to the next thread, if the calling thread has it."""
        with self._guard:
            if self._holder == threading.get_ident():
                self._holder = 0
                self._lock.release()

    def _note_holder(self) -> None:
        self._holder, self._since = threading.get_ident(), time.monotonic()


class Account:
    """What one user holds: see the attributes. ``key`` is the name that the authentication has found."""

    __slots__ = (
        "__weakref__", "_everybody", "agents", "calls", "early", "fetches", "key", "kept_bytes", "listings",
        "made_bytes", "queued_bytes", "reading", "slots", "streams", "unread_bytes", "waits",
    )  # fmt: skip

    def __init__(self, key: str = "", everybody: Account | None = None) -> None:
        self.key = key
        self._everybody = everybody  # what all hold together
        self.calls = 0  # accepted and not answered
        self.slots = 0  # calls that run in a worker
        self.waits = 0  # threads that wait for other calls
        self.streams = 0  # whose reader has granted no credit
        self.queued_bytes = 0  # of arguments of calls that have not started
        self.agents = 0
        self.made_bytes = 0  # of arguments that agents were made with, kept to make these again
        self.fetches = 0  # that wait for the answer of a shared store
        self.early = 0  # that wait for their call to come
        self.listings = 0  # that wait for their turn
        self.kept_bytes = 0  # of replies for clients whose connection is lost
        self.unread_bytes = 0  # of messages for which connections have no room
        self.reading = Turn()  # at long payloads, for the worker threads; see `execution.turns`

    def leave_unread(self, size: int) -> None:
        """``size`` more bytes wait for clients of the user that do not read them; fewer if it is negative."""
        self.unread_bytes += size
        if self._everybody is not None:
            self._everybody.unread_bytes += size

    def keep(self, size: int) -> None:
        """``size`` more bytes are kept for a lost client of the user; fewer if it is negative."""
        self.kept_bytes += size

    def keep_arguments(self, size: int) -> None:
        """``size`` more bytes are kept of what an agent of the user was made with; fewer if it is negative."""
        self.made_bytes += size
        if self._everybody is not None:
            self._everybody.made_bytes += size

    def list(self, requests: int) -> None:
        """``requests`` more for a list wait for their turn; fewer if it is negative."""
        self.listings += requests

    def __repr__(self) -> str:
        return (
            f"<Account {self.key} [{self.calls} calls, {self.waits} waits, {self.streams} streams, "
            f"{self.agents} agents]>"
        )


class Share:
    """One limit and its ``setting``. Below ``free`` nobody is refused; from there on ask `refuses`."""

    __slots__ = ("_accounts", "_what", "free", "limit", "refused", "setting")

    def __init__(
        self, what: str, setting: str, limit: int, accounts: WeakValueDictionary[str, Account], kept: int | None = None
    ) -> None:
        self.setting = setting
        self.limit = limit
        self.free = limit - (limit // KEPT_FOR_OTHERS if kept is None else kept)
        self.refused = 0  # how often `reason` was asked for
        self._what = what
        self._accounts = accounts

    def refuses(self, held: int, taken: int) -> bool:
        """Whether a user that holds ``held`` may take no more, when all together hold ``taken``."""
        if taken < self.free:
            return False
        part = (self.limit - self.free) // max(1, len(self._accounts))
        return taken >= self.limit or held >= max(1, part)

    def room(self, held: int, taken: int) -> int:
        """How much more a user that holds ``held`` may take, when all together hold ``taken``."""
        part = (self.limit - self.free) // max(1, len(self._accounts))
        return max(0, self.free - taken, min(part - held, self.limit - taken))

    def reason(self, held: int, taken: int) -> str:
        """The text of a refusal, which is counted."""
        self.refused += 1
        share = f", {held} of them of this user: its share is used up" if taken < self.limit else ""
        return f"{taken} {self._what}{share}, limit {self.limit} ({self.setting})"


class FairQueue(Generic[T]):
    """What waits, of several users: `pop` takes from each in turn, and of each what has waited longest.

    A thing is in the queue once at most. Iteration is in the order in which `pop` would take.
    """

    __slots__ = ("_rows", "count")

    def __init__(self) -> None:
        self._rows: OrderedDict[Account, OrderedDict[T, None]] = OrderedDict()  # first the user whose turn is next
        self.count = 0  # of what waits; read in the way of every call, where `len` costs more

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[T]:
        rows = [iter(row) for row in self._rows.values()]
        while rows:
            left = []
            for row in rows:
                for thing in row:
                    yield thing
                    left.append(row)
                    break
            rows = left

    @property
    def users(self) -> Iterator[Account]:
        """Those of whom something waits, in the order of their turns."""
        return iter(self._rows)

    def add(self, account: Account, thing: T) -> None:
        """Put ``thing`` at the end of what waits of this user."""
        row = self._rows.get(account)
        if row is None:
            row = self._rows[account] = OrderedDict()
        row[thing] = None
        self.count += 1

    def remove(self, account: Account, thing: T) -> None:
        """Take ``thing`` out, if it is there."""
        row = self._rows.get(account)
        if row is not None and thing in row:
            del row[thing]
            self.count -= 1
            if not row:
                del self._rows[account]

    def pop(self, account: Account | None = None) -> T:
        """Take what is next: of this user, else of the one whose turn it is. KeyError if there is nothing."""
        if account is None:
            account = next(iter(self._rows), None)
            if account is None:
                raise KeyError("nothing waits")
        row = self._rows[account]
        thing, _ = row.popitem(last=False)
        self.count -= 1
        if not row:
            del self._rows[account]
        elif len(self._rows) > 1:
            self._rows.move_to_end(account)
        return thing

    def held(self, account: Account) -> int:
        """How much waits of this user."""
        row = self._rows.get(account)
        return 0 if row is None else len(row)


class Shares:
    """The shares of one host, and the accounts of its users."""

    def __init__(self, config: BrokerConfig) -> None:
        self._accounts: WeakValueDictionary[str, Account] = WeakValueDictionary()
        self.everybody = Account()  # of what is counted for all together, too

        def share(what: str, setting: str, limit: int) -> Share:
            return Share(what, setting, limit, self._accounts)

        self.calls = share("calls of the host are open", "max_calls", config.max_calls)
        beside = max(1, config.capacity // KEPT_FOR_OTHERS)
        self.slots = Share("calls run", "capacity", config.capacity + beside, self._accounts, beside)
        self.mailbox = share("calls are queued", "max_mailbox", config.max_mailbox)
        self.waits = share(
            f"calls of this host wait for others beside the {config.capacity} that may run (capacity)",
            f"max_threads={config.max_threads}", config.max_threads - config.capacity,
        )  # fmt: skip
        self.queued_bytes = share("bytes of arguments are queued", "max_queued_bytes", config.max_queued_bytes)
        self.made_bytes = share(
            "bytes are kept of what agents in children were made with", "max_queued_bytes", config.max_queued_bytes
        )
        self.agents = share("agents are on this host", "max_agents", config.max_agents)
        self.children = share("processes run agents of this host", "max_children", config.max_children)
        self.streams = share("streams wait for their readers", "max_calls", max(1, config.max_calls // STREAMS))
        self.fetches = share("fetches wait for the shared store", "max_calls", max(1, config.max_calls // FETCHES))
        self.early = share("fetches wait for calls to come", "max_calls", max(1, config.max_calls // EARLY))
        self.listings = share("lists are asked for", "at once", LISTINGS)
        self.unread_bytes = share(
            "bytes wait for clients that do not read", "twice max_unread_bytes", 2 * config.max_unread_bytes
        )
        self.kept_bytes = share("bytes are kept for lost clients", "max_unread_bytes", config.max_unread_bytes)

    def refused(self) -> dict[str, int]:
        """How often each limit has refused something, by its name here."""
        return {name: share.refused for name, share in vars(self).items() if isinstance(share, Share)}

    def account(self, key: str) -> Account:
        """The account of a user, the same one as long as anything counts for it."""
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = Account(key, self.everybody)
        return account
