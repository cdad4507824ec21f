-- A dead letter is sent again: its results no longer count as dead, and its new turn is free.
--
-- KEYS  the batch, its dead letters, its calls, the job's shard, who has the job in hand
-- ARGV  job, the new turn, time to keep (s)
-- Returns  1, or 0 where it was said before
local batch, dead, calls, shard, hands = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local id, turn, ttl = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local state = read(shard, id)
if turn <= state.floor or (state.turn and state.turn >= turn) then
  return 0
end
overtake(state, turn, batch, dead, id, true)
-- Its state may be forgotten, while it still counts.
unbury(batch, dead, id)
redis.call('HDEL', calls, id)
redis.call('DEL', hands)
write_floor(shard, id, ttl, turn)
return 1
