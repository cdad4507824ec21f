-- What a producer says of its batch. Counts never shrink.
--
-- KEYS  the batch
-- ARGV  jobs, results to expect, closed (1: that is all)
local batch = KEYS[1]
local time = redis.call('TIME')
redis.call('HSETNX', batch, 'opened_at', string.format('%d%06d', time[1], time[2]))
local known = redis.call('HMGET', batch, 'jobs', 'expected')
redis.call('HSET', batch, 'jobs', text(math.max(tonumber(known[1] or 0), tonumber(ARGV[1]))))
redis.call('HSET', batch, 'expected', text(math.max(tonumber(known[2] or 0), tonumber(ARGV[2]))))
-- A batch that was closed stays so while a further enqueue is under way, which may add nothing: what it adds is expected at its
-- end.
if ARGV[3] == '1' then
  redis.call('HSET', batch, 'closed', '1')
end
keep(batch, KEPT)
uncompleted(batch)
return {}
