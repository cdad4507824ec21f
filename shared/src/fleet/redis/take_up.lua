-- A job that was lent before is in a process' hands.
--
-- KEYS  the batch's calls, the job's shard, who has the job in hand
-- ARGV  job, turn, process, time to keep (s)
-- Returns  what stands against a call of its turn, or {'clear'}; and every other process that has it in hand
local calls, shard, hands = KEYS[1], KEYS[2], KEYS[3]
local token, ttl = ARGV[3], tonumber(ARGV[4])
local others = {}
for _, other in ipairs(redis.call('SMEMBERS', hands)) do
  if other ~= token then
    others[#others + 1] = other
  end
end
redis.call('SADD', hands, token)
redis.call('EXPIRE', hands, ttl)
return {against(read(shard, ARGV[1]), tonumber(ARGV[2]), calls, ARGV[1]) or {'clear'}, others}
