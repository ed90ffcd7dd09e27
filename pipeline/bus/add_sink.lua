-- add_sink: the log of a running job is kept for one more required reader.
-- KEYS state
-- ARGV name
-- -> 1 | 0 (no job)
local sinks = redis.call('HGET', KEYS[1], 'sinks')
if not sinks then return 0 end
if not string.find(',' .. sinks .. ',', ',' .. ARGV[1] .. ',', 1, true) then
  redis.call('HSET', KEYS[1], 'sinks', sinks == '' and ARGV[1] or sinks .. ',' .. ARGV[1])
end
redis.call('HSETNX', KEYS[1], 'sink:' .. ARGV[1], 0)
return 1
