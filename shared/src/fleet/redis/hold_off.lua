-- Pauses a stack: nothing is booked before now + pause. A shorter pause never ends a longer one.
--
-- KEYS[1]  the stack's hash, see reserve.lua
-- ARGV     pause, not later than (0: no bound), probe (1: one call goes ahead at the end), time to keep an idle key in ms,
--          channel, stack.   Microseconds.
-- Returns  now, nb
local key = KEYS[1]
local pause, bound, keep_ms = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local known = redis.call('HMGET', key, 'at', 'nb')
-- After the clock was set back, what is stored is still told in the clock from before: see reserve.lua.
local back = math.max(0, (tonumber(known[1]) or 0) - now)
local nb = math.max(0, (tonumber(known[2]) or 0) - back)

local wanted = now + pause
if bound > 0 then
  wanted = math.min(wanted, bound)
end
if ARGV[3] == '1' then
  redis.call('HSET', key, 'pb', '1')
end
if wanted > nb then
  nb = wanted
  redis.call('HSET', key, 'nb', string.format('%.0f', nb + back))
  local keep = math.ceil(keep_ms + math.max(0, nb - now) / 1000)
  if redis.call('PTTL', key) < keep then
    redis.call('PEXPIRE', key, string.format('%.0f', keep))
  end
  redis.call('PUBLISH', ARGV[5], string.format('held %.0f %.0f %s', nb, math.max(0, nb - now), ARGV[6]))
end
return {now, nb}
