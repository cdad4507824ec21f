-- Turns are over: what the results of each count as is counted, once.
--
-- KEYS  the batch, its dead letters; of each turn: the job's shard, the call's payload, who has the job in hand
-- ARGV  process, time to keep (s); of each turn: job, turn, end (done, again, dead), tally, `again` or nothing
-- Returns  of each turn nothing; of the last one that was done what is known of the batch, where they completed it
local batch, dead = KEYS[1], KEYS[2]
local token, ttl = ARGV[1], tonumber(ARGV[2])
local nothing = {}
-- How many turns count as much: most have the same tally.
local turns = {}

local function settled(key, argument)
  local shard, payload, hands = KEYS[key + 1], KEYS[key + 2], KEYS[key + 3]
  local id, turn, ends, tally =
    ARGV[argument + 1], tonumber(ARGV[argument + 2]), ARGV[argument + 3], ARGV[argument + 4]
  local state = read(shard, id)
  if turn < state.floor then
    return nothing
  end
  overtake(state, turn, batch, dead, id)

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
    elseif ends == 'dead' then
      local of = numbers(tally)
      if of.rejected + of.dead + of.ambiguous > 0 then
        redis.call('HSET', dead, id, string.format('%.0f %.0f %.0f', of.rejected, of.dead, of.ambiguous))
        keep(dead, KEPT)
        stored = stored .. ' D'
      end
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
  turns[tally] = (turns[tally] or 0) + 1
  return nothing
end

local answers = each(2, 3, 5, settled)
local counted = {}
for tally, times in pairs(turns) do
  for kind, number in pairs(numbers(tally)) do
    counted[kind] = (counted[kind] or 0) + number * times
  end
end
count(batch, counted)
-- Whoever is told has to hear nothing else: a part that was not done is said again.
local heard = #answers
while heard > 0 and answers[heard].err do
  heard = heard - 1
end
local whole = heard > 0 and completed(batch, token) or nothing
if #whole > 0 then
  answers[heard] = whole
end
return answers
