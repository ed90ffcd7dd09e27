-- claim: an infer worker takes over one pending frame of a worker whose heartbeat stopped. It is one step, so that two
-- workers cannot claim the same frame. The stopped worker's consumer is deleted once it
-- has no pending frames.
-- KEYS frames
-- ARGV consumer group, consumer that claims, consumer of the stopped worker
-- -> {id, number of deliveries, fields} | false
local claimed = false
for _, pending in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 64, ARGV[3])) do
  local entry = redis.call('XRANGE', KEYS[1], pending[1], pending[1])[1]
  if entry then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, pending[1])
    claimed = {pending[1], pending[4] + 1, entry[2]}
    break
  end
  -- the frame was removed from the stream; Redis 6.2 would keep it pending for ever
  redis.call('XACK', KEYS[1], ARGV[1], pending[1])
end
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[3]) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[3])
end
return claimed
