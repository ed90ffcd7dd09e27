-- denied_channels: which channels the calling user may not publish on.
-- KEYS none
-- ARGV channel …
-- -> the channels that are denied; empty on a server before 7.0, where a script cannot ask
local denied = {}
if redis.acl_check_cmd then
  for _, channel in ipairs(ARGV) do
    if not redis.acl_check_cmd('PUBLISH', channel, '') then denied[#denied + 1] = channel end
  end
end
return denied
