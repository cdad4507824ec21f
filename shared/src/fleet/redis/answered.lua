-- What became of calls: paid for; free; unsent; untold, where it was not heard whether the intent is recorded, and it may
-- still be on its way; or lost, where nobody will hear the answer any more. What was answered goes on the bill of its day, each
-- call once.
--
-- KEYS  the batch, its dead letters, the batch's part of the day's bill; of each call: the job's shard, the call's payload
-- ARGV  process, time to keep (s); of each call: what, job, turn, call, number of the word, tally, what follows, lines of the bill
--       (each what it costs and its name), `again` where it may have been said before, or nothing
-- Returns  of each call {'over'} where it was paid for and comes too late, else {'stands'}
local batch, dead, bill = KEYS[1], KEYS[2], KEYS[3]
local token, ttl = ARGV[1], tonumber(ARGV[2])
-- By field of the bill, what is added to it.
local billed = {}

local function add(field, number)
  billed[field] = (billed[field] or 0) + number
end

local function answered(shard, payload, what, id, turn, call, n, tally, follows, lines, again)
  turn, n, again = tonumber(turn), tonumber(n), again == 'again'
  local state = read(shard, id)
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
      write(shard, id, shard_ttl, string.format('%.0f A %.0f %s %s', state.floor, turn, call, tally))
      redis.call('SET', payload, follows, 'EX', ttl)
      news = true
    end
  elseif what == 'lost' then
    if state.kind == 'O' and state.turn == turn and state.call == call then
      write(shard, id, ttl, string.format('%.0f O %.0f %s 0 %s %.0f', state.floor, turn, state.token, call, state.n))
    end
  elseif state.kind == 'O' and state.turn == turn and state.token == token and state.call == call and state.n <= n then
    write_floor(shard, id, ttl, state.floor)
    redis.call('DEL', payload)
    state.kind, state.turn = nil, nil
    news = what == 'free'
  end
  if what == 'untold' and turn >= state.floor and (not state.kind or state.kind == 'U') then
    write(shard, id, ttl, string.format('%.0f U %s %.0f', state.floor, token, n))
  end

  if news then
    for cost, name in string.gmatch(lines, '(%d+) ([^\n]+)') do
      if what == 'free' then
        add('f' .. name, 1)
      else
        add('c' .. name, 1)
        add('m' .. name, tonumber(cost))
      end
    end
  end
  return late and {'over'} or {'stands'}
end

local answers = each(3, 2, 9, answered)
for field, number in pairs(billed) do
  if number > 0 then
    redis.call('HINCRBY', bill, field, text(number))
  end
end
if next(billed) then
  keep(bill, KEPT)
end
return answers
