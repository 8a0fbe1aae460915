-- Gives up a fill lease. KEYS: 1 lease. ARGV: 1 token.
local held = redis.call('GET', KEYS[1])
if held and string.sub(held, 1, -17) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
