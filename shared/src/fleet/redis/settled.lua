-- Turns are over: what the results of each count as is counted, once.
--
-- KEYS  the batch, its dead letters, its calls; of each turn: the job's shard, who has the job in hand
-- ARGV  process, time to keep (s); of each turn: job, turn, end (done, again, dead), tally, `again` or nothing
-- Returns  of each turn nothing; of the last one that was done what is known of the batch, where they completed it
local batch, dead, calls = KEYS[1], KEYS[2], KEYS[3]
local token, ttl = ARGV[1], tonumber(ARGV[2])
local nothing = {}
-- How many turns count as much: most have the same tally.
local turns = {}
-- Of jobs that are in nobody's hands any more.
local gone = {}

local function settled(key, argument)
  local shard, hands = KEYS[key + 1], KEYS[key + 2]
  local id, turn, ends, tally = ARGV[argument + 1], ARGV[argument + 2], ARGV[argument + 3], ARGV[argument + 4]
  local stored = redis.call('HGET', shard, id)
  -- Most jobs are done with the call of their first turn. When it left, the shard's time was seen to.
  local open = '0 A ' .. turn .. ' '
  if ends == 'done' and stored and string.sub(stored, 1, #open) == open then
    redis.call('HSET', shard, id, '0')
    gone[#gone + 1], said_of[id] = hands, false
    turns[tally] = (turns[tally] or 0) + 1
    return nothing
  end

  local state = parse(stored)
  turn = tonumber(turn)
  if turn < state.floor then
    return nothing
  end
  overtake(state, turn, batch, dead, id)

  local later = state.turn and state.turn > turn
  if ends ~= 'again' then
    gone[#gone + 1] = hands
  end
  if ends == 'done' or not later then
    if state.turn then
      said_of[id] = false
    end
    local over = text(turn + 1)
    if ends == 'done' then
      over = '0'
    elseif ends == 'dead' then
      local of = numbers(tally)
      if of.rejected + of.dead + of.ambiguous > 0 then
        redis.call('HSET', dead, id, string.format('%.0f %.0f %.0f', of.rejected, of.dead, of.ambiguous))
        keep(dead, KEPT)
        over = over .. ' D'
      end
    end
    -- Of an answered call, the shard's time was seen to when it left.
    write(shard, id, state.kind ~= 'A' and ttl or nil, over)
  else
    -- The call of a later turn goes on.
    local rest = string.match(stored, '^%S+ (.*)$')
    write(shard, id, ttl, text(turn + 1) .. ' ' .. rest)
  end
  -- At last: what can't be stored is not counted.
  turns[tally] = (turns[tally] or 0) + 1
  return nothing
end

local answers = each(3, 2, 5, settled)
write_said(calls, ttl)
in_parts(gone, function(...) redis.call('DEL', ...) end)
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
