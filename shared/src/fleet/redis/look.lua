-- What the server has of a stack, and its clock.
--
-- KEYS[1]  the stack's hash, see reserve.lua
-- Returns  now in microseconds, field, value, ...
local time = redis.call('TIME')
return {time[1] * 1000000 + time[2], redis.call('HGETALL', KEYS[1])}
