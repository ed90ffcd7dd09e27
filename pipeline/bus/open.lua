-- open: the decoder that holds the `decode` token begins a session.
-- A file starts again right behind the last committed frame: what was not committed is deleted. A live source cannot go back: its numbers go on,
-- also when this server forgot some of them, and a new epoch begins.
-- KEYS state, frames, detections
-- ARGV token (also the session), the highest number this decoder remembers, consumer group, name of the pixel keys without session and number
-- -> {'ok', seq, last, epoch} | {'fenced', owner} | {'none'}
local state = redis.call('HMGET', KEYS[1], 'log_id', 'decode', 'mode', 'seq', 'last', 'session', 'ended')
if not state[1] then return {'none'} end
if state[2] ~= ARGV[1] then return {'fenced', state[2] or ''} end
if state[7] then return {'ended'} end
local seq, last = tonumber(state[4]), tonumber(state[5])
local epoch
if state[6] then -- the one key that an earlier session may have set without offering it
  redis.call('DEL', ARGV[4] .. state[6] .. ':' .. (last + 1))
end
if state[3] == 'file' then
  for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', '+')) do
    for i = 1, #entry[2], 2 do
      if entry[2][i] == 'px' then redis.call('DEL', entry[2][i + 1]) end
    end
  end
  redis.call('DEL', KEYS[2], KEYS[3])
  last, epoch = seq, 1
  redis.call('HSET', KEYS[1], 'epoch', 1)
else
  last = math.max(last, tonumber(ARGV[2]))
  epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
end
redis.call('HSET', KEYS[1], 'last', last, 'session', ARGV[1])
redis.pcall('XGROUP', 'CREATE', KEYS[2], ARGV[3], '0', 'MKSTREAM') -- BUSYGROUP: it is there
return {'ok', seq, last, epoch}
