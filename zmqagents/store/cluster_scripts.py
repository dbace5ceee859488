"""What a cluster keeps in Redis, and the Lua scripts that are its operations.

Two kinds of keys. The members of the cluster ``ns`` are under ``za:{ns}:``, its agents under ``za:{ns/bb}:``, where
``bb`` is one of 256 buckets, by the CRC-32 of the agent's name. The braces keep each script in one slot of a Redis
Cluster, and spread the agents over its nodes:

==================  =======  ======================================================================================
``id``, ``format``  string   fingerprint of the cluster's key; number of the form that records are written in
``former``          string   number of the oldest form that a record may have: see `store.forms`
``lease``           zset     incarnation → end of its lease
``host``            hash     incarnation → ``number draining start lease oldest newest writes record``: its beat number,
                             whether it drains, the token of the start of its process, how long its lease is, the
                             oldest and newest form that it reads, the one that it writes, what it says of itself
``dead``            zset     incarnations and tokens of starts that are dead, for ever → when they died; kept for 24 h
``beat``, ``view``  string   when anybody has beaten last; the count of changes
``log``             stream   what has happened to members: the last 10,000
``a:<name>``        hash     an agent: ``own``, ``act``, ``ep``, ``rev``, ``sv``, ``cls``, ``args``, ``opt``, ``st``,
                             ``fm``; ``new``: the activation that it has or had last is its first
``names``           zset     the names of the bucket's agents, all with score 0
``d:<name>``        hash     task id → ``until:outcome`` of an ``@once`` call; program → ``until:number``, see
                             `cluster.outcomes`
``r:<name>``        hash     the agent's reminders, and ``due``, a zset, when they are due: see `store.reminders`
``floor``           string   the highest epoch of the bucket's agents that are gone
``least``           string   the form that the bucket's records have at least, as far as they have been upgraded
==================  =======  ======================================================================================

Times are microseconds of Redis's own clock. An *incarnation* is ``server_id/time of joining/random``. It is living
while ``lease`` has it, and may be declared dead when its lease is over; dead is final. ``own`` is the incarnation that
runs the agent; ``act`` numbers that one's activations; ``ep``, the epoch, names one activation and rises with each one
of the agent, whichever host has it; ``rev`` counts the saves of its state. ``fm`` is the form that the record has.

*May be repeated, may come late.* A script whose answer was lost is sent again, and a former copy may be executed at any
time after. Each is written so that this changes nothing:

* CLAIM by the owner with the same number gives the same answer; with a lower one it is stale.
* SAVE, RELEASE and DELETE name owner and epoch, and fit one activation only.
* Reminders are changed by SAVE, RELEASE and DELETE alone, and so with the state.
* SAVE names the revision that it starts from. A higher one in the record: it was taken before. A lower one: Redis has
  lost the last writes. Then nothing is written unless the caller says ``heal``, and it does so only in the oldest save
  that it has no answer to, along with the outcomes of calls that it still holds.
* BEAT carries a number that rises; a copy with an older one renews nothing.
* DEATH is for ever: neither an incarnation that is dead nor one of a start that is dead beats again.

*Nothing lowers an epoch*, not even a step of Redis's clock: an entry that goes leaves its epoch in ``floor``, above
which the bucket's next new entry begins.

The first write of a script that may be refused by a Redis at its ``maxmemory`` is its first of all, so that nothing
else has changed. What must get through (beats, deaths, releases) writes a deletion first, after which Redis lets the
rest pass.
"""

from __future__ import annotations

from typing import NamedTuple

from .forms import REWRITE, UPGRADE
from .reminders import DUE, HOLD, REMIND
from .scripts import Script

__all__ = ["FORGET_US", "REDIS_CLOCK", "ClusterScripts", "cluster_scripts"]

REDIS_CLOCK = "local t = redis.call('TIME') return t[1] * 1000000 + t[2]"
FORGET_US = 24 * 3600 * 1_000_000  # how long a dead incarnation is remembered
TOO_OLD_US = FORGET_US - 3600 * 1_000_000  # one that joined before may have been forgotten
LOG_ENTRIES = 10_000

_COMMON = """
local base, call = KEYS[1], redis.call
local function clock() %(clock)s end
local function text(number) return string.format('%%.0f', number) end
local function beyond_maxmemory()  -- from here on
    call('DEL', base .. '-')
end
"""

_MEMBERS = """
local LEASE, HOST, DEAD = base .. 'lease', base .. 'host', base .. 'dead'
local function note(kind, what)
    call('XADD', base .. 'log', 'MAXLEN', '~', %(log)d, '*', 'kind', kind, 'what', what)
end
local function change(kind, who)
    note(kind, who)
    call('PUBLISH', base .. 'news', call('INCR', base .. 'view'))
end
local function is_dead(who)
    return call('ZSCORE', DEAD, who)
end
local function may_be_forgotten(who, now)
    return now - tonumber(string.match(who, '/(%%d+)/[^/]*$') or 0) > %(too_old)d
end
local function known(who)  -- number, draining, start, lease, oldest, newest and written form
    return string.match(call('HGET', HOST, who) or '', '^(%%d+) (%%d) (%%S*) (%%d+) (%%d+) (%%d+) (%%d+) ')
end
local function living(now)
    local leases, rows = call('ZRANGE', LEASE, 0, -1, 'WITHSCORES'), {}
    for i = 1, #leases, 2 do
        rows[#rows + 1] = {leases[i], text(tonumber(leases[i + 1]) - now), call('HGET', HOST, leases[i]) or ''}
    end
    return rows
end
local function bury(who, now)
    call('ZADD', DEAD, text(now), who)
    call('ZREM', LEASE, who)
    call('HDEL', HOST, who)
    change('died', who)
end
"""

# fingerprint, oldest and newest form that this host reads. The first host of a cluster decides what is written.
_JOIN = """
local mine, oldest, newest = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
beyond_maxmemory()
call('SETNX', base .. 'id', mine)
local form, former = tonumber(call('GET', base .. 'format') or 0), tonumber(call('GET', base .. 'former') or 1)
if call('GET', base .. 'id') ~= mine then return {'key', text(clock()), form} end
if form == 0 then
    form, former = newest, newest
    call('SET', base .. 'format', form)
    call('SET', base .. 'former', former)
end
if form > newest then return {'older', text(clock()), form} end
if former < oldest then return {'newer', text(clock()), former} end
return {'ok', text(clock()), form}
"""

# incarnation, number, draining, start, record, lease, absence, oldest, newest and written form. Refused: the one that
# beats is dead, or the records have been upgraded since it joined.
_BEAT = """
local me, number, draining, start, record = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local lease, absence = tonumber(ARGV[6]), tonumber(ARGV[7])
beyond_maxmemory()
local now, last = clock(), tonumber(call('GET', base .. 'beat') or 0)
local lives, writes = call('ZSCORE', LEASE, me), tonumber(ARGV[10])
local form = tonumber(call('GET', base .. 'format') or 0)
if is_dead(me) or is_dead(start) or not lives and may_be_forgotten(me, now) or form > tonumber(ARGV[9]) then
    return {'dead', text(now)}
end
local away = last > 0 and (now - last > absence or now < last)
if away then  -- nobody has beaten, or the clock has run backwards: nobody's fault but Redis's
    for _, other in ipairs(call('ZRANGE', LEASE, 0, -1)) do
        local _, _, _, its = known(other)
        call('ZADD', LEASE, text(now + (its or lease)), other)
    end
end
call('SET', base .. 'beat', text(now))
if form < writes then  -- Redis has lost that it was raised
    form = writes
    call('SET', base .. 'format', form)
end
call('ZREMRANGEBYSCORE', DEAD, '-inf', text(now - %(forget)d))
local former, drained = known(me)
if not former or number > tonumber(former) then
    call('ZADD', LEASE, text(now + lease), me)
    call('HSET', HOST, me, table.concat({ARGV[2], draining, start, ARGV[6], ARGV[8], ARGV[9], ARGV[10], record}, ' '))
    if not former then change('joined', me) elseif drained ~= draining then change('draining', me) end
end
return {'alive', text(now), tonumber(call('GET', base .. 'view') or 0), away and 1 or 0, form, living(now)}
"""

# incarnation, its beat number ('' if there is no record of it), whether the caller has watched it for a whole lease,
# lease, absence.
_DECLARE = """
local who, seen, watched = ARGV[1], ARGV[2], ARGV[3] == '1'
local lease, absence = tonumber(ARGV[4]), tonumber(ARGV[5])
if is_dead(who) then return 'dead' end
beyond_maxmemory()
local now, last, over = clock(), tonumber(call('GET', base .. 'beat') or 0), call('ZSCORE', LEASE, who)
local forgotten = not over and may_be_forgotten(who, now)
if not over and not forgotten then  -- Redis may have lost its first beat
    call('ZADD', LEASE, text(now + lease), who)
    return 'lives'
end
if not watched or (known(who) or '') ~= seen then return 'lives' end
if now - last > absence or now < last or not forgotten and tonumber(over) > now then return 'lives' end
bury(who, now)
return 'dead'
"""

# the token of the start of a process that is known to have ended.
_OBITUARY = """
local start, buried = ARGV[1], {}
beyond_maxmemory()
local now = clock()
call('ZADD', DEAD, text(now), start)
for _, who in ipairs(call('HKEYS', HOST)) do
    local _, _, its = known(who)
    if its == start then
        bury(who, now)
        buried[#buried + 1] = who
    end
end
return buried
"""

# kind, what.
_NOTE = "note(ARGV[1], ARGV[2])"

# after which id, at most how many.
_LOG = "return call('XRANGE', base .. 'log', ARGV[1] == '' and '-' or '(' .. ARGV[1], '+', 'COUNT', ARGV[2])"

_NAMED = "local name, me = ARGV[1], ARGV[2]"
_AGENT = """
local key, outcomes = base .. 'a:' .. name, base .. 'd:' .. name
local function is_mine(own, ep)
    return own == me and ep == ARGV[3]
end
local function is_former(form, kept)  -- the record has been upgraded since: its owner is dead, or this is a late copy
    return tonumber(form) < tonumber(kept or 1)
end
local function keep(first)  -- ARGV[first]: how many ids are dropped; these; then triples of id, ms and outcome
    local drops = tonumber(ARGV[first])
    for i = first + 1, first + drops do call('HDEL', outcomes, ARGV[i]) end
    if #ARGV <= first + drops then return end
    local now, left = clock(), math.max(0, call('PTTL', outcomes))
    for i = first + drops + 1, #ARGV, 3 do
        call('HSET', outcomes, ARGV[i], text(now + ARGV[i + 1] * 1000) .. ':' .. ARGV[i + 2])
        left = math.max(left, tonumber(ARGV[i + 1]))
    end
    call('PEXPIRE', outcomes, left)
end
local function remove(ep)
    if tonumber(ep) > tonumber(call('GET', base .. 'floor') or 0) then call('SET', base .. 'floor', ep) end
    call('DEL', key, outcomes)
    call('ZREM', base .. 'names', name)
    drop_all()
end
"""

# name, incarnation, number of the activation, class, state version, the owner that is known to be dead, most names of
# a bucket, whether there must be no such agent, packed arguments and options ('' for none), the form that they have,
# oldest and newest form that the owner reads, whether nobody has looked at what the record says.
_CLAIM = """
local act, cls, version, dead = tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5]), ARGV[6]
local r = call('HMGET', key, 'own', 'act', 'ep', 'rev', 'sv', 'cls', 'args', 'opt', 'st', 'fm', 'new')
local own, ep = r[1] or '', tonumber(r[3] or 0)
local again = own == me and act == tonumber(r[2])
if r[6] and (r[6] ~= cls or ARGV[8] == '1' and not again) then return {'exists', r[6]} end
if r[5] and tonumber(r[5]) > version then return {'newer', r[5]} end
local form = tonumber(r[10] or 1)
if r[6] and (form < tonumber(ARGV[12]) or form > tonumber(ARGV[13])) then return {'form', text(form)} end
if own == me and act < tonumber(r[2]) then return {'stale'} end
if not again then
    if own ~= '' and own ~= me and own ~= dead then return {'other', own, r[3]} end
    if ARGV[14] == '1' and own == '' and r[8] then return {'chosen'} end
    if not r[6] then
        if call('ZCARD', base .. 'names') >= tonumber(ARGV[7]) then return {'full'} end
        if tonumber(ARGV[11]) < tonumber(call('GET', base .. 'least') or 0) then return {'form', ARGV[11]} end
        ep = tonumber(call('GET', base .. 'floor') or 0)
    end
    ep = math.max(ep + 1, clock())  -- rises even when Redis has lost the last ones
    call('HSET', key, 'own', me, 'act', ARGV[3], 'ep', text(ep))
    if not r[6] then
        call('HSET', key, 'cls', cls, 'fm', ARGV[11])
        if ARGV[9] ~= '' then call('HSET', key, 'args', ARGV[9]) end
        if ARGV[10] ~= '' then call('HSET', key, 'opt', ARGV[10]) end
        call('HSET', key, 'new', 1)
        call('ZADD', base .. 'names', 0, name)
        r[7], r[8] = ARGV[9] ~= '' and ARGV[9], ARGV[10] ~= '' and ARGV[10]
    elseif r[11] then
        call('HDEL', key, 'new')
    end
end
local fresh = (not r[6] or again and r[11] and (r[4] or '0') == '0') and 1 or 0
return {
    'mine', text(ep), r[4] or '0', r[5], r[9], r[7], r[8], call('HGETALL', outcomes), call('HGETALL', reminders),
    text(clock()), fresh,
}
"""

# name, incarnation, epoch, revision, state version ('' if there is no state), state, whether to heal, form, task id of
# the `@once` call ('' for none), then what `remind` and `keep` take.
_SAVE = """
local rev = tonumber(ARGV[4])
local r = call('HMGET', key, 'own', 'ep', 'rev', 'fm')
if not is_mine(r[1], r[2]) then return {'fenced', r[1] or '', r[2] or '0'} end
if is_former(ARGV[8], r[4]) then return {'fenced', r[1], r[2]} end
local kept = tonumber(r[3] or 0)
if kept > rev then return {'taken'} end
local had = ARGV[9] ~= '' and call('HGET', outcomes, ARGV[9])
if had then return {'had', had} end
if kept < rev and ARGV[7] ~= '1' then return {'behind', kept} end
call('HSET', key, 'rev', rev + 1, 'fm', ARGV[8])
if ARGV[5] ~= '' then call('HSET', key, 'sv', ARGV[5], 'st', ARGV[6]) end
keep(remind(10))
return {'saved'}
"""

# name, incarnation, epoch, next home ('' for nobody), whether there is a last save; if so revision, state version
# ('' if there is no state), state, whether to heal, form, and what `remind` and `keep` take.
_RELEASE = """
local following, saves = ARGV[4], ARGV[5] == '1'
local r = call('HMGET', key, 'own', 'ep', 'rev', 'args', 'st', 'fm')
if not is_mine(r[1], r[2]) then return {'gone'} end
if saves and is_former(ARGV[10], r[6]) then return {'gone'} end
local kept, rev = tonumber(r[3] or 0), tonumber(ARGV[6])
if saves and kept < rev and ARGV[9] ~= '1' then return {'behind', kept} end
if saves and kept <= rev then
    call('HSET', key, 'rev', rev + 1, 'fm', ARGV[10])
    if ARGV[7] ~= '' then
        call('HSET', key, 'sv', ARGV[7], 'st', ARGV[8])
        r[5] = ARGV[8]
    end
    keep(remind(11))
else
    beyond_maxmemory()
end
if following ~= '' then
    local ep = math.max(tonumber(r[2]) + 1, clock())
    call('HSET', key, 'own', following, 'act', -1, 'ep', text(ep))
    return {'released', text(ep)}
end
if r[4] or r[5] or call('EXISTS', outcomes, reminders) > 0 then
    call('HSET', key, 'own', '')
else
    remove(r[2])
end
return {'released', r[2]}
"""

# name, incarnation, epoch.
_DELETE = """
local r = call('HMGET', key, 'own', 'ep')
if not r[1] then return 'gone' end
if not is_mine(r[1], r[2]) then return 'fenced' end
beyond_maxmemory()
remove(r[2])
return 'deleted'
"""

_LOCATE = "return call('HMGET', key, 'own', 'ep', 'act', 'rev', 'cls', 'opt')"

# the name after which to go on ('' for the first), the prefix, at most how many.
_NAMES = """
local after, prefix, rows = ARGV[1], ARGV[2], {}
local first = after ~= '' and after >= prefix and '(' .. after or '[' .. prefix
local last = prefix == '' and '+' or '(' .. prefix .. '\\255'
for _, name in ipairs(call('ZRANGEBYLEX', base .. 'names', first, last, 'LIMIT', 0, ARGV[3])) do
    local r = call('HMGET', base .. 'a:' .. name, 'own', 'ep')
    rows[#rows + 1] = {name, r[1] or '', r[2] or '0'}
end
return rows
"""

_SIZE = "return call('ZCARD', base .. 'names')"

_REMINDERS = "return {call('HGETALL', base .. 'r:' .. ARGV[1]), text(clock())}"


class ClusterScripts(NamedTuple):
    """The scripts of a cluster. The first seven have the key ``za:{ns}:``, the others that of an agent's bucket."""

    join: Script
    beat: Script
    declare: Script
    obituary: Script
    note: Script
    log: Script
    upgrade: Script
    claim: Script
    save: Script
    release: Script
    delete: Script
    locate: Script
    names: Script
    size: Script
    rewrite: Script
    due: Script
    hold: Script
    reminders: Script


def cluster_scripts(clock: str = REDIS_CLOCK) -> ClusterScripts:
    """The scripts. ``clock``: the body of a Lua function that gives the time in microseconds."""
    figures = {"clock": clock, "log": LOG_ENTRIES, "too_old": TOO_OLD_US, "forget": FORGET_US}

    def made(common: str, text: str) -> Script:
        return Script((text % figures) if "%(" in text else text, common)

    plain = _COMMON % figures
    members, agent = plain + _MEMBERS % figures, plain + _NAMED + REMIND + _AGENT
    of_members = [made(members, text) for text in (_JOIN, _BEAT, _DECLARE, _OBITUARY, _NOTE, _LOG, UPGRADE)]
    of_agents = [made(agent, text) for text in (_CLAIM, _SAVE, _RELEASE, _DELETE, _LOCATE)]
    of_buckets = [made(plain, text) for text in (_NAMES, _SIZE, REWRITE, DUE, HOLD, _REMINDERS)]
    every = [*of_members, *of_agents, *of_buckets]
    return ClusterScripts(*every)
