-- Books the next moments that satisfy every limit of a stack at once. The twin of shared/src/gcra.rs: same numbers.
--
-- KEYS[1]  the stack's hash: rid, at, nb (no call before), pb (probe: 1 due, else out until then), rev and terms (what was
--          changed at run time), mj and mt (the largest jitter measured, and when), n (calls granted), and for each limit
--          l:<name> = "<tat> <interval>" of a rate, "<start> <end> <used> <next>" of a quota
-- ARGV     horizon, clock step, lead, doubt (0 or 1), time to keep an idle key in ms, rev, measured jitter, probe's
--          time, number of limits, number of calls; then for each limit
--            'p', name, interval, tolerance, charge of the heaviest call
--            'c', name, most, guard, start, end, next end, and start, end, used and next as the asker remembers them
--          then for each call, for each limit, its charge (time of a rate, units of a quota); then channel, stack.
--          Times in microseconds, units in millionths.
-- Returns  {1, rev, terms, now, lost} where the asker knows other terms, or not those of lost state
--          {2, now} where its windows are not those of now
--          {0, now, lost, nb, come back (0 when slots were booked), why, probe, mj, n, counts, slots}
--          why: the limit's number, -1 a hold-off, -2 a probe; counts: start, end, used and next of each quota
-- Said here, where every process asks first, and not where an earlier server stumbles over a command of the ledger.
if not redis.REDIS_VERSION then
  return redis.error_reply('ERR pixfleet needs Redis 7.0 or later, and this server is an earlier one')
end

local key = KEYS[1]
local horizon, step, lead = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local doubt, keep_ms, rev, measured = ARGV[4] == '1', tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])
local n, k = tonumber(ARGV[9]), tonumber(ARGV[10])
local whole, year = '%.0f', 366 * 86400000000

-- One look at the clock: within a script it goes on.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
-- Another replid than the one that the state was written under: a restart, a failover, a flush. The last grants
-- may be missing from what is stored.
local rid = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
if not rid then
  return redis.error_reply('ERR INFO replication shows no master_replid, so lost state could not be noticed')
end

local fields, args, a = {'rid', 'at', 'nb', 'pb', 'rev', 'terms', 'mj', 'mt', 'n'}, {}, 11
local named = #fields
for i = 1, n do
  fields[named + i] = 'l:' .. ARGV[a + 1]
  args[i] = a
  a = a + (ARGV[a] == 'p' and 5 or 11)
end
local first_charge = a
local known = redis.call('HMGET', key, unpack(fields))
local lost = doubt or known[1] ~= rid
if (known[5] or '0') ~= rev then
  return {1, tonumber(known[5] or '0'), known[6] or '', now, lost and 1 or 0}
end
local changed = lost

-- A clock that was set back: as if no time had passed since the last change.
local back = math.max(0, (tonumber(known[2]) or 0) - now)
local nb = math.max(0, (tonumber(known[3]) or 0) - back)
local probe = tonumber(known[4])
if probe and probe > 1 then
  probe = math.max(2, probe - back)
end
changed = changed or back > 0

-- tat of a rate, used of a quota; interval or end; used of a quota's next window.
local one, two, three = {}, {}, {}
for i = 1, n do
  local x = args[i]
  if ARGV[x] == 'p' then
    local T = tonumber(ARGV[x + 2])
    local stored_tat, stored_T = string.match(known[named + i] or '', '^(%d+) (%d+)$')
    one[i], two[i] = 0, T
    if stored_tat then
      one[i] = math.max(0, tonumber(stored_tat) - back)
      stored_T = tonumber(stored_T)
      if stored_T ~= T then
        -- A changed limit binds from now on: the units that are still to leave count, at the new price.
        if one[i] >= now then
          one[i] = now + math.ceil((one[i] - now) / stored_T * T)
        end
        changed = true
      end
    end
    if lost or not stored_tat then
      -- The upper bound of whatever was granted.
      one[i] = math.max(one[i], now + horizon + step + tonumber(ARGV[x + 4]))
      changed = true
    end
  else
    local start, ends = tonumber(ARGV[x + 4]), tonumber(ARGV[x + 5])
    if now < start or now >= ends then
      return {2, now}
    end
    local was_start, was_end, used, following = string.match(known[named + i] or '', '^(%d+) (%d+) (%d+) (%d+)$')
    was_start, was_end = tonumber(was_start), tonumber(was_end)
    one[i], two[i], three[i] = 0, ends, 0
    if was_start == start and was_end == ends then
      one[i], three[i] = tonumber(used), tonumber(following)
    elseif was_end == start then
      one[i], changed = tonumber(following), true
    elseif was_end and was_end > now then
      -- Its windows were changed: what was used is not forgotten.
      one[i], three[i], changed = tonumber(used), tonumber(following), true
    else
      changed = true
    end
    if lost or not was_end then
      -- The processes remember what the server forgot.
      if ARGV[x + 7] == ARGV[x + 4] then
        one[i] = math.max(one[i], tonumber(ARGV[x + 9]))
        three[i] = math.max(three[i], tonumber(ARGV[x + 10]))
      elseif ARGV[x + 8] == ARGV[x + 4] then
        one[i] = math.max(one[i], tonumber(ARGV[x + 10]))
      end
      changed = true
    end
  end
end

local slots, come_back, why, probing = {}, 0, 0, 0
local soonest, most = math.max(now + lead, nb), k
if probe and probe > now then
  most, come_back, why = 0, probe, -2
elseif probe then
  most = math.min(1, k)
end
for j = 1, most do
  local slot, keeper, before = soonest, -1, nil
  local charges = first_charge + (j - 1) * n - 1
  repeat
    before = slot
    for i = 1, n do
      local x, charge = args[i], tonumber(ARGV[charges + i])
      local later = slot
      if ARGV[x] == 'p' then
        later = math.max(slot, math.max(0, one[i] + charge - two[i] - tonumber(ARGV[x + 3])))
      else
        local units, guard, ends, next_end = tonumber(ARGV[x + 2]), tonumber(ARGV[x + 3]), two[i], tonumber(ARGV[x + 6])
        local room, room_next = one[i] + charge <= units, three[i] + charge <= units
        later = math.max(slot, tonumber(ARGV[x + 4]) + guard)
        if not (later < ends - guard and room or later < ends and room and room_next) then
          later = math.max(later, ends + guard)
          if not (later < next_end - guard and room_next) then
            later = math.max(later, next_end + guard)
          end
        end
      end
      if later > slot then
        slot, keeper = later, i
      end
    end
  until slot == before
  if slot > now + horizon then
    if #slots == 0 then
      come_back, why = slot, keeper
    end
    break
  end
  for i = 1, n do
    local x, charge = args[i], tonumber(ARGV[charges + i])
    if ARGV[x] == 'p' then
      one[i] = math.max(one[i], slot) + charge
    else
      local guard = tonumber(ARGV[x + 3])
      if slot < two[i] then
        one[i] = one[i] + charge
      end
      if slot >= two[i] - guard then
        three[i] = three[i] + charge
      end
    end
  end
  slots[#slots + 1] = slot
end
if probe and #slots > 0 then
  probing, probe = 1, slots[1] + tonumber(ARGV[8])
end

-- The largest jitter that anybody measured within the last minute.
local mj, mt = tonumber(known[7]) or 0, tonumber(known[8]) or 0
if measured > 0 and (measured >= mj or now - mt > 60000000) then
  mj, mt = measured, now
end

if lost then
  -- Whoever remembers terms or quotas says them again.
  redis.call('PUBLISH', ARGV[first_charge + n * k], 'lost ' .. ARGV[first_charge + n * k + 1])
end

-- Limits that this stack no longer has are forgotten: one that returns begins as lost.
local held = 0
for i = 1, #fields do
  held = held + (known[i] and 1 or 0)
end
local stale = redis.call('HLEN', key) > held
if changed or stale or #slots > 0 then
  local latest = nb
  local write = {'rid', rid, 'at', string.format(whole, now), 'nb', string.format(whole, nb),
    'mj', string.format(whole, mj), 'mt', string.format(whole, mt),
    'n', string.format(whole, (tonumber(known[9]) or 0) + #slots)}
  if probe then
    write[#write + 1], write[#write + 2] = 'pb', string.format(whole, probe)
  end
  for i = 1, n do
    local x = args[i]
    write[#write + 1] = fields[named + i]
    if ARGV[x] == 'p' then
      write[#write + 1] = string.format('%.0f %.0f', one[i], two[i])
      latest = math.max(latest, one[i])
    else
      write[#write + 1] = string.format('%s %s %.0f %.0f', ARGV[x + 4], ARGV[x + 5], one[i], three[i])
      latest = math.max(latest, math.min(two[i], now + year))
    end
  end
  if known[6] then
    -- What somebody changed is not forgotten because nothing is sent.
    latest = math.max(latest, now + year)
  end
  if stale then
    if known[6] then
      write[#write + 1], write[#write + 2] = 'rev', known[5]
      write[#write + 1], write[#write + 2] = 'terms', known[6]
    end
    redis.call('DEL', key)
  end
  redis.call('HSET', key, unpack(write))
  redis.call('PEXPIRE', key, string.format(whole, keep_ms + math.max(0, latest - now) / 1000))
end

local counts = {}
for i = 1, n do
  local x = args[i]
  if ARGV[x] == 'c' then
    counts[#counts + 1] = tonumber(ARGV[x + 4])
    counts[#counts + 1] = tonumber(ARGV[x + 5])
    counts[#counts + 1] = one[i]
    counts[#counts + 1] = three[i]
  end
end
return {0, now, lost and 1 or 0, nb, come_back, why, probing, mj, (tonumber(known[9]) or 0) + #slots, counts, slots}
