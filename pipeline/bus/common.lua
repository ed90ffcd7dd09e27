-- Functions that several scripts use. This text is prepended to every script.

-- The value of a field in a stream entry {id, {name, value, …}}.
local function field(entry, name)
  for i = 1, #entry[2], 2 do
    if entry[2][i] == name then return entry[2][i + 1] end
  end
end

-- Removes pixels whose frame was never accepted by `offer`: those of number `last + 1`, and those of the last refused frame,
-- which has a higher number if numbers before it were skipped.
local function drop_unaccepted_pixels(prefix, session, last, refused_seq)
  if not session then return end
  redis.call('DEL', prefix .. session .. ':' .. (last + 1))
  if refused_seq and tonumber(refused_seq) > tonumber(last) then
    redis.call('DEL', prefix .. session .. ':' .. refused_seq)
  end
end

-- Removes all frames with their pixels.
local function drop_frames(frames)
  for _, entry in ipairs(redis.call('XRANGE', frames, '-', '+')) do
    redis.call('DEL', field(entry, 'px'))
  end
  redis.call('DEL', frames)
end

-- Removes the oldest results until the log holds at most `max_bytes` of JSON. Results that a required reader has not
-- read and the newest result stay. Without required readers every result up to `seq` may be removed.
-- Returns the number of bytes that are left.
local function trim_log(state, results, bytes, max_bytes, seq, sinks)
  local read = seq
  for name in string.gmatch(sinks, '[^,]+') do
    read = math.min(read, tonumber(redis.call('HGET', state, 'sink:' .. name)) or 0)
  end
  local newest = redis.call('XREVRANGE', results, '+', '-', 'COUNT', 1)[1]
  local from, to = '-', string.format('%d-18446744073709551615', read)
  local keep_from -- the lowest id that stays
  while bytes > max_bytes do
    local entries = redis.call('XRANGE', results, from, to, 'COUNT', 64)
    if #entries == 0 then break end
    for _, entry in ipairs(entries) do
      if bytes <= max_bytes or entry[1] == newest[1] then
        to = nil
        break
      end
      bytes = bytes - #entry[2][2]
      local number, index = string.match(entry[1], '^(%d+)-(%d+)$')
      keep_from = number .. '-' .. string.format('%d', tonumber(index) + 1)
    end
    if not to then break end
    from = '(' .. entries[#entries][1]
  end
  if keep_from then redis.call('XTRIM', results, 'MINID', keep_from) end
  return bytes
end

