//! shardwright: pluggable sharding strategies for large-model training.
