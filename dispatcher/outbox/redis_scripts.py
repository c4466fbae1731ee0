"""The scripts: each is one command, atomic, and leaves true what `redis_lua` says of the keys.

Arguments are words in the order of the `arg()` and `num()` calls; the modules that run a script pass them so.
Used by the other `redis_*`.
"""

from __future__ import annotations

from typing import Final

from dispatcher.outbox.redis_lua import Script

SETUP: Final = Script(
    "setup",
    """
even_when_full()
local form, shards, created = arg(), arg(), arg()
redis.call('HSETNX', P .. ':meta', 'form', form)
redis.call('HSETNX', P .. ':meta', 'shards', shards)
redis.call('HSETNX', P .. ':meta', 'created', created)
return {redis.call('HMGET', P .. ':meta', 'form', 'shards'), counts()}
""",
)

APPEND: Final = Script(
    "append",
    """
local most, most_bytes, bytes, news = num(), num(), num(), arg()
local marks, ids = {}, {}
for i = 1, num() * 2 do marks[i] = arg() end
for i = 1, num() do ids[i] = arg() end
local kept = redis.call('HMGET', COUNT, 'messages', 'bytes')
local messages, size = tonumber(kept[1] or 0), tonumber(kept[2] or 0)
if #ids > 0 and (messages + #ids > most or size + bytes > most_bytes) then
  return {'full', text(messages), text(size)}
end
local there = look(IDS, ids)
for i = 1, #ids do
  if there[i] then return {'twice'} end
end
local base = #ids > 0 and redis.call('INCRBY', P .. ':seq', #ids) - #ids + 1 or 0
local places = {}
for _ = 1, num() do
  local shard, packed, blob, entry = arg(), num(), arg(), nil
  for _ = 1, packed do
    local offset = num()
    local number = text(base + offset)
    entry = entry or number
    places[#places + 1] = ids[offset + 1]
    places[#places + 1] = 'q:' .. shard .. ':' .. number .. ':' .. entry
  end
  redis.call('XADD', P .. ':q:' .. shard, entry .. '-0', 'm', blob)
  redis.call('HSET', P .. ':p:' .. shard, entry, packed)
end
many('HSET', IDS, places)
many('HSET', P .. ':marks', marks)
if news ~= '' then redis.call('PUBLISH', P .. ':news', news) end
return {'ok', text(base), count({messages = #ids, bytes = bytes})}
""",
)

READ: Final = Script(
    "read",
    """
-- Of each shard, entries from a number on, until there are enough bytes; of every shard one at least, so
-- that who merges them knows what comes first. With each, how many messages are left in it.
local room, most = num(), num()
local out = {}
while at < #ARGV do
  local shard, from = arg(), arg()
  local entries, more = {}, 0
  local found = redis.call('XRANGE', P .. ':q:' .. shard, from, '+', 'COUNT', most)
  if #found == most then more = 1 end
  for i = 1, #found do
    if i > 1 and room <= 0 then
      more = 1
      break
    end
    local entry, blob = string.match(found[i][1], '^%d+'), found[i][2][2]
    room = room - #blob
    entries[i] = {entry, redis.call('HGET', P .. ':p:' .. shard, entry), blob}
  end
  local woken = redis.call('LRANGE', P .. ':w:' .. shard, 0, -1)
  local held = {}
  if #woken > 0 then
    redis.call('DEL', P .. ':w:' .. shard)
    held = look(P .. ':h:' .. shard, woken)
  end
  out[#out + 1] = {more, entries, woken, held}
end
return out
""",
)

CLAIM: Final = Script(
    "claim",
    """
even_when_full()
-- Fresh ones must still be in their entry, held ones be held; what is not is left out, and told.
local member, now = arg(), arg()
local no = text(redis.call('INCR', P .. ':claims'))
local out = {}
while at < #ARGV do
  local shard = arg()
  local ids, numbers, held = {}, {}, {}
  for i = 1, num() do ids[i] = arg(); numbers[i] = arg() end
  for i = 1, num() do held[i] = arg() end
  if redis.call('GET', P .. ':lease:' .. shard) ~= member then
    out[#out + 1] = {0}
  else
    local given, gone = {}, {}
    local there, blobs = look(IDS, ids), look(P .. ':h:' .. shard, held)
    for i = 1, #ids do
      if there[i] and string.byte(there[i]) == 113 then given[#given + 1] = numbers[i]
      else gone[#gone + 1] = i - 1 end
    end
    for i = 1, #held do
      if blobs[i] then given[#given + 1] = held[i] end
    end
    if #given > 0 then
      local said = member .. ' ' .. now .. ' ' .. table.concat(given, ' ') .. ' '
      redis.call('HSET', P .. ':c:' .. shard, no, said)
    end
    out[#out + 1] = {1, gone, blobs}
  end
end
return {no, out}
""",
)

SETTLE: Final = Script(
    "settle",
    """
even_when_full()
local member, keep_ms, bucket_messages = arg(), num(), num()
local change = {messages = 0, bytes = 0, dead = 0, dead_bytes = 0}
local leases = {}
local function is_mine(shard)
  if leases[shard] == nil then leases[shard] = redis.call('GET', P .. ':lease:' .. shard) == member end
  return leases[shard]
end

-- Delivered, or taken back: true, whoever says it. An empty receipt is none.
local ids, sizes, receipts = {}, {}, {}
for i = 1, num() do ids[i] = arg(); sizes[i] = num(); receipts[i] = arg() end
local there, gone, kept = look(IDS, ids), {}, {}
for i = 1, #ids do
  local state, shard, number, rest = nil, nil, nil, nil
  if there[i] then state, shard, number, rest = place(there[i]) end
  if state == 'q' or state == 'h' then
    leave(state, shard, number, rest)
    gone[#gone + 1] = ids[i]
    change.messages = change.messages - 1
    change.bytes = change.bytes - sizes[i]
    if receipts[i] ~= '' then
      kept[#kept + 1] = ids[i]
      kept[#kept + 1] = receipts[i]
    end
  end
end
many('HDEL', IDS, gone)

-- Given back: only by the owner, and once for a claim. 1: it is held.
local returned = {}
for i = 1, num() do
  local id, claim, blob = arg(), arg(), arg()
  local state, shard, number, rest = place(redis.call('HGET', IDS, id) or '')
  returned[i] = 0
  if (state == 'q' or state == 'h') and is_mine(shard) then
    returned[i] = 1
    if state == 'q' or tonumber(rest) < tonumber(claim) then
      if state == 'q' then leave(state, shard, number, rest) end
      redis.call('HSET', P .. ':h:' .. shard, number, blob)
      redis.call('HSET', IDS, id, 'h:' .. shard .. ':' .. number .. ':' .. claim)
    end
  end
end

-- Dead: only by the owner, unless it came back from that claim already.
for _ = 1, num() do
  local id, claim, size, blob = arg(), arg(), num(), arg()
  local state, shard, number, rest = place(redis.call('HGET', IDS, id) or '')
  if (state == 'q' or (state == 'h' and tonumber(rest) < tonumber(claim))) and is_mine(shard) then
    leave(state, shard, number, rest)
    redis.call('HSET', P .. ':letters', id, blob)
    redis.call('ZADD', P .. ':dead', number, id)
    redis.call('HSET', IDS, id, 'd:' .. shard .. ':' .. number .. ':' .. text(size))
    change.dead = change.dead + 1
    change.dead_bytes = change.dead_bytes + size
  end
end

for _ = 1, num() do
  local shard, claim = arg(), arg()
  if is_mine(shard) then redis.call('HDEL', P .. ':c:' .. shard, claim) end
end
have_left()

if #kept > 0 and bucket_messages > 0 and keep_ms > 0 then
  local clock = redis.call('TIME')
  local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
  local current = redis.call('HMGET', P .. ':receipts', 'no', 'since')
  local no, since = tonumber(current[1] or 0), tonumber(current[2] or 0)
  local is_new = no == 0 or now - since >= keep_ms / 4
    or redis.call('HLEN', P .. ':r:' .. text(no)) >= bucket_messages
  if is_new then
    no = no + 1
    redis.call('HSET', P .. ':receipts', 'no', text(no), 'since', text(now))
    redis.call('UNLINK', P .. ':r:' .. text(no - 5))
  end
  many('HSET', P .. ':r:' .. text(no), kept)
  if is_new then redis.call('PEXPIRE', P .. ':r:' .. text(no), text(keep_ms * 1.25)) end
end
return {returned, count(change)}
""",
)

LOAD: Final = Script(
    "load",
    """
-- What stands between a shard and its new owner: claims; and how much is held.
local member, shard = arg(), arg()
if redis.call('GET', P .. ':lease:' .. shard) ~= member then return false end
redis.call('DEL', P .. ':w:' .. shard)
return {redis.call('HGETALL', P .. ':c:' .. shard), redis.call('HLEN', P .. ':h:' .. shard)}
""",
)

BEAT: Final = Script(
    "beat",
    """
even_when_full()
-- A sign of life: renew what is owned, take what is free, up to a fair share.
local member, lease_ms, shards, owned = arg(), num(), num(), {}
for _ = 1, num() do owned[arg()] = true end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZREMRANGEBYSCORE', P .. ':members', '-inf', '(' .. text(now - lease_ms))
if redis.call('ZADD', P .. ':members', text(now), member) == 1 then
  redis.call('PUBLISH', P .. ':news', 'm')
end
local alive = redis.call('ZCARD', P .. ':members')
local share = math.ceil(shards / alive)
local kept, lost, taken, soonest, free = 0, {}, {}, -1, {}
for i = 0, shards - 1 do
  local shard = text(i)
  local key = P .. ':lease:' .. shard
  local holder = redis.call('GET', key)
  if owned[shard] then
    if holder == member then
      redis.call('PEXPIRE', key, lease_ms)
      kept = kept + 1
    else
      lost[#lost + 1] = shard
    end
  end
  if not holder then
    free[#free + 1] = shard
  elseif holder ~= member then
    local ends = redis.call('PTTL', key)
    if ends > 0 and (soonest < 0 or ends < soonest) then soonest = ends end
  elseif not owned[shard] then
    taken[#taken + 1] = shard -- ours, by a beat whose answer was lost
    redis.call('PEXPIRE', key, lease_ms)
    kept = kept + 1
  end
end
for i = 1, #free do
  if kept >= share then break end
  redis.call('SET', P .. ':lease:' .. free[i], member, 'PX', lease_ms)
  taken[#taken + 1] = free[i]
  kept = kept + 1
end
return {alive, share, lost, taken, soonest, counts()}
""",
)

RELEASE: Final = Script(
    "release",
    """
-- Give shards away; with the last argument also the membership.
local member, is_leaving = arg(), arg()
local freed = 0
while at < #ARGV do
  local key = P .. ':lease:' .. arg()
  if redis.call('GET', key) == member then freed = freed + redis.call('DEL', key) end
end
if is_leaving == '1' then freed = freed + redis.call('ZREM', P .. ':members', member) end
if freed > 0 then redis.call('PUBLISH', P .. ':news', 'm') end
return freed
""",
)

FIND: Final = Script(
    "find",
    """
local id = arg()
local there = redis.call('HGET', IDS, id)
if not there then
  local no = tonumber(redis.call('HGET', P .. ':receipts', 'no') or 0)
  for bucket = no, math.max(no - 4, 1), -1 do
    local kept = redis.call('HGET', P .. ':r:' .. text(bucket), id)
    if kept then return {'r', '0', kept} end
  end
  return false
end
local state, shard, number, rest = place(there)
if state == 'd' then return {'d', number, redis.call('HGET', P .. ':letters', id)} end
if state == 'h' then
  local kept = redis.call('HGET', P .. ':h:' .. shard, number)
  return {'h', number, kept, claimed(shard, number, tonumber(rest))}
end
local entry = redis.call('XRANGE', P .. ':q:' .. shard, rest, rest)
return {'q', number, entry[1] and entry[1][2][2], claimed(shard, number, 0), rest}
""",
)

CANCEL: Final = Script(
    "cancel",
    """
even_when_full()
local id, size = arg(), num()
local state, shard, number, rest = place(redis.call('HGET', IDS, id) or '')
if state ~= 'q' and state ~= 'h' then return false end
if claimed(shard, number, state == 'h' and tonumber(rest) or 0) == 1 then return false end
leave(state, shard, number, rest)
have_left()
redis.call('HDEL', IDS, id)
return {shard, number, count({messages = -1, bytes = -size})}
""",
)

LETTERS: Final = Script(
    "letters",
    """
-- Dead letters behind a message, in the order of acceptance; or, by ids, those that are dead.
local after, limit = arg(), num()
local ids = {}
if limit >= 0 then
  local _, _, behind = place(after ~= '' and redis.call('HGET', IDS, after) or '')
  ids = redis.call('ZRANGEBYSCORE', P .. ':dead', '(' .. (behind or '0'), '+inf', 'LIMIT', 0, limit)
else
  while at < #ARGV do ids[#ids + 1] = arg() end
end
return {ids, look(P .. ':letters', ids)}
""",
)

DECIDE: Final = Script(
    "decide",
    """
even_when_full()
-- Dead letters wait again in their old places (a blob is given), or are forgotten.
local change = {messages = 0, bytes = 0, dead = 0, dead_bytes = 0}
local now = redis.call('GET', P .. ':claims') or '0'
local woken, any = {}, false
while at < #ARGV do
  local id, blob = arg(), arg()
  local state, shard, number, rest = place(redis.call('HGET', IDS, id) or '')
  if state == 'd' then
    local size = tonumber(rest)
    change.dead = change.dead - 1
    change.dead_bytes = change.dead_bytes - size
    redis.call('HDEL', P .. ':letters', id)
    redis.call('ZREM', P .. ':dead', id)
    if blob == '' then
      redis.call('HDEL', IDS, id)
      change.messages = change.messages - 1
      change.bytes = change.bytes - size
    else
      redis.call('HSET', P .. ':h:' .. shard, number, blob)
      redis.call('HSET', IDS, id, 'h:' .. shard .. ':' .. number .. ':' .. now)
      redis.call('RPUSH', P .. ':w:' .. shard, number)
      woken[shard], any = true, true
    end
  end
end
local shards = {}
for shard in pairs(woken) do shards[#shards + 1] = shard end
if any then redis.call('PUBLISH', P .. ':news', 'q ' .. table.concat(shards, ' ')) end
return {-change.dead, shards, count(change)}
""",
)

ALL: Final = (SETUP, APPEND, READ, CLAIM, SETTLE, LOAD, BEAT, RELEASE, FIND, CANCEL, LETTERS, DECIDE)
