-- The probe after a hold-off was answered, so everybody may leave; or somebody ends the hold-off itself.
--
-- KEYS[1]  the stack's hash, see reserve.lua
-- ARGV     1: the hold-off ends, too; channel, stack
-- Returns  how many fields went
local gone = redis.call('HDEL', KEYS[1], 'pb')
if ARGV[1] == '1' then
  gone = gone + redis.call('HDEL', KEYS[1], 'nb')
end
if gone > 0 then
  redis.call('PUBLISH', ARGV[2], (ARGV[1] == '1' and 'free ' or 'open ') .. ARGV[3])
end
return gone
