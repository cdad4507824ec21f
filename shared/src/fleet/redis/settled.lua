-- A turn is over: what its results count as is counted, once.
--
-- KEYS  the batch, its dead letters, the job's shard, the call's payload, who has the job in hand
-- ARGV  job, turn, process, end (done, again, dead), time to keep (s), the six counts of the tally
-- Returns  what is known of the batch, where this completed it
local batch, dead, shard, payload, hands = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local id, turn, token, ends, ttl = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], tonumber(ARGV[5])
local state = read(shard, id)
if turn < state.floor then
  return {}
end
overtake(state, turn, batch, dead, id)
local tally = {}
for at, kind in ipairs(KINDS) do
  tally[kind] = tonumber(ARGV[5 + at])
end
count(batch, tally)

local later = state.turn and state.turn > turn
local gone = {}
if ends ~= 'again' then
  gone[1] = hands
end
if ends == 'done' or not later then
  if state.turn then
    gone[#gone + 1] = payload
  end
  local stored = text(turn + 1)
  if ends == 'done' then
    stored = '0'
  elseif ends == 'dead' and tally.rejected + tally.dead + tally.ambiguous > 0 then
    local counted = string.format('%.0f %.0f %.0f', tally.rejected, tally.dead, tally.ambiguous)
    redis.call('HSET', dead, id, counted)
    keep(dead, KEPT)
    stored = stored .. ' D'
  end
  -- Of an answered call, the shard's time was seen to when it left.
  write(shard, id, state.kind ~= 'A' and ttl or nil, stored)
else
  -- The call of a later turn goes on.
  local rest = string.match(redis.call('HGET', shard, id), '^%S+ (.*)$')
  write(shard, id, ttl, text(turn + 1) .. ' ' .. rest)
end
if #gone > 0 then
  redis.call('DEL', unpack(gone))
end
return completed(batch, token)
