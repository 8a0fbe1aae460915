-- Writes a value and voids the fill lease.
-- ARGV: 2 the entry's bytes, 3 the companion's (raw), 4 time to live in ms, 5 the generation's stamp,
-- 6 a lease's token or '', 7 If-Match, 8 If-None-Match ('' none, '*', or ',tag,tag'), 9 now in ms,
-- 10 the room that the tenant has left in bytes, 11 what every entry costs beside its key and its bytes,
-- 12 '0' where a value without a companion is none.
-- Returns 'void', 'failed', 'full', or 'ok' with the old header and the old size.
local stamp = ARGV[5]
if ARGV[6] ~= '' and redis.call('GET', KEYS[2]) ~= ARGV[6] .. stamp then
  return {'void'}
end
local header = read_header()
if ARGV[7] ~= '' or ARGV[8] ~= '' then
  local tag = fresh_tag(header, stamp, tonumber(ARGV[9]), ARGV[12])
  local function holds(condition)
    return tag and (condition == '*' or string.find(condition, tag, 1, true))
  end
  if ARGV[7] ~= '' and not holds(ARGV[7]) then return {'failed'} end
  if ARGV[8] ~= '' and holds(ARGV[8]) then return {'failed'} end
end
local size = size_of_entry()
local more = #ARGV[2] - size
if not is_header(header) then
  more = #ARGV[2] + #KEYS[1] + tonumber(ARGV[11])
end
if more > 0 and more > tonumber(ARGV[10]) then return {'full'} end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[4])
if raw then
  redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[4])
end
redis.call('DEL', KEYS[2])
return {'ok', header, size}
