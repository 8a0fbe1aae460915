-- Writes and leaves nothing: once the replicas have it, they have all that was written on this node before.
-- KEYS: 1 a key that is nobody's.
redis.call('SET', KEYS[1], '', 'PX', 1000)
redis.call('DEL', KEYS[1])
return redis.status_reply('OK')
