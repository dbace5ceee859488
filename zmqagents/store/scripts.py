"""What the store in Redis keeps there, and the Lua scripts that are its operations.

Everything is under one prefix, ``za:{namespace}:``, whose braces keep it in one slot of a cluster:

============  ======  ==========================================================================
``r:<task>``  string  a result; Redis itself drops it at the end of its ``ttl_s``
``fin``       zset    tasks that have a result, by the time of their finish, strictly rising
``size``      hash    what each of these is charged, in bytes
``marks``     zset    what became of those without a value; score: ``4 * serial + kind``
``pending``   hash    task -> owner
``p:<owner>`` set     the same the other way round
``owners``    zset    owner -> end of its lease
``w:<task>``  set     owners to be told when the task is settled
``totals``    hash    ``bytes``, ``expired``, ``evicted``, ``marks`` (the serial), ``last``, ``beat``, ``new:<owner>``
============  ======  ==========================================================================

Times are microseconds of Redis's own clock, so hosts whose clocks differ agree. Each operation is one
Lua script: it is atomic, and it may be sent again after a broken connection, since all of them leave a
settled task as it is. Two rules hold in every script: the ``SET`` of a result is its first write, so that a
Redis at its ``maxmemory`` refuses it and nothing else has changed; and what must get through even then (marks,
leases, waits) writes a deletion first, after which Redis lets the rest pass.
"""

from __future__ import annotations

import hashlib

_COMMON = """
local base = KEYS[1]
local FIN, SIZE, MARKS, PENDING = base .. 'fin', base .. 'size', base .. 'marks', base .. 'pending'
local OWNERS, TOTALS = base .. 'owners', base .. 'totals'
local EXPIRED, REFUSED, LOST = 0, 1, 2
local call = redis.call

local function clock()
    local t = call('TIME')
    return t[1] * 1000000 + t[2]
end
local function total(name)
    return tonumber(call('HGET', TOTALS, name) or 0)
end
local function beyond_maxmemory()  -- from here on
    call('DEL', base .. '-')
end
local function mark(task, kind, most)
    call('ZADD', MARKS, call('HINCRBY', TOTALS, 'marks', 1) * 4 + kind, task)
    local over = call('ZCARD', MARKS) - most
    if over > 0 then call('ZREMRANGEBYRANK', MARKS, 0, over - 1) end
end
local function pend_no_more(task)
    local owner = call('HGET', PENDING, task)
    if owner then
        call('HDEL', PENDING, task)
        call('SREM', base .. 'p:' .. owner, task)
    end
end
local function tell(task)
    local waiting = call('SMEMBERS', base .. 'w:' .. task)
    for _, owner in ipairs(waiting) do call('PUBLISH', base .. 'done:' .. owner, task) end
    if #waiting > 0 then call('DEL', base .. 'w:' .. task) end
end
local function drop(task)
    local size = call('HGET', SIZE, task) or 0
    call('HDEL', SIZE, task)
    call('ZREM', FIN, task)
    call('DEL', base .. 'r:' .. task)
    return call('HINCRBY', TOTALS, 'bytes', -size)
end
local function sweep(now, ttl, most, limit)
    local old = call('ZRANGEBYSCORE', FIN, '-inf', now - ttl, 'LIMIT', 0, limit)
    for _, task in ipairs(old) do
        drop(task)
        mark(task, EXPIRED, most)
    end
    if #old > 0 then call('HINCRBY', TOTALS, 'expired', #old) end
    return #old
end
"""


class Script:
    """A Lua script, its name on the server, and how it is sent: one key, the prefix, then the arguments.

    ``common`` comes before ``text``: by default what the scripts of this module share.
    """

    def __init__(self, text: str, common: str = _COMMON) -> None:
        self.text = common + text
        self.sha = hashlib.sha1(self.text.encode()).hexdigest()  # what EVALSHA calls it


# owner, its lease, then tasks. An owner that is not known is one of before Redis lost its memory: it lives, or it would
# not write, but its next beat is to say that it was not known.
BEGIN = Script("""
local owner = ARGV[1]
if owner ~= '' and not call('ZSCORE', OWNERS, owner) then
    call('ZADD', OWNERS, clock() + ARGV[2], owner)
    call('HSET', TOTALS, 'new:' .. owner, 1)
end
for i = 3, #ARGV do
    local task = ARGV[i]
    local former = call('HGET', PENDING, task)
    local alive = former and (former == '' or tonumber(call('ZSCORE', OWNERS, former) or 0) > clock())
    if not (alive or call('ZSCORE', FIN, task) or call('ZSCORE', MARKS, task)) then
        pend_no_more(task)
        call('HSET', PENDING, task, owner)
        call('SADD', base .. 'p:' .. owner, task)
    end
end
""")

# limits, then pairs of task and value. Only the first SET can find Redis at its maxmemory.
PUT = Script("""
local ttl, entries, bytes = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local most, overhead, limit = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local now, last = clock(), total('last')
local held
for i = 7, #ARGV, 2 do
    local task, value = ARGV[i], ARGV[i + 1]
    local gone = call('ZSCORE', MARKS, task)
    if not call('ZSCORE', FIN, task) and (not gone or gone % 4 == REFUSED) then
        call('SET', base .. 'r:' .. task, value, 'PX', math.ceil(ttl / 1000))
        last = math.max(now, last + 1)
        if gone then call('ZREM', MARKS, task) end
        pend_no_more(task)
        call('ZADD', FIN, last, task)
        call('HSET', SIZE, task, #value + overhead)
        held = call('HINCRBY', TOTALS, 'bytes', #value + overhead)
        tell(task)
    end
end
if not held then return end
call('HSET', TOTALS, 'last', string.format('%.0f', last))
if sweep(now, ttl, most, limit) > 0 then held = total('bytes') end
local kept = call('ZCARD', FIN)
while kept > entries or held > bytes do
    local oldest = call('ZRANGE', FIN, 0, 0, 'WITHSCORES')
    held = drop(oldest[1])
    mark(oldest[1], EXPIRED, most)
    call('HINCRBY', TOTALS, tonumber(oldest[2]) + ttl <= now and 'expired' or 'evicted', 1)
    kept = kept - 1
end
""")

# kind, most marks, then tasks.
MARK = Script("""
beyond_maxmemory()
for i = 3, #ARGV do
    local task = ARGV[i]
    if not (call('ZSCORE', FIN, task) or call('ZSCORE', MARKS, task)) then
        pend_no_more(task)
        mark(task, tonumber(ARGV[1]), tonumber(ARGV[2]))
        tell(task)
    end
end
""")

FORGET = Script("""
local task = ARGV[1]
pend_no_more(task)
if call('ZSCORE', FIN, task) then drop(task) end
call('ZREM', MARKS, task)
tell(task)
""")

# waiter, how long it may wait, then tasks. With a waiter: it will be told of those that are pending. For a task that
# nobody has begun nothing is written: its name may be made up, and anybody may ask.
GET = Script("""
local waiter, now, found = ARGV[1], clock(), {}
local function look(task)
    local value = call('GET', base .. 'r:' .. task)
    if value then return {'D', value} end
    local owner = call('HGET', PENDING, task)
    if owner then
        if owner ~= '' and tonumber(call('ZSCORE', OWNERS, owner) or 0) < now then return {'L'} end
    else
        local gone = call('ZSCORE', MARKS, task)
        if gone then return {gone % 4 == LOST and 'L' or 'E'} end
        if call('ZSCORE', FIN, task) then return {'E'} end
    end
    if owner and waiter ~= '' then
        beyond_maxmemory()
        call('SADD', base .. 'w:' .. task, waiter)
        call('PEXPIRE', base .. 'w:' .. task, ARGV[2])
    end
    return {owner and 'P' or 'U'}
end
for i = 3, #ARGV do found[i - 2] = look(ARGV[i]) end
return found
""")

# The owners that live, those whose lease is over, and whether this one was known. The tasks of the long dead are marked
# for good.
BEAT = Script("""
local owner, lease, absence = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local mourning, ttl, most = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
beyond_maxmemory()
local now, last = clock(), total('beat')
if now - last > absence then
    for _, other in ipairs(call('ZRANGEBYSCORE', OWNERS, last, '+inf')) do
        call('ZADD', OWNERS, now + lease, other)
    end
end
call('HSET', TOTALS, 'beat', string.format('%.0f', now))
local known = call('ZADD', OWNERS, now + lease, owner) == 0
known = call('HDEL', TOTALS, 'new:' .. owner) == 0 and known
local dead = call('ZRANGEBYSCORE', OWNERS, '-inf', now)
for _, other in ipairs(dead) do
    if tonumber(call('ZSCORE', OWNERS, other)) < now - mourning then
        for _, task in ipairs(call('SPOP', base .. 'p:' .. other, ARGV[7])) do
            call('HDEL', PENDING, task)
            mark(task, LOST, most)
            tell(task)
        end
        if call('EXISTS', base .. 'p:' .. other) == 0 then call('ZREM', OWNERS, other) end
    end
end
sweep(now, ttl, most, tonumber(ARGV[8]))
return {call('ZRANGEBYSCORE', OWNERS, '(' .. string.format('%.0f', now), '+inf'), dead, known and 1 or 0}
""")

# What is left of an owner that ends in order. Its number: called until nothing is left.
RETIRE = Script("""
local owner = ARGV[1]
beyond_maxmemory()
local left = call('SPOP', base .. 'p:' .. owner, ARGV[3])
for _, task in ipairs(left) do
    call('HDEL', PENDING, task)
    mark(task, LOST, tonumber(ARGV[2]))
    tell(task)
end
if #left == 0 then call('ZREM', OWNERS, owner) end
return #left
""")

STATS = Script("""
local now = clock()
beyond_maxmemory()
local swept = sweep(now, tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]))
local pending = call('SCARD', base .. 'p:')
for _, owner in ipairs(call('ZRANGEBYSCORE', OWNERS, now, '+inf')) do
    pending = pending + call('SCARD', base .. 'p:' .. owner)
end
return {swept, pending, call('ZCARD', FIN), total('bytes'), call('ZCARD', MARKS), total('expired'), total('evicted')}
""")

# The latest finishes: task, microseconds ago, charge.
ENTRIES = Script("""
local now, found = clock(), {}
local latest = call('ZREVRANGEBYSCORE', FIN, '+inf', now - tonumber(ARGV[2]), 'WITHSCORES', 'LIMIT', 0, ARGV[1])
for i = 1, #latest, 2 do
    found[#found + 1] = {latest[i], now - tonumber(latest[i + 1]), tonumber(call('HGET', SIZE, latest[i]) or 0)}
end
return found
""")
