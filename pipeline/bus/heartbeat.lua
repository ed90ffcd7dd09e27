-- heartbeat: renews the heartbeat of a worker.
-- KEYS key of the worker
-- ARGV status as JSON, time to live in seconds
-- DEL frees memory: Redis lets a script go on at maxmemory if its first write command did not need memory
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
