-- Keeps a batch, or lets it go on. What is cancelled stays so.
--
-- KEYS  what keeps batches
-- ARGV  batch, what is to keep it ('' for nothing), channel, a name for what is stored here, where it has none yet: whoever
--       knows another name knows that a server lost what it had
-- Returns  what keeps it now, or false; and the name
local held, batch = KEYS[1], ARGV[1]
local before = redis.call('HGET', held, batch)
if before and cjson.decode(before).hold == 'cancelled' then
  return {before, redis.call('HGET', held, '')}
end
if ARGV[2] ~= '' then
  redis.call('HSET', held, batch, ARGV[2])
  redis.call('HSETNX', held, '', ARGV[4])
elseif before then
  redis.call('HDEL', held, batch)
end
redis.call('PUBLISH', ARGV[3], 'holds ' .. batch)
return redis.call('HMGET', held, batch, '')
