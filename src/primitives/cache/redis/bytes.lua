-- Adds to what a tenant keeps, by the second at which it ends, and returns the sum.
-- KEYS: 1 the tenant's hash. ARGV: 1 now in s, 2 how long the hash lives in s, then pairs of second and bytes.
for at = 3, #ARGV, 2 do
  redis.call('HINCRBY', KEYS[1], ARGV[at], ARGV[at + 1])
end
local fields, now, sum = redis.call('HGETALL', KEYS[1]), tonumber(ARGV[1]), 0
for at = 1, #fields, 2 do
  local bytes = tonumber(fields[at + 1])
  if tonumber(fields[at]) <= now or bytes == 0 then
    redis.call('HDEL', KEYS[1], fields[at])
  else
    sum = sum + bytes
  end
end
if #ARGV > 2 then
  redis.call('EXPIRE', KEYS[1], ARGV[2])
end
return sum
