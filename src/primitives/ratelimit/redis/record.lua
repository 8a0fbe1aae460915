-- Since when each primary of the cluster has its history, as all processes together saw it.
--
-- KEYS[1]  a hash: replication id -> `<since>:<seen>`, microseconds since 1970 by Redis's clock; `since` is 0 for the
--          ids of the primaries that there were when the record was begun, `seen` is when it was last written
-- ARGV[1]  1 where the ids that follow are those of every primary; ARGV[2] how many ids are kept; ARGV[3] how long the
--          record lives unwritten, in ms
-- and for each id two more: the id, and how many us ago it took another's place as this process knows, or -1
--
-- Returns how many us ago each took another's place, -1 for those of the beginning; nothing where there is no record
-- and not every primary is known, since then nobody can say which ids are of the beginning.
local record = KEYS[1]
local most, lives_ms = tonumber(ARGV[2]), ARGV[3]
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local begins = redis.call('EXISTS', record) == 0
if begins and ARGV[1] ~= '1' then
  return {}
end

local ages, written = {}, false
for i = 4, #ARGV, 2 do
  local id, own_age = ARGV[i], tonumber(ARGV[i + 1])
  local since, seen = string.match(redis.call('HGET', record, id) or '', '^(%d+):(%d+)$')
  since, seen = tonumber(since), tonumber(seen)
  -- An id that is in use is written once an hour, so that what is dropped below is not in use.
  local due = not since or now - seen > 3600000000
  if own_age >= 0 and (not since or since == 0) then
    since, due = now - own_age, true
  elseif not since then
    since = begins and 0 or now
  end
  if due then
    redis.call('HSET', record, id, string.format('%.0f:%.0f', since, now))
    written = true
  end
  ages[#ages + 1] = since == 0 and -1 or math.max(0, now - since)
end

if written then
  redis.call('PEXPIRE', record, lives_ms)
  local over = redis.call('HLEN', record) - most
  if over > 0 then
    local all, ids = redis.call('HGETALL', record), {}
    for i = 1, #all, 2 do
      ids[#ids + 1] = {id = all[i], seen = tonumber(string.match(all[i + 1], ':(%d+)$')) or 0}
    end
    table.sort(ids, function(one, other) return one.seen < other.seen end)
    for i = 1, over do
      redis.call('HDEL', record, ids[i].id)
    end
  end
end
return ages
