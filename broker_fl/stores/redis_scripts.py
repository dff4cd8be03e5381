"""The Lua scripts of the Redis store: each is one atomic step. Keys are described in ``topology.RedisKeys``.

A script answers with a list: ``ok``, ``fenced``, or why nothing was changed; then a value. Its first write is
one that a full Redis refuses (``HSET``, ``XADD``, ``SET``), so that it fails before anything has changed; but
those that only delete have none, so that they make room.
"""

from __future__ import annotations

from typing import Final

_WHO: Final = """
-- The controller that asks: its epoch, and who it is if this connection was given the lease.
local epoch, owner = string.match(ARGV[1], '^(%d+) ?(.*)$')
local holder = redis.call('HGET', KEYS[1], 'owner')
local is_stranger = owner ~= '' and holder and holder ~= owner
"""

_FENCE: Final = f"""
-- An older controller than the newest may not write. One that is newer than known (a failover lost the lease
-- that it was given) becomes the newest; unless another was given the same epoch since.
{_WHO}
local known = tonumber(redis.call('HGET', KEYS[1], 'epoch') or '0')
if tonumber(epoch) < known or tonumber(epoch) == known and is_stranger then return {{'fenced', known}} end
if tonumber(epoch) > known then
  redis.call('HSET', KEYS[1], 'epoch', epoch)
  if owner ~= '' then redis.call('HSET', KEYS[1], 'owner', owner) end
end
"""

_HOLD: Final = """
-- Keys expire by the wall clock. How long the lease was given for, and until when, is noted: if that clock is
-- set back, the lease of a controller that is dead would last as much longer.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function hold(epoch, ttl)
  redis.call('HSET', KEYS[1], 'lease_ms', ttl, 'lease_until_ms', string.format('%.0f', now + ttl))
  redis.call('SET', KEYS[2], epoch, 'PX', ttl)
end
"""

ACQUIRE_LEASE: Final = f"""
-- KEYS  1 controller  2 lease
-- ARGV  1 owner  2 time to live, ms
{_HOLD}
local owner = redis.call('HGET', KEYS[1], 'owner')
if redis.call('EXISTS', KEYS[2]) == 1 and owner ~= ARGV[1] then
  local given = tonumber(redis.call('HGET', KEYS[1], 'lease_ms') or '0')
  local left = tonumber(redis.call('HGET', KEYS[1], 'lease_until_ms') or '0') - now
  if left > given then hold(redis.call('HGET', KEYS[1], 'epoch'), given) end  -- set back: from now on
  return {{'held'}}
end
local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('HSET', KEYS[1], 'owner', ARGV[1])
hold(epoch, tonumber(ARGV[2]))
return {{'ok', epoch}}
"""

RENEW_LEASE: Final = f"""
-- KEYS  1 controller  2 lease
-- ARGV  1 epoch, owner  2 time to live, ms
{_FENCE}
{_HOLD}
hold(epoch, tonumber(ARGV[2]))
return {{'ok'}}
"""

RELEASE_LEASE: Final = f"""
-- KEYS  1 controller  2 lease
-- ARGV  1 epoch, owner
{_WHO}
if redis.call('HGET', KEYS[1], 'epoch') == epoch and not is_stranger then redis.call('DEL', KEYS[2]) end
return {{'ok'}}
"""

SAVE_JOB: Final = f"""
-- KEYS  1 controller  2 jobs
-- ARGV  1 epoch, owner  2 job  3 state
{_FENCE}
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
return {{'ok'}}
"""

MAY_WRITE: Final = f"""
-- KEYS  1 controller  2 versions of the job
-- ARGV  1 epoch, owner
{_FENCE}
return {{'ok', tonumber(redis.call('HGET', KEYS[2], 'newest') or '-1')}}
"""

_ON_CHUNKS: Final = """
-- Calls `command` with the names of all chunks, 1000 at a time (Lua's stack is limited); the replies' sum.
-- KEYS[4] is the beginning of their names.
local function on_chunks(command, version, stage, count)
  local sum, names = 0, {}
  for index = 0, count - 1 do
    names[#names + 1] = KEYS[4] .. ':' .. version .. ':' .. stage .. ':' .. index
    if #names == 1000 or index == count - 1 then
      sum = sum + redis.call(command, unpack(names))
      names = {}
    end
  end
  return sum
end
"""

COMMIT_VERSION: Final = f"""
-- KEYS  1 controller  2 jobs  3 versions of the job  4 beginning of the job's chunk keys
-- ARGV  1 epoch, owner  2 job  3 state  4 version  5 number of chunks  6 stage  7 manifest  8 number to keep
{_FENCE}
local version, count, keep = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[8])
{_ON_CHUNKS}
-- The check: it follows the newest with all its chunks, or it is the newest and this a repetition.
local newest = tonumber(redis.call('HGET', KEYS[3], 'newest') or '-1')
if version == newest + 1 then
  local found = on_chunks('EXISTS', ARGV[4], ARGV[6], count)
  if found < count then return {{'missing', found}} end
  redis.call('HSET', KEYS[3], ARGV[4], ARGV[5] .. ' ' .. ARGV[6] .. ' ' .. ARGV[7], 'newest', ARGV[4])
  for index = 0, count - 1 do
    redis.call('PERSIST', KEYS[4] .. ':' .. ARGV[4] .. ':' .. ARGV[6] .. ':' .. index)
  end
else
  local stored = version == newest and redis.call('HGET', KEYS[3], ARGV[4]) or ''
  local stage = string.match(stored, '^%d+ (%S+) ')
  if not stage or stored ~= ARGV[5] .. ' ' .. stage .. ' ' .. ARGV[7] then return {{'gap', newest}} end
end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])

-- The versions that are no longer kept.
for _, field in ipairs(redis.call('HKEYS', KEYS[3])) do
  local old = tonumber(field)
  if old and old <= version - keep then
    local chunks, stage = string.match(redis.call('HGET', KEYS[3], field), '^(%d+) (%S+) ')
    on_chunks('UNLINK', field, stage, tonumber(chunks))
    redis.call('HDEL', KEYS[3], field)
  end
end
return {{'ok'}}
"""

WRITE_UPDATE: Final = f"""
-- KEYS  1 controller  2 names of the job's stored updates  3 pieces of this one
-- ARGV  1 epoch, owner  2 name  3 index  4 piece
{_FENCE}
redis.call('HSET', KEYS[2], ARGV[2], '')
redis.call('HSET', KEYS[3], ARGV[3], ARGV[4])
return {{'ok'}}
"""

DROP_UPDATES: Final = f"""
-- KEYS  1 controller  2 names of the job's stored updates, with which the keys of their pieces begin
-- ARGV  1 epoch, owner  2… names
{_FENCE}
for place = 2, #ARGV do
  redis.call('HDEL', KEYS[2], ARGV[place])
  redis.call('UNLINK', KEYS[2] .. ':' .. ARGV[place])
end
return {{'ok'}}
"""

DELETE_JOB: Final = f"""
-- KEYS  1 controller  2 jobs  3 versions of the job  4 beginning of the job's chunk keys
--       5 names of its stored updates, with which the keys of their pieces begin  6 its events
-- ARGV  1 epoch, owner  2 job
{_FENCE}
{_ON_CHUNKS}
for _, field in ipairs(redis.call('HKEYS', KEYS[3])) do
  if field ~= 'newest' then
    local chunks, stage = string.match(redis.call('HGET', KEYS[3], field), '^(%d+) (%S+) ')
    on_chunks('UNLINK', field, stage, tonumber(chunks))
  end
end
for _, name in ipairs(redis.call('HKEYS', KEYS[5])) do redis.call('UNLINK', KEYS[5] .. ':' .. name) end
redis.call('HDEL', KEYS[2], ARGV[2])
redis.call('UNLINK', KEYS[3], KEYS[5], KEYS[6])
return {{'ok'}}
"""

APPEND_EVENTS: Final = f"""
-- KEYS  1 controller  2 events of the job
-- ARGV  1 epoch, owner  2 number of the first  3… events
{_FENCE}
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
last = last and tonumber(string.match(last[1], '^%d+')) or 0
for place = 3, #ARGV do
  local number = tonumber(ARGV[2]) + place - 3
  if number > last then redis.call('XADD', KEYS[2], string.format('%.0f-0', number), 'e', ARGV[place]) end
end
return {{'ok'}}
"""

ALL: Final = (
    ACQUIRE_LEASE,
    RENEW_LEASE,
    RELEASE_LEASE,
    SAVE_JOB,
    MAY_WRITE,
    COMMIT_VERSION,
    WRITE_UPDATE,
    DROP_UPDATES,
    DELETE_JOB,
    APPEND_EVENTS,
)
