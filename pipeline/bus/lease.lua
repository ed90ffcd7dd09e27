-- lease: who may write as `decode` or `track`. A token is taken over by compare-and-set: the caller passes the owner and
-- the beat that it saw standing still for the length of the lease on its own clock. No server clock is involved.
-- KEYS state
-- ARGV verb (take|beat|release), role, token, seen owner, seen beat
-- -> {'ok', ...} | {'owned', owner, beat} | {'none'} (no job)
local verb, role, token = ARGV[1], ARGV[2], ARGV[3]
if redis.call('HEXISTS', KEYS[1], 'log_id') == 0 then return {'none'} end
local now = redis.call('HMGET', KEYS[1], role, role .. '_beat')
local owner, beat = now[1] or '', now[2] or ''
if verb == 'take' then
  if owner ~= '' and owner ~= token and (owner ~= ARGV[4] or beat ~= ARGV[5]) then return {'owned', owner, beat} end
  redis.call('HDEL', KEYS[1], role) -- frees memory first: a script that began so may go on at maxmemory
  redis.call('HSET', KEYS[1], role, token)
  redis.call('HINCRBY', KEYS[1], role .. '_beat', 1)
elseif owner ~= token then
  return {'owned', owner, beat}
elseif verb == 'beat' then
  redis.call('HDEL', KEYS[1], '')
  redis.call('HINCRBY', KEYS[1], role .. '_beat', 1)
else
  redis.call('HDEL', KEYS[1], role, role .. '_beat')
end
return {'ok'}
