-- lease: takes, renews or releases the right to write as `decode` or `track`. A candidate takes a role over by
-- compare-and-set: it passes the owner and the heartbeat that it saw unchanged for the length of the lease on its own
-- monotonic clock. The clock of the server is not used.
-- KEYS state
-- ARGV verb (take|beat|release), role, token of the caller, owner and heartbeat that the caller saw unchanged
-- -> {'ok'} | {'owned', owner, beat} | {'none'} (no job)
local verb, role, token = ARGV[1], ARGV[2], ARGV[3]
if redis.call('HEXISTS', KEYS[1], 'log_id') == 0 then return {'none'} end
local now = redis.call('HMGET', KEYS[1], role, role .. '_beat')
local owner, beat = now[1] or '', now[2] or ''
if verb == 'take' then
  if owner ~= '' and owner ~= token and (owner ~= ARGV[4] or beat ~= ARGV[5]) then return {'owned', owner, beat} end
  -- first write: a command that Redis accepts at maxmemory; the later ones are then accepted too
  redis.call('HDEL', KEYS[1], role)
  redis.call('HSET', KEYS[1], role, token)
  redis.call('HINCRBY', KEYS[1], role .. '_beat', 1)
elseif owner ~= token then
  return {'owned', owner, beat}
elseif verb == 'beat' then
  redis.call('HDEL', KEYS[1], '') -- there is no such field: a first write as in `take`
  redis.call('HINCRBY', KEYS[1], role .. '_beat', 1)
else
  redis.call('HDEL', KEYS[1], role, role .. '_beat')
end
return {'ok'}
