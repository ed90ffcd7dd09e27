-- begin_job: starts a job under a stream id and removes everything of an earlier job, its result log included.
-- A role of the earlier job is free if it has no owner, or if its owner and heartbeat are those that the caller saw
-- unchanged for the 3 s of a lease. Otherwise the reply is `owned`, and nothing is written.
-- KEYS state, frames, detections, results, status
-- ARGV log_id, mode (file|live), required readers (comma-separated), prefix of the pixel keys,
--      then the unchanged values: decode owner, decode beat, track owner, track beat
-- -> {'ok'} | {'owned', decode owner, decode beat, track owner, track beat}
local seen = redis.call('HMGET', KEYS[1], 'decode', 'decode_beat', 'track', 'track_beat')
for i = 1, 4 do seen[i] = seen[i] or '' end
for i = 1, 3, 2 do
  if seen[i] ~= '' and (seen[i] ~= ARGV[4 + i] or seen[i + 1] ~= ARGV[5 + i]) then
    return {'owned', unpack(seen)}
  end
end
local old = redis.call('HMGET', KEYS[1], 'session', 'last', 'refused_seq')
drop_unaccepted_pixels(ARGV[4], old[1], old[2], old[3])
drop_frames(KEYS[2])
redis.call('DEL', KEYS[1], KEYS[3], KEYS[4], KEYS[5])
redis.call('HSET', KEYS[1], 'log_id', ARGV[1], 'mode', ARGV[2], 'sinks', ARGV[3],
  'last', 0, 'seq', 0, 'epoch', 0, 'results_bytes', 0)
for name in string.gmatch(ARGV[3], '[^,]+') do
  redis.call('HSET', KEYS[1], 'sink:' .. name, 0)
end
return {'ok'}
