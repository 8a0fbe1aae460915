//! Redis Cluster: a few multiplexed connections per named instance.

/// A named Redis Cluster.
pub struct RedisPool {}
