-- Gives back what a call took from the quotas of a stack: State::refund of shared/src/gcra.rs.
--
-- KEYS[1]  the stack's hash, see reserve.lua
-- ARGV     for each quota: its name, and the units in millionths
-- Returns  how many quotas it was given back to
local given = 0
for a = 1, #ARGV, 2 do
  local field, cost = 'l:' .. ARGV[a], tonumber(ARGV[a + 1])
  local bounds, used, following = string.match(redis.call('HGET', KEYS[1], field) or '', '^(%d+ %d+) (%d+) (%d+)$')
  if bounds then
    used, following = tonumber(used), tonumber(following)
    if used >= cost then
      used = used - cost
    else
      following = math.max(0, following - cost)
    end
    redis.call('HSET', KEYS[1], field, string.format('%s %.0f %.0f', bounds, used, following))
    given = given + 1
  end
end
return given
