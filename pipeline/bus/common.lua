-- What several scripts need; stands in front of each of them.

local function field(entry, name)
  for i = 1, #entry[2], 2 do
    if entry[2][i] == name then return entry[2][i + 1] end
  end
end

-- Removes the pixels that a decode session set for a frame which it had not offered yet: those of the number behind
-- `last`, or behind the numbers it meant to skip (`held`).
local function drop_unoffered(prefix, session, last, held)
  if not session then return end
  redis.call('DEL', prefix .. session .. ':' .. (last + 1))
  if held and tonumber(held) > tonumber(last) then redis.call('DEL', prefix .. session .. ':' .. held) end
end

local function drop_frames(frames)
  for _, entry in ipairs(redis.call('XRANGE', frames, '-', '+')) do
    redis.call('DEL', field(entry, 'px'))
  end
  redis.call('DEL', frames)
end

-- Removes the oldest results until the log holds `most` bytes, but none that a required reader has not read and never the
-- newest. Without required readers everything committed counts as read. Returns the bytes that are left.
local function cap_log(state, results, bytes, most, seq, sinks)
  local read = seq
  for name in string.gmatch(sinks, '[^,]+') do
    read = math.min(read, tonumber(redis.call('HGET', state, 'sink:' .. name)) or 0)
  end
  local newest = redis.call('XREVRANGE', results, '+', '-', 'COUNT', 1)[1]
  local from, to = '-', string.format('%d-18446744073709551615', read)
  local trim_from
  while bytes > most do
    local entries = redis.call('XRANGE', results, from, to, 'COUNT', 64)
    if #entries == 0 then break end
    for _, entry in ipairs(entries) do
      if bytes <= most or entry[1] == newest[1] then
        to = nil
        break
      end
      bytes = bytes - #entry[2][2]
      local number, companion = string.match(entry[1], '^(%d+)-(%d+)$')
      trim_from = number .. '-' .. string.format('%d', tonumber(companion) + 1)
    end
    if not to then break end
    from = '(' .. entries[#entries][1]
  end
  if trim_from then redis.call('XTRIM', results, 'MINID', trim_from) end
  return bytes
end

