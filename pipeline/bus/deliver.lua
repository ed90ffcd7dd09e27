-- deliver: an infer worker hands in what it made of one frame: acknowledges and removes the frame and its pixels, appends
-- the message. A frame that is no longer there, or stands there again from another decode session, was somebody else's:
-- nothing is written.
-- KEYS frames, detections
-- ARGV consumer group, id of the frame, session of the frame, message
-- -> 1 | 0
local entry = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
if not entry then
  redis.pcall('XACK', KEYS[1], ARGV[1], ARGV[2]) -- NOGROUP: the stream was removed
  return 0
end
if field(entry, 's') ~= ARGV[3] then return 0 end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('DEL', field(entry, 'px'))
redis.call('XADD', KEYS[2], '*', 's', ARGV[3], 'm', ARGV[4])
return 1
