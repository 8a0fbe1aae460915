-- Gives a scope, or one version in it, a new generation.
-- KEYS: 1 the generation's hash. ARGV: 1 'all' or 'v:<version>', 2 a new token, 3 the most fields.
if ARGV[1] == 'all' or redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'all', ARGV[2])
else
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
return redis.status_reply('OK')
