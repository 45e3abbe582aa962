"""RQ (3.0) on Redis or Valkey, over the Redis protocol alone: nothing is unpickled, and no read changes anything.

Jobs are read from the lists and sets in which RQ keeps the open ones, in bounded pages; a change is one Lua script that
compares everything that was seen and leaves what RQ itself would.
Known weakness: RQ's own prefix of keys (`RQ_KEY_PREFIX`) must be the default, and a Redis Cluster isn't supported.
"""
