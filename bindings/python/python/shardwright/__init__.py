"""shardwright for Python."""
