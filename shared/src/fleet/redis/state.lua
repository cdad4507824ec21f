-- What is known of a job, and how it counts: the part that the scripts of the ledger share. It stands in front of each.
--
-- A job's state is a field of a hash, under the 16 bytes of its id:
--   0                                             the job is done: all of its turns are over
--   <floor>                                       turns below are over
--   <floor> O <turn> <token> <until> <call> <n>   a call is under way: who makes it, until when (in seconds; 0: it is lost), its
--                                                 id, the number of the word that said so
--   <floor> A <turn> <call> <tally>               a call was answered and paid for, and is not yet settled
--   <floor> U <token> <n>                         words of this process, up to this number, were not heard, and must not be done late
--   <floor> D                                     the job is a dead letter; what it counts as is in the batch's hash of those,
--                                                 which is kept longer than states are
-- Of a call that is under way its intent, and of one that was answered what follows, is a field of the batch's hash of calls, under
-- the same 16 bytes.
-- Batches, dead letters and bills are kept for so many seconds without use: KEPT_DAYS of bill.rs.
local KEPT = 400 * 86400
local KINDS = {'ok', 'cached', 'rejected', 'dead', 'cancelled', 'ambiguous'}

local function text(number)
  return string.format('%.0f', number)
end

-- Moves the end of a key where it has come nearer by an eighth: not each use of it is written down.
local function keep(key, ttl)
  if redis.call('TTL', key) < ttl * 7 / 8 then
    redis.call('EXPIRE', key, ttl)
  end
end

local function parse(stored)
  if not stored then
    return {floor = 0}
  elseif stored == '0' then
    return {floor = math.huge}
  end
  local ends = string.find(stored, ' ', 1, true)
  if not ends then
    return {floor = tonumber(stored)}
  end
  local state = {floor = tonumber(string.sub(stored, 1, ends - 1)), kind = string.sub(stored, ends + 1, ends + 1)}
  local rest = ends + 3
  if state.kind == 'O' then
    local turn, token, until_, call, n = string.match(stored, '^(%d+) (%S+) (%d+) (%S+) (%d+)$', rest)
    state.turn, state.token, state.ends, state.call, state.n =
      tonumber(turn), token, tonumber(until_), call, tonumber(n)
  elseif state.kind == 'U' then
    local token, n = string.match(stored, '^(%S+) (%d+)$', rest)
    state.token, state.n = token, tonumber(n)
  elseif state.kind == 'A' then
    local turn, call, tally = string.match(stored, '^(%d+) (%S+) (%S+)$', rest)
    state.turn, state.call, state.tally = tonumber(turn), call, tally
  end
  return state
end

local function read(shard, id)
  return parse(redis.call('HGET', shard, id))
end

-- Without a `ttl` where that was seen to a moment ago.
local function write(shard, id, ttl, stored)
  if stored == nil then
    redis.call('HDEL', shard, id)
  else
    redis.call('HSET', shard, id, stored)
    if ttl then
      keep(shard, ttl)
    end
  end
end

-- The state without a call.
local function write_floor(shard, id, ttl, floor)
  write(shard, id, ttl, floor > 0 and text(floor) or nil)
end

-- What this call of a script stores of jobs in the batch's hash of calls, by job; false: what is taken out of it. Of all jobs it
-- is written at once, because each command that a script calls costs as much as all else that it does.
local said_of = {}

-- Gives some thousand arguments to `work`, in parts: Lua's stack takes no more at once. Pairs stay together.
local function in_parts(arguments, work)
  for first = 1, #arguments, 1000 do
    work(unpack(arguments, first, math.min(first + 999, #arguments)))
  end
end

-- Writes what is said of jobs.
local function write_said(calls, ttl)
  local set, gone = {}, {}
  for id, said in pairs(said_of) do
    if said then
      set[#set + 1], set[#set + 2] = id, said
    else
      gone[#gone + 1] = id
    end
  end
  in_parts(gone, function(...) redis.call('HDEL', calls, ...) end)
  if #set > 0 then
    in_parts(set, function(...) redis.call('HSET', calls, ...) end)
    keep(calls, ttl)
  end
end

-- What stands against a call of this turn: nothing (nil), or what is to be answered. A call whose intent is gone is as old
-- as all that is forgotten.
local function against(state, turn, calls, id)
  if turn < state.floor then
    return {'over'}
  end
  if not state.turn or state.turn < turn then
    return nil
  end
  if state.turn > turn then
    return {'over'}
  end
  local said = said_of[id]
  if said == nil then
    said = redis.call('HGET', calls, id)
  end
  if not said then
    return nil
  elseif state.kind == 'A' then
    return {'answered', said}
  elseif state.ends <= tonumber(redis.call('TIME')[1]) then
    return {'unanswered', said}
  end
  return {'held', said, state.token}
end

-- The numbers of a tally, which is written with commas between them, by the kinds of results.
local function numbers(tally)
  local by_kind, at = {}, 0
  for number in string.gmatch(tally, '%d+') do
    at = at + 1
    by_kind[KINDS[at]] = tonumber(number)
  end
  return by_kind
end

-- Counts results of a batch; a negative number takes back.
local function count(batch, tally)
  local added = 0
  for kind, number in pairs(tally) do
    if number ~= 0 then
      redis.call('HINCRBY', batch, kind, number)
      added = added + number
    end
  end
  if added == 0 then
    return
  end
  if redis.call('HINCRBY', batch, 'total', added) == added then
    local time = redis.call('TIME')
    redis.call('HSETNX', batch, 'opened_at', string.format('%d%06d', time[1], time[2]))
  end
  keep(batch, KEPT)
end

-- Whether the batch's last result is there, and nobody has to say so yet; then it is for `token` to say, and what is known of
-- the batch is answered.
local function completed(batch, token)
  local known = redis.call('HMGET', batch, 'closed', 'expected', 'total', 'said')
  if known[1] == '1' and not known[4] and tonumber(known[3] or 0) >= tonumber(known[2] or 0) then
    redis.call('HSET', batch, 'said', token)
    return redis.call('HGETALL', batch)
  end
  return {}
end

-- The batch is no longer complete.
local function uncompleted(batch)
  local known = redis.call('HMGET', batch, 'expected', 'total', 'said')
  if known[3] and tonumber(known[2] or 0) < tonumber(known[1] or 0) then
    redis.call('HDEL', batch, 'said')
  end
end

-- A dead letter is none any more: its results are taken out of the batch's.
local function unbury(batch, dead, id)
  local counted = redis.call('HGET', dead, id)
  if counted then
    redis.call('HDEL', dead, id)
    local rejected, given_up, ambiguous = string.match(counted, '^(%d+) (%d+) (%d+)$')
    if redis.call('HEXISTS', batch, 'total') == 1 then
      count(batch, {rejected = -rejected, dead = -given_up, ambiguous = -ambiguous})
      uncompleted(batch)
    end
  end
end

-- A message of a later turn shows that what followed from earlier ones is out. An answered one counts now, because nobody
-- may be left to settle it; and a dead letter that goes on is none any more, heard or not. `buried`: the answered turn ended
-- as a dead letter, which is now opened.
local function overtake(state, turn, batch, dead, id, buried)
  if state.kind == 'A' and state.turn < turn then
    local tally = numbers(state.tally)
    if buried then
      tally.rejected, tally.dead, tally.ambiguous = nil, nil, nil
    end
    count(batch, tally)
    state.floor = math.max(state.floor, state.turn + 1)
  elseif state.kind == 'D' and turn >= state.floor then
    unbury(batch, dead, id)
    state.kind = nil
  end
end

-- Does `work` for each part of a call: it is told behind which keys and which arguments its own are. There are `keys` and
-- `arguments` for each part, behind the `shared` keys, and the process and time that all have in common. A part that can't be
-- done is answered so, and the others are done all the same.
local function each(shared, keys, arguments, work)
  local answers, key, argument = {}, shared, 2
  for part = 1, (#KEYS - shared) / keys do
    local done, answer = pcall(work, key, argument)
    if not done and type(answer) ~= 'table' then
      -- What Lua itself raises is a text, what a command raises is a table.
      answer = {err = 'ERR ' .. tostring(answer)}
    end
    answers[part] = answer
    key, argument = key + keys, argument + arguments
  end
  return answers
end
