-- That a batch is complete is for a process to say, or was said by it.
--
-- KEYS  the batch
-- ARGV  who was to say it ('' for nobody), who is now; '1' when it was said
-- Returns  what is known of the batch, where it is complete and nobody was faster
local batch, before, now = KEYS[1], ARGV[1], ARGV[2]
local known = redis.call('HMGET', batch, 'closed', 'expected', 'total', 'said')
local complete = known[1] == '1' and tonumber(known[3] or 0) >= tonumber(known[2] or 0)
if not complete or (known[4] or '') ~= before then
  return {}
end
redis.call('HSET', batch, 'said', now)
return redis.call('HGETALL', batch)
