-- finish_job: ends a job. The result log expires later; all other keys of the stream are removed at once. The caller then
-- removes the stream from `ms:sources`.
-- KEYS state, frames, detections, results, status
-- ARGV log_id of the job ('' for any), seconds until the log expires, prefix of the pixel keys
-- -> 1 | 0 (another job uses the stream id)
local old = redis.call('HMGET', KEYS[1], 'log_id', 'session', 'last', 'refused_seq')
if ARGV[1] ~= '' and old[1] and old[1] ~= ARGV[1] then return 0 end
drop_unaccepted_pixels(ARGV[3], old[2], old[3], old[4])
drop_frames(KEYS[2])
redis.call('DEL', KEYS[1], KEYS[3], KEYS[5])
redis.call('EXPIRE', KEYS[4], ARGV[2])
return 1
