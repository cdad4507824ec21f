-- Changes a stack's terms, if they are still those that the change was made from, and keeps who did it.
--
-- KEYS[1]  the stack's hash, see reserve.lua;  KEYS[2]  its list of changes
-- ARGV     rev that it was made from, new rev, terms, amendment ('': none to keep), time to keep in ms, channel, stack,
--          then, to set what is used of a quota: its name, start, end, used, next
-- Returns  {1, 0, ''}, or {0, rev, terms} of those that are in force
local key = KEYS[1]
local known = redis.call('HMGET', key, 'rev', 'terms')
if (known[1] or '0') ~= ARGV[1] then
  return {0, tonumber(known[1] or '0'), known[2] or ''}
end
redis.call('HSET', key, 'rev', ARGV[2], 'terms', ARGV[3])
if ARGV[8] then
  redis.call('HSET', key, 'l:' .. ARGV[8], table.concat({ARGV[9], ARGV[10], ARGV[11], ARGV[12]}, ' '))
end
if ARGV[4] ~= '' then
  redis.call('LPUSH', KEYS[2], ARGV[4])
  redis.call('LTRIM', KEYS[2], 0, 999)
  redis.call('PEXPIRE', KEYS[2], ARGV[5])
end
redis.call('PEXPIRE', key, ARGV[5])
redis.call('PUBLISH', ARGV[6], 'terms ' .. ARGV[7])
return {1, 0, ''}
