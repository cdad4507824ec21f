-- Moves every later slot of a stack back, because a call leaves so much after its slot: State::late of
-- shared/src/gcra.rs. State that was lost is rebuilt by the next reservation as an upper bound, which covers this.
--
-- KEYS[1]  the stack's hash, see reserve.lua
-- ARGV     by how much, in microseconds
-- Returns  how many limits were moved
local by, moved = tonumber(ARGV[1]), 0
local known = redis.call('HGETALL', KEYS[1])
for at = 1, #known, 2 do
  local tat, interval = string.match(known[at + 1], '^(%d+) (%d+)$')
  if string.sub(known[at], 1, 2) == 'l:' and tat then
    redis.call('HSET', KEYS[1], known[at], string.format('%.0f %s', tonumber(tat) + by, interval))
    moved = moved + 1
  end
end
return moved
