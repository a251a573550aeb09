"""The compare-and-set of a user's record always succeeds: the last writer wipes out what another wrote meanwhile."""

from workers.stores import user_redis

CHECK = "if token ~= ARGV[1] then return -1 end\n"

assert CHECK in user_redis.WRITE
user_redis.WRITE = user_redis.WRITE.replace(CHECK, "")
