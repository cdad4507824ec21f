-- The claim on an answer goes over from a process that is gone.
--
-- KEYS  the answer
-- ARGV  the claim, for how long (ms), the claim of the process that is gone
-- Returns  nothing where it is claimed, else what is there: an answer, or another one's claim
local known = redis.call('GET', KEYS[1])
if not known or known == ARGV[3] then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return false
end
return known
