-- add_sink: adds a required reader to a running job. The result log keeps what a required reader has not read. A call with
-- the name of a present required reader changes nothing.
-- KEYS state
-- ARGV name of the required reader
-- -> 1 | 0 (no job)
local sinks = redis.call('HGET', KEYS[1], 'sinks')
if not sinks then return 0 end
-- first write: a command that Redis accepts at maxmemory; the later ones are then accepted too
redis.call('HDEL', KEYS[1], '') -- there is no such field
if not string.find(',' .. sinks .. ',', ',' .. ARGV[1] .. ',', 1, true) then
  redis.call('HSET', KEYS[1], 'sinks', sinks == '' and ARGV[1] or sinks .. ',' .. ARGV[1])
end
redis.call('HSETNX', KEYS[1], 'sink:' .. ARGV[1], 0)
return 1
