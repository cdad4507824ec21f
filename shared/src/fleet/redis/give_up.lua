-- Ends a claim, unless it is another one's, or an answer.
--
-- KEYS  the answer
-- ARGV  the claim
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
return {}
