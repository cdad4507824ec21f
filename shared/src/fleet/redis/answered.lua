-- What became of a call: paid for; free; unsent; untold, where it was not heard whether its intent is recorded, and it may
-- still be on its way; or lost, where nobody will hear its answer any more. What was answered goes on the bill of its day, each
-- call once.
--
-- KEYS  the batch, its dead letters, the job's shard, the call's payload, the batch's part of the day's bill
-- ARGV  what, job, turn, process, call, number of the word, time to keep (s), tally, what follows, lines of the bill (how many;
--       each its name and what it costs); and `again` where it may have been said before
-- Returns  {'over'} where it was paid for and comes too late, else {'stands'}
local batch, dead, shard, payload, bill = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local what, id, turn, token, call = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local n, ttl, lines = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[10])
local again = ARGV[10 + 2 * lines + 1] == 'again'
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
    write(shard, id, shard_ttl, string.format('%.0f A %.0f %s %s', state.floor, turn, call, ARGV[8]))
    redis.call('SET', payload, ARGV[9], 'EX', ttl)
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
  for line = 1, lines do
    local name, cost = ARGV[9 + 2 * line], tonumber(ARGV[10 + 2 * line])
    if what == 'free' then
      redis.call('HINCRBY', bill, 'f' .. name, 1)
    else
      redis.call('HINCRBY', bill, 'c' .. name, 1)
      if cost > 0 then
        redis.call('HINCRBY', bill, 'm' .. name, cost)
      end
    end
  end
  keep(bill, KEPT)
end
return late and {'over'} or {'stands'}
