-- put: fields of the `state` or `status` hash of a running job; nothing where the job is over.
-- KEYS state, the hash
-- ARGV field, value …
-- -> 1 | 0
if redis.call('HEXISTS', KEYS[1], 'log_id') == 0 then return 0 end
redis.call('HDEL', KEYS[2], '') -- a freeing command first: a script that began so may go on at maxmemory
redis.call('HSET', KEYS[2], unpack(ARGV))
return 1
