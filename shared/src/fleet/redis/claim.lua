-- An answer that is kept, or the claim on it.
--
-- KEYS  the answer
-- ARGV  the claim, for how long (ms), the claim of a process that is gone ('' for none)
-- Returns  {'claimed'}, {'awaited', whose claim there is}, or {'found', the answer}
local known = redis.call('GET', KEYS[1])
if not known or known == ARGV[3] then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return {'claimed'}
elseif string.sub(known, 1, 1) == 'c' then
  return {'awaited', known}
end
return {'found', known}
