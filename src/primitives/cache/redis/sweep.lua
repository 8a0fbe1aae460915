-- Removes an entry whose generation is over.
-- ARGV: 2 the stamp that a valid entry has, 3 '1' to remove a raw value that another system wrote.
-- Returns the old header and the old size where it was removed, else nothing.
local header = read_header()
local valid = is_header(header) and string.sub(header, 21, 36) == ARGV[2]
if raw then
  local body = redis.call('GET', KEYS[1])
  local ours = body and is_header(header) and hex(string.sub(header, 37, 56)) == redis.sha1hex(body)
  if not ours then valid = ARGV[3] ~= '1' end
end
if valid then return nil end
local size = redis.call('STRLEN', KEYS[1])
redis.call('UNLINK', KEYS[1], KEYS[3])
return {header, size}
