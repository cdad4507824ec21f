-- Calls are about to leave: the intent of each is recorded, unless something stands against it.
--
-- KEYS  the batch, its dead letters, its calls; of each call: the job's shard
-- ARGV  process, time to keep (s); of each call: job, turn, call, number of the word, lasts (ms), the intent, `again` or nothing
-- Returns  of each call what stands against it, or {'clear'}
local batch, dead, calls = KEYS[1], KEYS[2], KEYS[3]
local token, ttl = ARGV[1], tonumber(ARGV[2])
local now = tonumber(redis.call('TIME')[1])
local clear = {'clear'}

local function depart(key, argument)
  local shard = KEYS[key + 1]
  local id, turn, call, number = ARGV[argument + 1], ARGV[argument + 2], ARGV[argument + 3], ARGV[argument + 4]
  local ends = text(now + math.ceil(tonumber(ARGV[argument + 5]) / 1000))
  local open = 'O ' .. turn .. ' ' .. token .. ' ' .. ends .. ' ' .. call .. ' ' .. number
  -- Of most jobs nothing is known yet.
  if redis.call('HSETNX', shard, id, '0 ' .. open) == 1 then
    keep(shard, ttl)
  else
    local state = read(shard, id)
    turn = tonumber(turn)
    if state.kind == 'U' and state.token == token and tonumber(number) <= state.n then
      -- It was on its way for so long that whoever said it has taken it back.
      return {'over'}
    end
    -- The same call, said again while it waits for its moment; one that is lost has left.
    local own = state.kind == 'O' and state.turn == turn and state.token == token and state.call == call and state.ends > 0
    if not own or turn < state.floor then
      local stands = against(state, turn, calls, id)
      if stands then
        return stands
      end
    end
    overtake(state, turn, batch, dead, id)
    write(shard, id, ttl, text(state.floor) .. ' ' .. open)
  end
  said_of[id] = ARGV[argument + 6]
  return clear
end

local answers = each(3, 1, 7, depart)
write_said(calls, ttl)
return answers
