-- open: the owner of the `decode` role begins a session.
-- A file continues after the last committed frame: frames and detections that were not committed are deleted. A live
-- source cannot go back: a new epoch begins, and its numbers continue after the larger of the decoder's and the
-- server's last number, because the server may have lost its latest writes.
-- KEYS state, frames, detections
-- ARGV token of the decoder (also the id of the session), highest number that the decoder assigned, consumer group,
--      prefix of the pixel keys, mode (file|live; '' for the mode with which the job began)
-- -> {'ok', seq, last, epoch} | {'fenced', owner} | {'ended'} (the last result is committed) | {'none'} (no job)
local state = redis.call('HMGET', KEYS[1], 'log_id', 'decode', 'mode', 'seq', 'last', 'session', 'ended', 'refused_seq')
if not state[1] then return {'none'} end
if state[2] ~= ARGV[1] then return {'fenced', state[2] or ''} end
if state[7] then return {'ended'} end
local seq, last = tonumber(state[4]), tonumber(state[5])

-- first write: a command that Redis accepts at maxmemory; the later ones are then accepted too
redis.call('HDEL', KEYS[1], 'refused_seq', 'source_ended')
drop_unaccepted_pixels(ARGV[4], state[6], last, state[8])
local mode = ARGV[5] ~= '' and ARGV[5] or state[3]
local epoch
if mode == 'file' then
  drop_frames(KEYS[2])
  redis.call('XTRIM', KEYS[3], 'MAXLEN', 0) -- not DEL: later ids must be above those that a tracker has read
  last, epoch = seq, 1
  redis.call('HSET', KEYS[1], 'epoch', 1)
else
  last = math.max(last, tonumber(ARGV[2]))
  epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
end
redis.call('HSET', KEYS[1], 'last', last, 'session', ARGV[1], 'mode', mode)
redis.call('HINCRBY', KEYS[1], 'decode_beat', 1)
redis.pcall('XGROUP', 'CREATE', KEYS[2], ARGV[3], '0', 'MKSTREAM') -- pcall: BUSYGROUP if it exists
return {'ok', seq, last, epoch}
