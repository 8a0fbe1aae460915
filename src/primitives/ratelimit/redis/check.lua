-- Takes from several buckets of one tenant, or from none. Times are Redis's own, in microseconds.
--
-- KEYS[1]  the index of the tenant's keys: a sorted set of `<limit>:<key>` by when the bucket is full again
-- KEYS[2…] the buckets
-- ARGV[1]  how many keys the tenant may have in use
-- and for each bucket five more: ticks in a microsecond, ticks of a full burst, ticks asked for, `<limit>:<key>`,
-- and the key of the bucket that new keys share when there are too many
--
-- Returns {this primary's history, 1 or 0, buckets that were shared ones, each bucket's debt before, in ticks}.
-- All numbers stay below 2^53, up to which Lua's are exact.
local index = KEYS[1]
local max_keys = tonumber(ARGV[1])
local tenant = string.match(index, '{.-}')
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
-- A replica that becomes primary, and a primary that starts again, begin a new history.
local history = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')

local function whole(number)
  return string.format('%.0f', number)
end

-- `<us>` or `<us>+<part>/<parts>` -> what is missing from the burst, in ticks.
local function debt_of(stored, ticks_per_us, capacity)
  local us, part, parts = string.match(stored or '', '^(%d+)%+?(%d*)/?(%d*)$')
  if not us then
    return 0
  end
  local ahead, fraction = tonumber(us) - now, 0
  if part ~= '' then
    if tonumber(parts) == ticks_per_us then
      fraction = tonumber(part)
    else
      ahead = ahead + 1
    end
  end
  return math.max(0, math.min(ahead * ticks_per_us + fraction, capacity))
end

-- Looks at keys that were to be full by now: those that are gone leave the index, the others get their new time.
local function purge(most)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', index, '-inf', whole(now), 'LIMIT', 0, most)) do
    local limit, key = string.match(id, '^([^:]*):(.*)$')
    local full_at_ms = redis.call('PEXPIRETIME', 'tenant:' .. limit .. ':rate-limit:' .. tenant .. ':' .. key)
    if full_at_ms * 1000 > now then
      -- Not taken amiss where there is no memory: the time stays early.
      redis.pcall('ZADD', index, whole(full_at_ms * 1000), id)
    else
      redis.call('ZREM', index, id)
    end
  end
end

local used
local coming = 0
local function has_room(id)
  if not used then
    purge(2)
    used = redis.call('ZCARD', index)
  end
  if used + coming < max_keys or redis.call('ZSCORE', index, id) then
    return true
  end
  purge(32)
  used = redis.call('ZCARD', index)
  return used + coming < max_keys
end

local reply = {history, 1, 0}
local buckets, shared = {}, {}
for i = 1, #KEYS - 1 do
  local at = (i - 1) * 5 + 1
  local ticks_per_us, capacity, cost = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local id, key = ARGV[at + 4], KEYS[i + 1]
  local stored = redis.call('GET', key)
  local new, earlier = false, 0
  if not stored then
    if has_room(id) then
      new = true
      coming = coming + 1
    else
      key = ARGV[at + 5]
      stored = redis.call('GET', key)
      earlier = shared[key] or 0
      shared[key] = earlier + cost
      reply[3] = reply[3] + 1
    end
  end
  local debt = debt_of(stored, ticks_per_us, capacity) + earlier
  if cost > 0 and debt + cost > capacity then
    reply[2] = 0
  end
  reply[i + 3] = debt
  buckets[i] = {key = key, id = id, new = new, after = debt + cost, cost = cost, ticks_per_us = ticks_per_us}
end

if reply[2] == 1 then
  local longest, indexed = 0, false
  for _, bucket in ipairs(buckets) do
    if bucket.cost > 0 then
      local part = math.fmod(bucket.after, bucket.ticks_per_us)
      local us = now + (bucket.after - part) / bucket.ticks_per_us
      local value, full_at = whole(us), us
      if part > 0 then
        value = value .. '+' .. whole(part) .. '/' .. whole(bucket.ticks_per_us)
        full_at = us + 1
      end
      local ttl = math.max(1, math.ceil((full_at - now) / 1000))
      redis.call('SET', bucket.key, value, 'PX', whole(ttl))
      if bucket.new then
        redis.call('ZADD', index, whole(full_at), bucket.id)
        indexed = true
      end
      longest = math.max(longest, ttl)
    end
  end
  -- The index lives as long as its longest key: GT alone never gives a time to a key that has none.
  if indexed and redis.call('PTTL', index) == -1 then
    redis.call('PEXPIRE', index, whole(longest))
  elseif longest > 0 then
    redis.call('PEXPIRE', index, whole(longest), 'GT')
  end
end
return reply
