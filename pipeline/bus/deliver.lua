-- deliver: an infer worker appends the detections (or the gap) of one frame, and acknowledges and removes the frame and
-- its pixels. No detections are written if the frame was removed or belongs to another decode session by now.
-- KEYS frames, detections
-- ARGV consumer group, id of the frame, decode session of the frame, message
-- -> 1 | 0
local entry = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
if not entry then
  redis.pcall('XACK', KEYS[1], ARGV[1], ARGV[2]) -- pcall: NOGROUP if the stream was removed
  return 0
end
if field(entry, 's') ~= ARGV[3] then return 0 end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('DEL', field(entry, 'px'))
redis.call('XADD', KEYS[2], '*', 's', ARGV[3], 'm', ARGV[4])
return 1
