"""Everything that is ever written to Redis, as Lua: what stands there at each instant, and who may write it.

All keys begin with `{dispatcher:NAME}` and so live in one cluster slot; a script is one command, atomic, and
leaves all of what follows true. `S` is a shard, `N` a message's number: numbers are drawn from `:seq`, grow
with acceptance over all shards, never come again, and are the positions of the store.

- `:ids` hash: every unsettled message by its id, **the one truth of where it is**: `q:S:N:E` in the packed
  entry `E` of its shard, `h:S:N:C` held since it came back from claim `C`, `d:S:N:BYTES` a dead letter.
  Whoever settles takes it from there; what is not there is settled, so that a repetition changes nothing.
- `:q:S` stream: packed entries, `E-0` with `E` the number of the first message; field `m` (`redis_forms`).
  Written once by who accepts; deleted with the last of its messages. Never trimmed.
- `:p:S` hash: of each entry, how many of its messages still are in it; 0 deletes both.
- `:h:S` hash, by number: messages that came back, with their history. They are in no entry any more.
- `:c:S` hash: claims by their number `C`, from `:claims`: who claimed, when, and which messages. Written
  before anything of a claim is given away; deleted when all of it is settled. One that a later `h` supersedes
  (`C` there is not smaller) means nothing for that message.
- `:w:S` list: held messages that somebody else than the owner put there; the owner looks at them.
- `:dead` sorted set of ids by number, `:letters` hash: the dead letters.
- `:r:B` hashes: receipts by id, in buckets that expire; `:receipts` says which is the current one.
- `:marks` hash. `:count` hash: messages, bytes, dead, dead_bytes, and a version for each change of them.
- `:lease:S` string with expiry: which member owns a shard. `:members` sorted set by the last sign of life.
- `:meta` hash: form and number of shards. Channel `:news`: who should look at what; may be lost.

Anybody may append, cancel, say that a message was delivered, and decide on dead letters. **Only the owner of
a shard claims from it, gives back to it, or declares dead**: those scripts compare the lease. Run by
`redis_link`; the scripts are in `redis_scripts`.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Final

FORM: Final = 1
"""Of what is described above."""
BUCKETS: Final = 5
"""Of receipts, at most."""


class Script:
    """One script, known to the server by its digest."""

    __slots__ = ("digest", "name", "text")

    def __init__(self, name: str, body: str) -> None:
        self.name = name
        self.text = PRELUDE + body
        self.digest = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


PRELUDE: Final = """
local P = KEYS[1]
local IDS, COUNT = P .. ':ids', P .. ':count'
local at = 0
local function arg() at = at + 1; return ARGV[at] end
local function num() return tonumber(arg()) end
local function text(number) return string.format('%.0f', number) end
local STEP = 2000 -- Lua's stack takes so many values at once

local function many(command, key, list)
  for first = 1, #list, STEP do
    redis.call(command, key, unpack(list, first, math.min(first + STEP - 1, #list)))
  end
end

local function look(key, fields)
  local found = {}
  for first = 1, #fields, STEP do
    local some = redis.call('HMGET', key, unpack(fields, first, math.min(first + STEP - 1, #fields)))
    for i = 1, #some do found[first + i - 1] = some[i] end
  end
  return found
end

-- Without memory left (maxmemory) a script is refused at its first command that may need some, but goes on
-- once it has written: so those that do not accept anything can still run, and make room.
local function even_when_full() redis.call('DEL', P .. ':nothing') end

-- state, shard, number, rest
local function place(value) return string.match(value, '^(%a):(%d+):(%d+):(%d+)$') end

local function counts()
  return redis.call('HMGET', COUNT, 'version', 'messages', 'bytes', 'dead', 'dead_bytes')
end

local function count(changes)
  for name, change in pairs(changes) do
    if change ~= 0 then redis.call('HINCRBY', COUNT, name, text(change)) end
  end
  redis.call('HINCRBY', COUNT, 'version', 1)
  return counts()
end

-- Whether a message is out with a claim that is later than the one it came back from.
local function claimed(shard, number, after)
  local all = redis.call('HGETALL', P .. ':c:' .. shard)
  for i = 1, #all, 2 do
    if tonumber(all[i]) > after and string.find(all[i + 1], ' ' .. number .. ' ', 1, true) then return 1 end
  end
  return 0
end

local left = {} -- by shard and entry: how many messages leave it
local function leave(state, shard, number, entry)
  if state == 'q' then
    local of_shard = left[shard] or {}
    left[shard] = of_shard
    of_shard[entry] = (of_shard[entry] or 0) + 1
  elseif state == 'h' then
    redis.call('HDEL', P .. ':h:' .. shard, number)
  end
end

local function have_left()
  for shard, entries in pairs(left) do
    for entry, fewer in pairs(entries) do
      if redis.call('HINCRBY', P .. ':p:' .. shard, entry, -fewer) <= 0 then
        redis.call('HDEL', P .. ':p:' .. shard, entry)
        redis.call('XDEL', P .. ':q:' .. shard, entry .. '-0')
      end
    end
  end
end
"""
