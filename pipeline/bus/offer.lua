-- offer: the decoder's only write. Appends a frame under the next number, or the end of the source; before either, the numbers it had to skip.
-- KEYS state, frames, detections
-- ARGV 1 token, 2 the number before the skipped ones, 3 how many were skipped, 4 policy (lossless|latest), 5 most frames between decoder and log,
--      6 most frames waiting undelivered (latest), 7 bytes the result log may hold, 8 consumer group, 9 epoch, 10 kind (frame|end),
--      11 header or message, 12 pixel key
-- -> {'ok'} | {'full'} | {'fenced', owner} | {'moved', last}
local state = redis.call('HMGET', KEYS[1], 'decode', 'last', 'seq', 'results_bytes', 'session')
if state[1] ~= ARGV[1] or state[5] ~= ARGV[1] then return {'fenced', state[1] or ''} end
local last, seq = tonumber(state[2]), tonumber(state[3])
local before, skipped = tonumber(ARGV[2]), tonumber(ARGV[3])
local is_frame = ARGV[10] == 'frame'
local number = before + skipped + (is_frame and 1 or 0)
if is_frame and last == number then return {'ok'} end -- said again because the reply was lost
if last ~= before then return {'moved', last} end

if is_frame then
  if last - seq >= tonumber(ARGV[5]) or tonumber(state[4]) > tonumber(ARGV[7]) then
    redis.pcall('HINCRBY', KEYS[1], 'decode_beat', 1)
    return {'full'}
  end
  if ARGV[4] == 'latest' then
    local delivered = '0-0'
    for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[2])) do
      local name, at
      for i = 1, #group, 2 do
        if group[i] == 'name' then name = group[i + 1] elseif group[i] == 'last-delivered-id' then at = group[i + 1] end
      end
      if name == ARGV[8] then delivered = at end
    end
    local waiting = redis.call('XRANGE', KEYS[2], '(' .. delivered, '+')
    local from, to
    for i = 1, #waiting - tonumber(ARGV[6]) + 1 do
      local id, fields = waiting[i][1], waiting[i][2]
      redis.call('XDEL', KEYS[2], id)
      for j = 1, #fields, 2 do
        if fields[j] == 'px' then redis.call('DEL', fields[j + 1]) end
      end
      to = tonumber(string.match(id, '^%d+'))
      if not from then from = to end
    end
    if from then
      redis.call('XADD', KEYS[3], '*', 's', ARGV[1], 'm', cmsgpack.pack({kind = 'gap', session = ARGV[1], stream_epoch = tonumber(ARGV[9]),
        from_seq = from, to_seq = to, cause = 'overflow', detail = 'the model is slower than the source'}))
    end
  end
end
if skipped > 0 then
  redis.call('XADD', KEYS[3], '*', 's', ARGV[1], 'm', cmsgpack.pack({kind = 'gap', session = ARGV[1], stream_epoch = tonumber(ARGV[9]),
    from_seq = before + 1, to_seq = before + skipped, cause = 'overflow', detail = 'the bus was full'}))
end
if is_frame then
  redis.call('XADD', KEYS[2], number .. '-0', 'h', ARGV[11], 'px', ARGV[12], 's', ARGV[1])
else
  redis.call('XADD', KEYS[3], '*', 's', ARGV[1], 'm', ARGV[11])
end
redis.call('HSET', KEYS[1], 'last', number)
redis.call('HINCRBY', KEYS[1], 'decode_beat', 1)
return {'ok'}
