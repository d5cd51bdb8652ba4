-- Commits one fold: all of it, or nothing where somebody else changed what the fold was made from.
--
-- KEYS  1 versions, 2 open incidents by the moment they are over, 3 by how much they matter, then the incidents of
--       ARGV[2] keys, then the indexes of ARGV[3] addresses.
-- ARGV  1 seconds to live, 2 and 3 as above; then for each incidents key: the version it was read at, `check`, `write` or
--       `delete`, its name, its content, when it is over (`closed` where none of it is open), how much it matters; then for each index: the size it was read
--       at (-1: not read), how many names follow, the names to add (`+name`) or to remove (`-name`).
--
-- Answers 1, or 0 where the fold is to be made again. What is written is derived from what was read, and nothing is
-- written unless that still stands, so folding twice is what folding once is.

local ttl, incidents, indexes = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local at = 4
for i = 1, incidents do
  local version = redis.call('HGET', KEYS[3 + i], 'v') or '0'
  if version ~= ARGV[at] then return 0 end
  at = at + 6
end
for i = 1, indexes do
  local size, names = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  if size >= 0 and redis.call('SCARD', KEYS[3 + incidents + i]) ~= size then return 0 end
  at = at + 2 + names
end

at = 4
for i = 1, incidents do
  local key, op, name = KEYS[3 + i], ARGV[at + 1], ARGV[at + 2]
  if op == 'write' then
    redis.call('HSET', key, 'v', redis.call('INCR', KEYS[1]), 'd', ARGV[at + 3])
    redis.call('EXPIRE', key, ttl)
    if ARGV[at + 4] == 'closed' then
      redis.call('ZREM', KEYS[2], name)
      redis.call('ZREM', KEYS[3], name)
    else
      redis.call('ZADD', KEYS[2], ARGV[at + 4], name)
      redis.call('ZADD', KEYS[3], ARGV[at + 5], name)
    end
  elseif op == 'delete' then
    redis.call('DEL', key)
    redis.call('ZREM', KEYS[2], name)
    redis.call('ZREM', KEYS[3], name)
  end
  at = at + 6
end
for i = 1, indexes do
  local key, names = KEYS[3 + incidents + i], tonumber(ARGV[at + 1])
  for n = 1, names do
    local name = ARGV[at + 1 + n]
    if string.sub(name, 1, 1) == '+' then
      redis.call('SADD', key, string.sub(name, 2))
    else
      redis.call('SREM', key, string.sub(name, 2))
    end
  end
  if names > 0 then redis.call('EXPIRE', key, ttl) end
  at = at + 2 + names
end
for i = 1, 3 do redis.call('EXPIRE', KEYS[i], ttl) end
return 1
