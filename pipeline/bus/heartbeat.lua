-- heartbeat: renews the heartbeat of a worker.
-- KEYS key of the worker
-- ARGV status as JSON, time to live in seconds
-- first write: a command that Redis accepts at maxmemory; the later ones are then accepted too
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
