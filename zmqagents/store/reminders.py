"""Reminders of agents, as Redis has them: the scripts that change them, and what is asked and answered.

In the keys of an agent's bucket, see `store.cluster_scripts`:

============  ====  =================================================================================================
``r:<name>``  hash  reminder → ``stamp due every what``: see `Row`
``due``       zset  ``<name>\\n<reminder>`` → when it may be handed out: when it is due, or a hand-out is over
============  ====  =================================================================================================

What an agent's owner changes is a `Change`. Changes go with a save or a last save, in the same script, and so they are
fenced and taken once, as the state is. A *stamp* names one tick: a reminder that is set has a new one, and so has each
further tick of one that repeats. So a change that comes late finds another stamp and does nothing.

DUE hands out what is due, and whoever has it calls the agent. Until that long has passed nobody else gets it; HOLD
makes it longer, or shorter. Neither is fenced: the worst that a late one does is that a tick is handed out twice or
later, and the owner knows by the stamp whether it has had it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ..errors import StoreError

__all__ = [
    "DUE", "HOLD", "REMIND", "Change", "Clear", "Done", "Drop", "DueRow", "Held", "Polled", "Row", "Set",
    "arguments_of", "held_of", "polled_of", "rows_of",
]  # fmt: skip

# For the scripts of agents: `name`, `base`, `call`, `clock` and `text` are theirs.
REMIND = """
local reminders, DUE = base .. 'r:' .. name, base .. 'due'
local function place(reminder)
    return name .. '\\n' .. reminder
end
local function drop(reminder)
    call('HDEL', reminders, reminder)
    call('ZREM', DUE, place(reminder))
end
local function drop_all()
    for _, reminder in ipairs(call('HKEYS', reminders)) do call('ZREM', DUE, place(reminder)) end
    call('DEL', reminders)
end
local function put(reminder, stamp, due, every, what)
    call('HSET', reminders, reminder, table.concat({stamp, text(due), every, what}, ' '))
    call('ZADD', DUE, text(due), place(reminder))
end
local function remind(first)  -- ARGV[first]: how many changes; each has six. Gives what is behind them
    local count, now = tonumber(ARGV[first]), nil
    for i = first + 1, first + 6 * count, 6 do
        local kind, reminder, stamp = ARGV[i], ARGV[i + 1], ARGV[i + 2]
        now = now or clock()
        if kind == 'set' then
            put(reminder, stamp, now + ARGV[i + 3], ARGV[i + 4], ARGV[i + 5])
        elseif kind == 'drop' then
            drop(reminder)
        elseif kind == 'clear' then
            drop_all()
        else  -- done: ARGV[i + 3] is the stamp of the tick that follows, one for all that were missed
            local kept = call('HGET', reminders, reminder) or ''
            local its, due, every, what = string.match(kept, '^(%S+) (%d+) (%d+) (.*)$')
            if its == stamp and every == '0' then
                drop(reminder)
            elseif its == stamp then
                due = tonumber(due)
                put(reminder, ARGV[i + 3], due + every * math.max(1, math.floor((now - due) / every) + 1), every, what)
            end
        end
    end
    return first + 6 * count + 1
end
"""

# how long a hand-out lasts, at most how many. Gives the rows, how long until the next is due, and how many there are.
DUE = """
local now, rows = clock(), {}
local found = call('ZRANGEBYSCORE', base .. 'due', '-inf', text(now), 'LIMIT', 0, ARGV[2])
if #found > 0 then beyond_maxmemory() end
for _, place in ipairs(found) do
    local name, reminder = string.match(place, '^([^\\n]*)\\n(.*)$')
    local value = name and call('HGET', base .. 'r:' .. name, reminder)
    if value then
        call('ZADD', base .. 'due', text(now + ARGV[1]), place)
        rows[#rows + 1] = {name, reminder, value}
    else
        call('ZREM', base .. 'due', place)
    end
end
local first = call('ZRANGE', base .. 'due', 0, 0, 'WITHSCORES')
return {text(now), first[2] and text(tonumber(first[2]) - now) or '', call('ZCARD', base .. 'due'), rows}
"""

# for each: name, reminder, stamp, how long from now. Nothing for one that has another stamp.
HOLD = """
beyond_maxmemory()
local now = clock()
for i = 1, #ARGV, 4 do
    local kept = call('HGET', base .. 'r:' .. ARGV[i], ARGV[i + 1])
    if kept and string.match(kept, '^(%S+) ') == ARGV[i + 2] then
        call('ZADD', base .. 'due', text(now + ARGV[i + 3]), ARGV[i] .. '\\n' .. ARGV[i + 1])
    end
end
"""


# ---------------------------------------------------------------- what an owner changes


class Set(NamedTuple):
    """The reminder is due ``after_s`` from when Redis takes this, and every ``every_s`` then; 0: that once."""

    name: str
    stamp: str
    after_s: float
    every_s: float
    what: bytes  # is to be done, in the bytes of the hosts


class Drop(NamedTuple):
    """There is no such reminder any more."""

    name: str


class Done(NamedTuple):
    """The tick ``stamp`` is done. ``following``: the stamp of the next one, should the reminder repeat."""

    name: str
    stamp: str
    following: str


class Clear(NamedTuple):
    """The agent has no reminder; those that it has follow."""


Change = Set | Drop | Done | Clear


# ---------------------------------------------------------------- what is answered


class Row(NamedTuple):
    """A reminder. ``left_s``: until it is due, below 0 when it is late; ``every_s``: 0 for one that does not repeat."""

    name: str
    stamp: str
    left_s: float
    every_s: float
    what: bytes


class DueRow(NamedTuple):
    """A reminder of ``agent`` that is handed out."""

    agent: str
    row: Row


class Polled(NamedTuple):
    """What came of a look at a bucket. ``next_s``: until something may be handed out, None: there is nothing.

    ``held``: how many reminders the bucket has.
    """

    bucket: int
    rows: tuple[DueRow, ...]
    next_s: float | None
    held: int


class Held(NamedTuple):
    """A tick that was handed out is to be handed out again, but not before ``for_s`` from now."""

    agent: str
    name: str
    stamp: str
    for_s: float


# ---------------------------------------------------------------- as Redis has it


def arguments_of(changes: Sequence[Change]) -> Iterator[Any]:
    """What the scripts' ``remind`` takes."""
    yield len(changes)
    for change in changes:
        if isinstance(change, Set):
            yield from ("set", change.name, change.stamp, _us(change.after_s), _us(change.every_s), change.what)
        elif isinstance(change, Done):
            yield from ("done", change.name, change.stamp, change.following, "", "")
        elif isinstance(change, Drop):
            yield from ("drop", change.name, "", "", "", "")
        else:
            yield from ("clear", "", "", "", "", "")


def held_of(held: Iterable[Held]) -> Iterator[Any]:
    """What HOLD takes."""
    for each in held:
        yield from (each.agent, each.name, each.stamp, _us(each.for_s))


def rows_of(pairs: Sequence[bytes], now_us: int) -> tuple[Row, ...]:
    """The reminders of one agent, from names and values by turns. Raises ValueError for what is none."""
    return tuple(_row(name, value, now_us) for name, value in zip(pairs[::2], pairs[1::2], strict=True))


def polled_of(bucket: int, answer: Any) -> Polled:
    """The answer to DUE. What something else has written there is left out."""
    if isinstance(answer, StoreError):
        return Polled(bucket, (), None, 0)
    now, next_us, count, found = answer
    rows = []
    for agent, name, value in found:
        with contextlib.suppress(ValueError):
            rows.append(DueRow(agent.decode(), _row(name, value, int(now))))
    return Polled(bucket, tuple(rows), int(next_us) / 1e6 if next_us else None, count)


def _row(name: bytes, value: bytes, now_us: int) -> Row:
    stamp, due, every, what = value.split(b" ", 3)
    return Row(name.decode(), stamp.decode(), (int(due) - now_us) / 1e6, int(every) / 1e6, what)


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
