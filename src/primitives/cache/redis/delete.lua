-- Deletes the value and voids the fill lease. Returns the old header and the old size.
local header, size = read_header(), size_of_entry()
if redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3]) == 0 then
  -- There has to be a write that the replicas confirm: an earlier DELETE may have removed all this here and not there.
  redis.call('SET', KEYS[2], '', 'PX', 1000)
  redis.call('DEL', KEYS[2])
end
return {header, size}
