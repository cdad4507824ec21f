-- Tells a server that lost it what a process remembers: terms of a later revision, and counts of quotas that are higher.
--
-- KEYS[1]  the stack's hash, see reserve.lua
-- ARGV     time to keep the key in ms, rev, terms, channel, stack, then for each quota: name, start, end, used, next
-- Returns  1 when the terms were news
local key, news = KEYS[1], 0
if tonumber(ARGV[2]) > (tonumber(redis.call('HGET', key, 'rev') or '0')) then
  redis.call('HSET', key, 'rev', ARGV[2], 'terms', ARGV[3])
  redis.call('PUBLISH', ARGV[4], 'terms ' .. ARGV[5])
  news = 1
end
for a = 6, #ARGV, 5 do
  local field = 'l:' .. ARGV[a]
  local start, used, following = string.match(redis.call('HGET', key, field) or '', '^(%d+) %d+ (%d+) (%d+)$')
  start, used, following = tonumber(start) or 0, tonumber(used) or 0, tonumber(following) or 0
  local own = tonumber(ARGV[a + 1])
  if own > start then
    used, following = 0, 0
  end
  if own >= start then
    redis.call('HSET', key, field, string.format('%s %s %.0f %.0f', ARGV[a + 1], ARGV[a + 2],
      math.max(used, tonumber(ARGV[a + 3])), math.max(following, tonumber(ARGV[a + 4]))))
  end
end
if redis.call('PTTL', key) < tonumber(ARGV[1]) and redis.call('EXISTS', key) == 1 then
  redis.call('PEXPIRE', key, ARGV[1])
end
return news
