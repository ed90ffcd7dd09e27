-- claim: an infer worker takes one frame of another whose beat stands still. In one step, so that two who see the same
-- dead worker do not take the same frame. A consumer that holds nothing any more is removed.
-- KEYS frames
-- ARGV consumer group, the worker, the dead worker
-- -> {id, how often it was handed out, fields} | false
local claimed = false
for _, owed in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 64, ARGV[3])) do
  local entry = redis.call('XRANGE', KEYS[1], owed[1], owed[1])[1]
  if entry then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, owed[1])
    claimed = {owed[1], owed[4] + 1, entry[2]}
    break
  end
  redis.call('XACK', KEYS[1], ARGV[1], owed[1]) -- withdrawn; 6.2 would keep it pending for ever
end
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[3]) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[3])
end
return claimed
