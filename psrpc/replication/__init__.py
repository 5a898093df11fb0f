"""A shard on two servers: entries on their way, the copy of a state, and who reigns."""
