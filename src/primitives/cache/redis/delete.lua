-- Deletes the value and voids the fill lease. Returns the old header and the old size.
local header, size = read_header(), size_of_entry()
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3])
return {header, size}
