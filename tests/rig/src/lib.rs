//! Real servers for the tests: starts them on loopback, waits until they are ready, and breaks them on demand.
//!
//! Two ways to use it:
//! - [`shared_redis_nodes`] gives the cluster that `make servers` left running. Tests that only need a server use
//!   it; a missing server fails the test.
//! - [`RedisCluster::start`] gives a cluster of its own to a test that kills, stops or reconfigures nodes. Name
//!   such tests `chaos_…`: the runner then takes them one at a time. Dropping the value ends the servers.
//!
//! One file per kind of server (`redis.rs`); `process.rs` holds what every kind needs.

mod cache;
mod certificate;
mod family;
mod fleet;
mod pgbouncer;
mod ports;
mod postgres;
mod process;
mod recorded;
mod redis;
mod redis_shared;
mod shared;
mod user;

pub use certificate::Certificate;
pub use fleet::NodeState;
pub use pgbouncer::{PgBouncer, PgBouncerOptions};
pub use postgres::PostgresCluster;
pub use postgres::access::{PostgresAccess, PostgresRole};
pub use postgres::config::PostgresOptions;
pub use postgres::database::Database;
pub use process::Error;
pub use redis::config::{Acl, OUTRIGGER_RULES, Options};
pub use redis::migration::SlotMigration;
pub use redis::topology::{Node, Role};
pub use redis::{NODES, RedisCluster};
pub use shared::{down, env_lines, shared_redis_nodes, status, up, workspace_root};
