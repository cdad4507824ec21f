-- What became of calls: paid for; free; unsent; untold, where it was not heard whether the intent is recorded, and it may
-- still be on its way; or lost, where nobody will hear the answer any more. What was answered goes on the bill of its day, each
-- call once.
--
-- KEYS  the batch, its dead letters, its calls, its part of the day's bill; of each call: the job's shard
-- ARGV  process, time to keep (s); of each call: what, job, turn, call, number of the word, tally, what follows, lines of the bill
--       (each what it costs and its name), `again` where it may have been said before, or nothing
-- Returns  of each call {'over'} where it was paid for and comes too late, else {'stands'}
local batch, dead, calls, bill = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local token, ttl = ARGV[1], tonumber(ARGV[2])
local stands, over = {'stands'}, {'over'}
-- How many calls are new on the bill, by their lines: most have the same. For free, and paid.
local free, paid = {}, {}

local function answered(key, argument)
  local shard = KEYS[key + 1]
  local what, id, turn = ARGV[argument + 1], ARGV[argument + 2], ARGV[argument + 3]
  local call, lines = ARGV[argument + 4], ARGV[argument + 8]
  local stored = redis.call('HGET', shard, id)
  -- Most were paid for on the job's first turn, and are under way. Of those the shard's time was seen to when they left.
  local open = '0 O ' .. turn .. ' '
  if what == 'paid' and stored and string.sub(stored, 1, #open) == open then
    redis.call('HSET', shard, id, '0 A ' .. turn .. ' ' .. call .. ' ' .. ARGV[argument + 6])
    said_of[id] = ARGV[argument + 7]
    paid[lines] = (paid[lines] or 0) + 1
    return stands
  end

  local n, again = tonumber(ARGV[argument + 5]), ARGV[argument + 9] == 'again'
  local state = parse(stored)
  turn = tonumber(turn)
  local news, late = false, false

  if what == 'paid' then
    if turn < state.floor or (state.turn and state.turn > turn) then
      -- Too late for anybody to use it, and paid for all the same.
      news, late = not again, true
    elseif state.kind == 'A' and state.turn == turn then
      news = state.call ~= call and not again
    else
      overtake(state, turn, batch, dead, id)
      -- Of a call that is under way, the shard's time was seen to when it left.
      local shard_ttl = state.kind ~= 'O' and ttl or nil
      write(shard, id, shard_ttl, string.format('%.0f A %.0f %s %s', state.floor, turn, call, ARGV[argument + 6]))
      said_of[id] = ARGV[argument + 7]
      news = true
    end
  elseif what == 'lost' then
    if state.kind == 'O' and state.turn == turn and state.call == call then
      write(shard, id, ttl, string.format('%.0f O %.0f %s 0 %s %.0f', state.floor, turn, state.token, call, state.n))
    end
  elseif state.kind == 'O' and state.turn == turn and state.token == token and state.call == call and state.n <= n then
    write_floor(shard, id, ttl, state.floor)
    said_of[id] = false
    state.kind, state.turn = nil, nil
    news = what == 'free'
  end
  if what == 'untold' and turn >= state.floor and (not state.kind or state.kind == 'U') then
    write(shard, id, ttl, string.format('%.0f U %s %.0f', state.floor, token, n))
  end

  if news then
    local bill_of = what == 'free' and free or paid
    bill_of[lines] = (bill_of[lines] or 0) + 1
  end
  return late and over or stands
end

local answers = each(4, 1, 9, answered)
write_said(calls, ttl)
-- By field of the bill, what is added to it.
local billed = {}

local function add(field, number)
  if number > 0 then
    billed[field] = (billed[field] or 0) + number
  end
end

for lines, times in pairs(free) do
  for _, name in string.gmatch(lines, '(%d+) ([^\n]+)') do
    add('f' .. name, times)
  end
end
for lines, times in pairs(paid) do
  for cost, name in string.gmatch(lines, '(%d+) ([^\n]+)') do
    add('c' .. name, times)
    add('m' .. name, tonumber(cost) * times)
  end
end
for field, number in pairs(billed) do
  redis.call('HINCRBY', bill, field, text(number))
end
if next(billed) then
  keep(bill, KEPT)
end
return answers
