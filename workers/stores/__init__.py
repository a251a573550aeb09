"""The user table and the item table, in Redis and in memory."""
