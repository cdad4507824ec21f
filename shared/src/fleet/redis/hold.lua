-- Keeps a batch, or lets it go on. What is cancelled stays so.
--
-- KEYS  what keeps batches
-- ARGV  batch, what is to keep it ('' for nothing), channel
-- Returns  what keeps it now, or false
local held, batch = KEYS[1], ARGV[1]
local before = redis.call('HGET', held, batch)
if before and cjson.decode(before).hold == 'cancelled' then
  return before
end
if ARGV[2] ~= '' then
  redis.call('HSET', held, batch, ARGV[2])
elseif before then
  redis.call('HDEL', held, batch)
end
redis.call('PUBLISH', ARGV[3], 'holds ' .. batch)
return redis.call('HGET', held, batch)
