-- The value if it is fresh, else the fill lease.
-- ARGV: 2 a new token, or '' where the caller may hold no more, 3 the lease's length in ms, 4 the generation's stamp, 5 now in ms, 6 '1' to be
-- given the value past its time, 7 '0' where a value without a companion is none.
-- Returns 'value', entry, companion | 'granted' | 'full' | 'held', ms left, entry.
local stamp = ARGV[4]
if fresh_tag(read_header(), stamp, tonumber(ARGV[5]), ARGV[7]) then
  return {'value', redis.call('GET', KEYS[1]), raw and redis.call('GET', KEYS[3])}
end
local held = redis.call('GET', KEYS[2])
-- A lease of an earlier generation was voided by an invalidation.
if not held or string.sub(held, -16) ~= stamp then
  if ARGV[2] == '' then return {'full'} end
  redis.call('SET', KEYS[2], ARGV[2] .. stamp, 'PX', ARGV[3])
  return {'granted'}
end
return {'held', redis.call('PTTL', KEYS[2]), ARGV[6] == '1' and read('GET', KEYS[1]) or false}
