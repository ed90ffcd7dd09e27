-- finish: the job is over; its result log stays for a while, everything else goes.
-- KEYS state, frames, detections, results, status
-- ARGV log_id of the job ('' for whichever is there), seconds the log stays, name of the pixel keys without session and number
-- -> 1 | 0 (another job has taken the stream id over)
local old = redis.call('HMGET', KEYS[1], 'log_id', 'session', 'last', 'refused_seq')
if ARGV[1] ~= '' and old[1] and old[1] ~= ARGV[1] then return 0 end
drop_unoffered(ARGV[3], old[2], old[3], old[4])
drop_frames(KEYS[2])
redis.call('DEL', KEYS[1], KEYS[3], KEYS[5])
redis.call('EXPIRE', KEYS[4], ARGV[2])
return 1
