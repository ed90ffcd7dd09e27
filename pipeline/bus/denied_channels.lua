-- denied_channels: checks on which channels the calling user may not publish.
-- KEYS none
-- ARGV channel …
-- -> the denied channels; empty before Redis 7, where a script cannot check rights
local denied = {}
if redis.acl_check_cmd then
  for _, channel in ipairs(ARGV) do
    if not redis.acl_check_cmd('PUBLISH', channel, '') then denied[#denied + 1] = channel end
  end
end
return denied
