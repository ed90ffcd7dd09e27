-- heartbeat: a worker tells that it lives, also at maxmemory.
-- KEYS the worker's key
-- ARGV JSON, seconds it is kept
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
