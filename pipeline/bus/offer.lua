-- offer: the only script by which a decoder writes frames. It appends a frame under the next number, or the end of the
-- source, and before either one gap for each run of skipped numbers. In policy `latest` it drops the oldest undelivered
-- frames of a queue that is too long. It answers `full`, and appends nothing, if too many numbers are in flight or if the log
-- is over its limit although all results that may go are removed; the pixels stay stored, and the caller may repeat the call.
-- KEYS state, frames, detections, results
-- ARGV 1 token, 2 last number before the skipped ones, 3 number of skipped numbers, 4 policy (lossless|latest),
--      5 maximum numbers in flight (`last - seq`), 6 maximum undelivered frames (latest), 7 maximum bytes of the log,
--      8 consumer group, 9 epoch, 10 kind (frame|end), 11 header or message, 12 pixel key,
--      then for each run of skipped numbers: its length, and cause and detail of its gap
-- -> {'ok'} | {'full'} | {'unset'} (no pixels under the key) | {'none'} (no job) | {'fenced', owner} | {'moved', last}
local state = redis.call('HMGET', KEYS[1], 'decode', 'last', 'seq', 'results_bytes', 'session', 'sinks',
  'source_ended', 'log_id')
local last, seq = tonumber(state[2]), tonumber(state[3])
local before, skipped = tonumber(ARGV[2]), tonumber(ARGV[3])
local is_frame = ARGV[10] == 'frame'
local number = before + skipped + (is_frame and 1 or 0)

-- Removes the pixels that were set just before this call, unless a frame in the queue refers to them, and returns the answer.
local function drop_pixels_and_answer(...)
  if is_frame then
    local entry = redis.call('XRANGE', KEYS[2], number .. '-0', number .. '-0')[1]
    if not entry or field(entry, 'px') ~= ARGV[12] then redis.call('DEL', ARGV[12]) end
  end
  return {...}
end

if not state[8] then return drop_pixels_and_answer('none') end
-- also for the owner of the role that has not called `open`: the session is then another one
if state[1] ~= ARGV[1] or state[5] ~= ARGV[1] then return drop_pixels_and_answer('fenced', state[1] or '') end
-- repeated call: the reply to the first one was lost
if last == number and (is_frame or state[7]) then return drop_pixels_and_answer('ok') end
if last ~= before then return drop_pixels_and_answer('moved', last) end
if is_frame and redis.call('EXISTS', ARGV[12]) == 0 then return {'unset'} end

-- first write: a command that Redis accepts at maxmemory; the later ones are then accepted too
redis.call('HDEL', KEYS[1], 'refused_seq')
redis.call('HINCRBY', KEYS[1], 'decode_beat', 1)
if is_frame then
  local bytes, max_bytes = tonumber(state[4]), tonumber(ARGV[7])
  if bytes > max_bytes then
    bytes = trim_log(KEYS[1], KEYS[4], bytes, max_bytes, seq, state[6])
    redis.call('HSET', KEYS[1], 'results_bytes', bytes)
  end
  if last - seq >= tonumber(ARGV[5]) or bytes > max_bytes then
    redis.call('HSET', KEYS[1], 'refused_seq', number)
    return {'full'}
  end
  if ARGV[4] == 'latest' then
    local delivered = '0-0'
    for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[2])) do
      local entry = {'', group}
      if field(entry, 'name') == ARGV[8] then delivered = field(entry, 'last-delivered-id') end
    end
    local waiting = redis.call('XRANGE', KEYS[2], '(' .. delivered, '+')
    for i = 1, #waiting - tonumber(ARGV[6]) + 1 do
      local entry = waiting[i]
      local evicted = tonumber(string.match(entry[1], '^%d+'))
      redis.call('XDEL', KEYS[2], entry[1])
      redis.call('DEL', field(entry, 'px'))
      redis.call('XADD', KEYS[3], '*', 's', ARGV[1], 'm', cmsgpack.pack({
        kind = 'gap', session = ARGV[1], stream_epoch = cmsgpack.unpack(field(entry, 'h')).stream_epoch,
        from_seq = evicted, to_seq = evicted, cause = 'overflow', detail = 'the model is slower than the source'}))
    end
  end
end
local from_seq = before + 1
for i = 13, #ARGV, 3 do
  local to_seq = from_seq + tonumber(ARGV[i]) - 1
  redis.call('XADD', KEYS[3], '*', 's', ARGV[1], 'm', cmsgpack.pack({
    kind = 'gap', session = ARGV[1], stream_epoch = tonumber(ARGV[9]),
    from_seq = from_seq, to_seq = to_seq, cause = ARGV[i + 1], detail = ARGV[i + 2]}))
  from_seq = to_seq + 1
end
if is_frame then
  redis.call('XADD', KEYS[2], number .. '-0', 'h', ARGV[11], 'px', ARGV[12], 's', ARGV[1])
else
  redis.call('XADD', KEYS[3], '*', 's', ARGV[1], 'm', ARGV[11])
  redis.call('HSET', KEYS[1], 'source_ended', 1)
end
redis.call('HSET', KEYS[1], 'last', number)
return {'ok'}
