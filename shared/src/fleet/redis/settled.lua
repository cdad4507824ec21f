-- Turns are over: what the results of each count as is counted, once.
--
-- KEYS  the batch, its dead letters; of each turn: the job's shard, the call's payload, who has the job in hand
-- ARGV  process, time to keep (s); of each turn: job, turn, end (done, again, dead), the six counts of the tally, `again` or nothing
-- Returns  of each turn nothing; of the last one what is known of the batch, where they completed it
local batch, dead = KEYS[1], KEYS[2]
local token, ttl = ARGV[1], tonumber(ARGV[2])
local counted = {}

local function settled(shard, payload, hands, id, turn, ends, ...)
  turn = tonumber(turn)
  local state = read(shard, id)
  if turn < state.floor then
    return {}
  end
  overtake(state, turn, batch, dead, id)
  local tally = {}
  for at, kind in ipairs(KINDS) do
    tally[kind] = tonumber((select(at, ...)))
  end

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
      redis.call('HSET', dead, id, string.format('%.0f %.0f %.0f', tally.rejected, tally.dead, tally.ambiguous))
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
  -- At last: what can't be stored is not counted.
  for kind, number in pairs(tally) do
    counted[kind] = (counted[kind] or 0) + number
  end
  return {}
end

local answers = each(2, 3, 10, settled)
count(batch, counted)
local whole = completed(batch, token)
if #whole > 0 then
  answers[#answers] = whole
end
return answers
