-- A call is about to leave: its intent is recorded, unless something stands against it.
--
-- KEYS  the batch, its dead letters, the job's shard, the call's payload
-- ARGV  job, turn, process, call, number of the word, lasts (ms), time to keep (s), the intent
-- Returns  what stands against it, or {'clear'}
local batch, dead, shard, payload = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, turn, token, call, n = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local ttl = tonumber(ARGV[7])
local state = read(shard, id)
if state.kind == 'U' and state.token == token and tonumber(n) <= state.n then
  -- It was on its way for so long that whoever said it has taken it back.
  return {'over'}
end
-- The same call, said again while it waits for its moment; one that is lost has left.
local own = state.kind == 'O' and state.turn == turn and state.token == token and state.call == call and state.ends > 0
if not own or turn < state.floor then
  local stands = against(state, turn, payload)
  if stands then
    return stands
  end
end
overtake(state, turn, batch, dead, id)
local ends = tonumber(redis.call('TIME')[1]) + math.ceil(tonumber(ARGV[6]) / 1000)
write(shard, id, ttl, string.format('%.0f O %.0f %s %.0f %s %s', state.floor, turn, token, ends, call, n))
redis.call('SET', payload, ARGV[8], 'EX', ttl)
return {'clear'}
