-- begin: a new job takes over a stream id; what an earlier one left is removed, its result log too.
-- KEYS state, frames, detections, results, status
-- ARGV log_id, mode (file|live), sinks (comma-separated), then what the caller saw standing still: decode owner, decode beat, track owner, track beat
-- -> {'ok'} | {'owned', decode owner, decode beat, track owner, track beat}
local seen = redis.call('HMGET', KEYS[1], 'decode', 'decode_beat', 'track', 'track_beat')
for i = 1, 4 do seen[i] = seen[i] or '' end
for i = 1, 3, 2 do
  if seen[i] ~= '' and (seen[i] ~= ARGV[3 + i] or seen[i + 1] ~= ARGV[4 + i]) then
    return {'owned', unpack(seen)}
  end
end
for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', '+')) do
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'px' then redis.call('DEL', entry[2][i + 1]) end
  end
end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5])
redis.call('HSET', KEYS[1], 'log_id', ARGV[1], 'mode', ARGV[2], 'sinks', ARGV[3], 'last', 0, 'seq', 0, 'epoch', 0, 'results_bytes', 0)
for name in string.gmatch(ARGV[3], '[^,]+') do
  redis.call('HSET', KEYS[1], 'sink:' .. name, 0)
end
return {'ok'}
