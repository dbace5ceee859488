"""The form of a cluster's records, and how a cluster goes over to the next one: numbers, and the scripts for it.

A *form* is how Redis keeps the records of agents: their keys, their fields, and the bytes in them. Each form has a
number. A host reads a range of them, its `Forms`, and can write each of these. Beside the other keys of
`store.cluster_scripts` Redis holds

==============  =======================================================================================================
``format``      the form that is written: each host has it from the answers to its beats
``former``      the oldest form that a record may still have
``fm``          of an agent's record: the form in which it was written last; it never falls
``least``       of a bucket: the form in which records are made at least
==============  =======================================================================================================

*Who may be a member.* A host that does not read ``format``, or none that is as old as ``former``, does not join, and
one that has joined meanwhile is told with its first beat that it is dead. A host says with each beat what it reads, and
what it writes: that is what its router thread has been told, so all requests that it makes from then on have that form.

*How the form is raised* (``as_server upgrade``), by steps each of which may be repeated:

1. RAISE sets ``format``, if all members read it; it looks at their beats in the same step. From then on members write
   the new form as they hear of it, and read both. A member says that it writes the new form when no request that it has
   made in the former one is without an answer.
2. When all say so, REWRITE goes over all records, page by page, and brings those that have not been saved since to the
   new form. Whatever comes in the former form after that is of a member that is dead, or a late copy: a record that has
   been upgraded is not written in it, and in a bucket that has been none is made in it (``least``).
3. When a whole round has found none, SETTLE sets ``former``: hosts that read nothing older may join.

It is never lowered: what has been written in the new form cannot be read by hosts that know only the one before. If
Redis has lost that ``format`` was raised, the next beat of a member that writes the new form raises it again.

*A new form* needs: its number in `config.RECORD_FORMS`; scripts and packing that write the form that a request names
(``form`` of `Claim` and `Save`) and read both; and in REWRITE what has to be changed in a record. A host reads the
form that was there before it for one version at least.
"""

from __future__ import annotations

from typing import NamedTuple

from ..config import RECORD_FORMS

__all__ = ["FORMS", "REWRITE", "UNKNOWN", "UPGRADE", "Forms", "Rewritten"]


class Forms(NamedTuple):
    """The forms of records that a host reads, and of which it can write each: all from ``oldest`` to ``newest``."""

    oldest: int
    newest: int


FORMS = Forms(*RECORD_FORMS)
UNKNOWN = Forms(0, 0)


class Rewritten(NamedTuple):
    """What came of one page: so many records looked at, so many changed. ``following``: the next page, "" for none."""

    seen: int
    rewritten: int
    following: str


# step (look, raise, settle), form. Gives the time, format, former, and the members as BEAT does.
UPGRADE = """
local step, to, ready = ARGV[1], tonumber(ARGV[2]), true
local now, form = clock(), tonumber(call('GET', base .. 'format') or 0)
local rows = living(now)
for _, row in ipairs(rows) do
    local _, _, _, _, oldest, newest, writes = known(row[1])
    if step == 'raise' and (tonumber(oldest or 0) > to or tonumber(newest or 0) < to) then ready = false end
    if step == 'settle' and tonumber(writes or 0) < to then ready = false end
end
local former = tonumber(call('GET', base .. 'former') or 1)
if step == 'raise' and ready and form < to then
    beyond_maxmemory()
    call('SET', base .. 'format', to)
    change('upgraded', 'records from form ' .. form .. ' to ' .. to)
    form = to
elseif step == 'settle' and ready and form == to and former < to then
    beyond_maxmemory()
    call('SET', base .. 'former', to)
    former = to
end
return {text(now), form, former, rows}
"""

# the name after which to go on ('' for the first), at most how many, form. Gives how many were looked at, how many were
# brought to the form, and the last name. What an activation knows of its record stays true: the next save has its form.
REWRITE = """
local after, to, count = ARGV[1], tonumber(ARGV[3]), 0
if tonumber(call('GET', base .. 'least') or 0) < to then call('SET', base .. 'least', ARGV[3]) end
local names = call('ZRANGEBYLEX', base .. 'names', after == '' and '-' or '(' .. after, '+', 'LIMIT', 0, ARGV[2])
for _, name in ipairs(names) do
    local key = base .. 'a:' .. name
    local r = redis.pcall('HMGET', key, 'cls', 'fm')  -- something else may have written there
    if not r.err and r[1] and (tonumber(r[2] or 1) or to) < to then
        call('HSET', key, 'fm', ARGV[3])
        count = count + 1
    end
end
return {#names, count, names[#names] or ''}
"""
