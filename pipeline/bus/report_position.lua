-- report_position: a required reader of the result log stores the highest frame_seq that it no longer needs.
-- KEYS state
-- ARGV log_id that was read, field `sink:NAME`, frame_seq
-- -> 1 | 0 (no job, another log, or the job does not wait for this reader)
if redis.call('HGET', KEYS[1], 'log_id') ~= ARGV[1] then return 0 end
-- first write: a command that Redis accepts at maxmemory; the later ones are then accepted too
if redis.call('HDEL', KEYS[1], ARGV[2]) == 0 then return 0 end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
return 1
