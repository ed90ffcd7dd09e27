-- commit: the only script by which a tracker writes results. It appends results under explicit ids, sets `seq`, stores
-- the checkpoint, removes the consumed detections, and publishes the results last.
-- KEYS state, results, detections
-- ARGV 1 token, 2 seq before, 3 seq after, 4 decode session of the results ('' for any), 5 maximum bytes of the log,
--      6 channel, 7 checkpoint, 8 reason of the end or '', 9 number of entries (at least 1), then id and JSON of each
--      entry in ascending order, then the ids to remove from detections
-- -> {'ok'} | {'none'} (no job) | {'fenced', owner} | {'moved', seq}
local state = redis.call('HMGET', KEYS[1], 'track', 'seq', 'mode', 'session', 'sinks', 'results_bytes', 'last', 'log_id')
if not state[8] then return {'none'} end
if state[1] ~= ARGV[1] then return {'fenced', state[1] or ''} end
local count = tonumber(ARGV[9])
local seq, before, after = tonumber(state[2]), tonumber(ARGV[2]), tonumber(ARGV[3])
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
local last_id = ARGV[8 + 2 * count]
-- repeated call: the reply to the first one was lost
if newest and newest[1] == last_id and seq == after then return {'ok'} end
if seq ~= before or after > tonumber(state[7]) then return {'moved', seq} end
if state[3] == 'file' and ARGV[4] ~= '' and ARGV[4] ~= state[4] then return {'moved', seq} end
local number, index = 0, 0
if newest then
  number, index = string.match(newest[1], '^(%d+)-(%d+)$')
  number, index = tonumber(number), tonumber(index)
end
for i = 1, count do
  local next_seq, next_index = string.match(ARGV[8 + 2 * i], '^(%d+)-(%d+)$')
  next_seq, next_index = tonumber(next_seq), tonumber(next_index)
  if next_seq < number or (next_seq == number and next_index <= index) then return {'moved', seq} end
  number, index = next_seq, next_index
end

-- first write: a command that Redis accepts at maxmemory; the later ones are then accepted too
redis.call('XDEL', KEYS[3], '0-0', unpack(ARGV, 10 + 2 * count))
local bytes = tonumber(state[6])
for i = 1, count do bytes = bytes + #ARGV[9 + 2 * i] end
if bytes > tonumber(ARGV[5]) and newest then
  bytes = trim_log(KEYS[1], KEYS[2], bytes, tonumber(ARGV[5]), before, state[5])
end
for i = 1, count do
  redis.call('XADD', KEYS[2], ARGV[8 + 2 * i], 'j', ARGV[9 + 2 * i])
end
redis.call('HSET', KEYS[1], 'seq', after, 'results_bytes', bytes, 'tracker', ARGV[7])
redis.call('HINCRBY', KEYS[1], 'track_beat', 1)
if ARGV[8] ~= '' then redis.call('HSET', KEYS[1], 'ended', ARGV[8]) end
local num_unpublished = 0
for i = 1, count do -- a user without rights on the channel still writes the log
  local reply = redis.pcall('PUBLISH', ARGV[6], ARGV[9 + 2 * i])
  if type(reply) == 'table' and reply.err then num_unpublished = num_unpublished + 1 end
end
if num_unpublished > 0 then redis.call('HINCRBY', KEYS[1], 'num_unpublished', num_unpublished) end
return {'ok'}
