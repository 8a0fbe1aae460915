-- Shared by the scripts that have to know the current value.
-- KEYS: 1 entry, 2 fill lease, 3 companion (format raw). ARGV: 1 `raw` or `envelope`.
local raw = ARGV[1] == 'raw'

-- A string, or nothing: a key that another system made a list or a hash is no value, and may be overwritten and
-- deleted like one.
local function read(...)
  local value = redis.pcall(...)
  return type(value) == 'string' and value or nil
end

local function size_of_entry()
  local size = redis.pcall('STRLEN', KEYS[1])
  return type(size) == 'number' and size or 0
end

-- The header of the value: the first 58 bytes of an envelope, or the companion. Empty where there is none.
local function read_header()
  if raw then
    return read('GET', KEYS[3]) or ''
  end
  return read('GETRANGE', KEYS[1], 0, 57) or ''
end

local function is_header(header)
  return #header >= 58 and string.sub(header, 1, 4) == 'ogc1'
end

local function hex(bytes)
  return (string.gsub(bytes, '.', function(byte) return string.format('%02x', string.byte(byte)) end))
end

local function is_fresh(header, stamp, now_ms)
  return string.sub(header, 21, 36) == stamp and struct.unpack('>I8', header, 13) > now_ms
end

-- The entity tag, in hexadecimal, of the value if it is fresh and of generation `stamp`. A raw value that
-- another system wrote has no companion, or one with another hash; it is fresh as long as it is there, unless
-- `unstamped` is '0': then it may be from before an invalidation.
local function fresh_tag(header, stamp, now_ms, unstamped)
  if raw then
    local body = read('GET', KEYS[1])
    if not body then return nil end
    local tag = redis.sha1hex(body)
    local ours = is_header(header) and hex(string.sub(header, 37, 56)) == tag
    if ours and not is_fresh(header, stamp, now_ms) then return nil end
    if not ours and unstamped == '0' then return nil end
    return tag
  end
  if not is_header(header) or not is_fresh(header, stamp, now_ms) then return nil end
  return hex(string.sub(header, 37, 56))
end
