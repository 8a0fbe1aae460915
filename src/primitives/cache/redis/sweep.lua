-- Looks at an entry, and removes it if it is over.
-- ARGV: 2 the stamp that a valid entry has, 3 '1' to remove a raw value that another system wrote, 4 '' to look,
-- or the stamp that was seen and is over.
-- Returns 'over' and the stamp that was seen, or 'removed', the old header and the old size, else nothing.
local header = read_header()
local stamp = is_header(header) and string.sub(header, 21, 36)
if raw then
  local body = read('GET', KEYS[1])
  local ours = body and stamp and hex(string.sub(header, 37, 56)) == redis.sha1hex(body)
  if not ours then
    if ARGV[3] ~= '1' then return nil end
    stamp = false
  end
end
stamp = stamp or ARGV[4]
if stamp == ARGV[2] then return nil end
if stamp ~= ARGV[4] then return {'over', stamp} end
local size = size_of_entry()
redis.call('UNLINK', KEYS[1], KEYS[3])
return {'removed', header, size}
