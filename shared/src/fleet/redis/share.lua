-- Shares the calls in flight of one limit between the processes: each says what it has and what it could use.
--
-- KEYS[1]  the limit's hash: rid, learn (nothing new is given before), and for each process
--          p:<process> = "<share> <wanted> <until>"
-- ARGV     process, calls in flight allowed, held, wanted, share that it has by its own knowledge, lease, clock step,
--          channel, stack.   Microseconds.
-- Returns  now, share, until, contended (0 or 1), sum of all shares, processes
local key, me = KEYS[1], 'p:' .. ARGV[1]
local most, held, wanted = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local claim, lease, step = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local rid = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
if not rid then
  return redis.error_reply('ERR INFO replication shows no master_replid, so lost state could not be noticed')
end

local known = redis.call('HGETALL', key)
local fields, processes, order = {}, {}, {}
for at = 1, #known, 2 do
  fields[known[at]] = known[at + 1]
end
local learn = tonumber(fields.learn) or 0
if fields.rid ~= rid then
  -- Shares may be missing: whoever has one says so within its lease, and until then nobody gets more than it has.
  learn = now + lease + step
  redis.call('HSET', key, 'rid', rid, 'learn', string.format('%.0f', learn))
end
for field, value in pairs(fields) do
  local share, want, ends = string.match(value, '^(%d+) (%d+) (%d+)$')
  -- An end further away than any lease is of a clock that was set back.
  if share and (tonumber(ends) <= now or tonumber(ends) > now + 2 * lease + step) and field ~= me then
    redis.call('HDEL', key, field)
  elseif share and field ~= me then
    processes[field] = {share = tonumber(share), want = tonumber(want)}
    order[#order + 1] = field
  end
end
local mine, before = string.match(fields[me] or '', '^(%d+) (%d+)')
mine, before = tonumber(mine) or 0, tonumber(before) or 0
processes[me] = {share = mine, want = math.max(held, wanted)}
order[#order + 1] = me
table.sort(order)

-- What everybody would have if all were shared out fairly: as much as it wants, or as much as the others that want more.
local left, hungry, fair = most, #order, {}
local by_want = {}
for i = 1, #order do by_want[i] = order[i] end
table.sort(by_want, function(a, b)
  if processes[a].want ~= processes[b].want then return processes[a].want < processes[b].want end
  return a < b
end)
local demand = 0
for i = 1, #by_want do
  local want = processes[by_want[i]].want
  demand = demand + want
  fair[by_want[i]] = math.min(want, math.floor(left / hungry))
  left, hungry = left - fair[by_want[i]], hungry - 1
end

local taken = 0
for i = 1, #order do
  if order[i] ~= me then
    taken = taken + processes[order[i]].share
  end
end
local free = math.max(0, most - taken)
local share = math.max(held, math.min(fair[me], free))
if now < learn then
  share = math.max(held, math.min(math.max(mine, claim), fair[me]))
end
local ends = now + lease
if share == 0 and wanted == 0 then
  redis.call('HDEL', key, me)
else
  redis.call('HSET', key, me, string.format('%.0f %.0f %.0f', share, math.max(held, wanted), ends))
end
-- A missing key is lost state, which costs a lease of waiting: so it outlives its processes.
redis.call('PEXPIRE', key, string.format('%.0f', 31 * 86400000))

-- What was given back is somebody's; and who begins to want more must be heard by those who have more than their part.
local contended = demand > most
if contended and (share < mine or share < fair[me] and wanted > before) then
  redis.call('PUBLISH', ARGV[8], 'share ' .. ARGV[9])
end
return {now, share, ends, contended and 1 or 0, taken + share, #order}
