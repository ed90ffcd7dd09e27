-- open: the decoder that holds the `decode` token begins a session.
-- A file starts again right behind the last committed frame: what was not committed is deleted. A live source cannot go
-- back: its numbers go on, also when this server forgot some of them, and a new epoch begins.
-- KEYS state, frames, detections
-- ARGV token (also the session), the highest number this decoder remembers, consumer group, name of the pixel keys
--      without session and number
-- -> {'ok', seq, last, epoch} | {'fenced', owner} | {'ended'} | {'none'} (no job)
local state = redis.call('HMGET', KEYS[1], 'log_id', 'decode', 'mode', 'seq', 'last', 'session', 'ended', 'refused_seq')
if not state[1] then return {'none'} end
if state[2] ~= ARGV[1] then return {'fenced', state[2] or ''} end
if state[7] then return {'ended'} end
local seq, last = tonumber(state[4]), tonumber(state[5])

redis.call('HDEL', KEYS[1], 'refused_seq', 'source_ended') -- frees memory first: a script that began so may go on at maxmemory
drop_unoffered(ARGV[4], state[6], last, state[8])
local epoch
if state[3] == 'file' then
  drop_frames(KEYS[2])
  redis.call('XTRIM', KEYS[3], 'MAXLEN', 0) -- not DEL: ids of later messages must stay behind a reader's cursor
  last, epoch = seq, 1
  redis.call('HSET', KEYS[1], 'epoch', 1)
else
  last = math.max(last, tonumber(ARGV[2]))
  epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
end
redis.call('HSET', KEYS[1], 'last', last, 'session', ARGV[1])
redis.call('HINCRBY', KEYS[1], 'decode_beat', 1)
redis.pcall('XGROUP', 'CREATE', KEYS[2], ARGV[3], '0', 'MKSTREAM') -- BUSYGROUP: it is there
return {'ok', seq, last, epoch}
