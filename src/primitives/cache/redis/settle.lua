-- Says that what an invalidation left without a stamp is swept, unless another invalidation came since.
-- KEYS: 1 the generation's hash. ARGV: 1 the mark, then pairs of field and token.
for at = 2, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[at]) == ARGV[at + 1] .. ARGV[1] then
    redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
  end
end
return redis.status_reply('OK')
