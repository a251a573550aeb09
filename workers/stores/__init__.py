"""Tables in Redis and in memory: users, items, popular counts, markers of what is complete; and caches before them."""
