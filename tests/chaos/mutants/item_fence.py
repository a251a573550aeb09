"""The compare-and-set of an item's record always succeeds: a late writer's older offset overwrites a newer one."""

from workers.stores import item_redis

CHECK = "if stored ~= ARGV[1] and stored ~= string.sub(ARGV[2], 3, 14) then return 0 end\n"

assert CHECK in item_redis.WRITE
item_redis.WRITE = item_redis.WRITE.replace(CHECK, "")
