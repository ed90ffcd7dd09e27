-- put: sets fields of the `state` or `status` hash of a running job.
-- KEYS state, the hash to write
-- ARGV field, value …
-- -> 1 | 0 (no job: nothing is written)
if redis.call('HEXISTS', KEYS[1], 'log_id') == 0 then return 0 end
-- first write: a command that Redis accepts at maxmemory; the later ones are then accepted too
redis.call('HDEL', KEYS[2], '') -- there is no such field
redis.call('HSET', KEYS[2], unpack(ARGV))
return 1
