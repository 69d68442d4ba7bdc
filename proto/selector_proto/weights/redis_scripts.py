"""The scripts by which a publisher owns its run in Redis: each does in one step what two publishers must not mix.

KEYS are the run's owner, counter, pointer and manifest; ARGV are the publisher as owner (`layout` says what that is),
seconds to live, a version, and a manifest. A script uses as many of them as it needs.
"""

# Every script first sees to it that the publisher may go on, and makes it the owner.
_OWN = """
local function epoch(owner) return tonumber(string.match(owner, '^(%d+) ') or '0') end
local found = redis.call('GET', KEYS[1])
if found and found ~= ARGV[1] and epoch(found) >= epoch(ARGV[1]) then return -1 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
local function number(key)
  local text = redis.call('GET', key) or '0'
  if #text > 15 or not string.match(text, '^%d+$') then error(key .. ' holds no number') end
  return tonumber(text)
end
"""
# Gives the next version, above ARGV[3] and all before; -1 if another publisher owns the run.
NEXT_VERSION = (
    _OWN
    + """
local new = math.max(number(KEYS[2]), number(KEYS[3]), tonumber(ARGV[3])) + 1
redis.call('SET', KEYS[2], string.format('%.0f', new), 'EX', ARGV[2])
return new
"""
)
# Puts the manifest and moves the pointer, forward only; gives the version that the pointer has now, -1 as above.
MOVE_POINTER = (
    _OWN
    + """
local now = number(KEYS[3])
if tonumber(ARGV[3]) <= now then return now end
redis.call('SET', KEYS[4], ARGV[4], 'EX', ARGV[2])
redis.call('SET', KEYS[3], ARGV[3], 'EX', ARGV[2])
return tonumber(ARGV[3])
"""
)
