-- Books the next moments that satisfy every limit of a stack at once. The twin of shared/src/gcra.rs: same numbers.
--
-- KEYS[1]  the stack's hash: rid, at, nb (no call before), and for each limit l:<name> = "<tat> <interval>"
-- ARGV     horizon, clock step, lead, doubt (0 or 1), time to keep an idle key in ms, number of limits,
--          then for each limit: name, interval, tolerance, heaviest, counts models (0 or 1),
--          then the models of each call.   Times in microseconds.
-- Returns  now, lost (0 or 1), nb, come back (0 when slots were booked), slots...
local key = KEYS[1]
local horizon, step, lead = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local doubt, keep_ms, n = ARGV[4] == '1', tonumber(ARGV[5]), tonumber(ARGV[6])
local first_call = 7 + 5 * n

-- One look at the clock: within a script it goes on.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
-- Another replid than the one that the state was written under: a restart, a failover, a flush. The last grants
-- may be missing from what is stored.
local rid = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
if not rid then
  return redis.error_reply('ERR INFO replication shows no master_replid, so lost state could not be noticed')
end

local fields = {'rid', 'at', 'nb'}
for i = 1, n do
  fields[3 + i] = 'l:' .. ARGV[2 + 5 * i]
end
local known = redis.call('HMGET', key, unpack(fields))
local lost = doubt or known[1] ~= rid
local changed = lost

-- A clock that was set back: as if no time had passed since the last change.
local back = math.max(0, (tonumber(known[2]) or 0) - now)
local nb = math.max(0, (tonumber(known[3]) or 0) - back)
changed = changed or back > 0

local tat, T, tau, heaviest, per_model = {}, {}, {}, {}, {}
for i = 1, n do
  local a = 2 + 5 * i
  T[i], tau[i], heaviest[i] = tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3])
  per_model[i] = ARGV[a + 4] == '1'
  local stored_tat, stored_T = string.match(known[3 + i] or '', '^(%d+) (%d+)$')
  if stored_tat then
    tat[i] = math.max(0, tonumber(stored_tat) - back)
    stored_T = tonumber(stored_T)
    if stored_T ~= T[i] then
      -- A changed limit binds from now on: the units that are still to leave count, at the new price.
      if tat[i] >= now then
        tat[i] = now + math.ceil((tat[i] - now) / stored_T * T[i])
      end
      changed = true
    end
  end
  if lost or not stored_tat then
    -- The upper bound of whatever was granted.
    tat[i] = math.max(tat[i] or 0, now + horizon + step + T[i] * heaviest[i])
    changed = true
  end
end

local slots, come_back = {}, 0
for j = first_call, #ARGV do
  local models = math.max(1, tonumber(ARGV[j]))
  local slot = math.max(now + lead, nb)
  for i = 1, n do
    local own = per_model[i] and T[i] * (models - 1) or 0
    slot = math.max(slot, tat[i] + own - tau[i])
  end
  if slot > now + horizon then
    if #slots == 0 then
      come_back = slot
    end
    break
  end
  for i = 1, n do
    tat[i] = math.max(tat[i], slot) + T[i] * (per_model[i] and models or 1)
  end
  slots[#slots + 1] = slot
end

-- Limits that this stack no longer has are forgotten: one that returns begins as lost.
local held = 0
for i = 1, #fields do
  held = held + (known[i] and 1 or 0)
end
local stale = redis.call('HLEN', key) > held
if changed or stale or #slots > 0 then
  local whole = '%.0f'
  local latest = nb
  local write = {'rid', rid, 'at', string.format(whole, now), 'nb', string.format(whole, nb)}
  for i = 1, n do
    write[#write + 1] = fields[3 + i]
    write[#write + 1] = string.format('%.0f %.0f', tat[i], T[i])
    latest = math.max(latest, tat[i])
  end
  if stale then
    redis.call('DEL', key)
  end
  redis.call('HSET', key, unpack(write))
  redis.call('PEXPIRE', key, string.format(whole, keep_ms + math.max(0, latest - now) / 1000))
end

local reply = {now, lost and 1 or 0, nb, come_back}
for j = 1, #slots do
  reply[4 + j] = slots[j]
end
return reply
