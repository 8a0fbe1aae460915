//! Real servers for the tests: starts them on loopback, waits until they are ready, and breaks them on demand.
//!
//! Two ways to use it:
//! - [`shared_redis_nodes`], [`shared_postgres`] and [`shared_kafka_brokers`] give what all tests share: `make servers`
//!   starts everything, a test starts what it asks for and is not up. A server that cannot be started fails the test.
//! - [`RedisCluster::start`], [`PostgresCluster::start`], [`PgBouncer::start`] and [`KafkaCluster::start`] give servers
//!   of its own to a test that kills, stops or reconfigures them. Name such tests `chaos_…`: the runner then takes them
//!   one at a time. Dropping the value ends the servers. [`TimescaleServer::start`] is one that nobody can share.
//!
//! One file per kind of server, and one for the shared servers of that kind (`redis.rs`, `redis_shared.rs`);
//! `process.rs` and `fleet.rs` hold what every kind needs.

mod cache;
mod certificate;
mod family;
mod fleet;
mod kafka;
mod kafka_shared;
mod pgbouncer;
mod ports;
mod postgres;
mod postgres_shared;
mod process;
mod recorded;
mod redis;
mod redis_shared;
mod shared;
mod timescale;
mod user;

pub use certificate::Certificate;
pub use fleet::NodeState;
pub use kafka::acl::KafkaAcl;
pub use kafka::config::{KAFKA_PASSWORD, KAFKA_USER, KafkaOptions};
pub use kafka::{BROKERS, KafkaCluster};
pub use kafka_shared::shared_kafka_brokers;
pub use pgbouncer::{PgBouncer, PgBouncerOptions};
pub use postgres::PostgresCluster;
pub use postgres::access::{PostgresAccess, PostgresRole};
pub use postgres::config::PostgresOptions;
pub use postgres::database::Database;
pub use postgres::session::HeldSession;
pub use postgres_shared::{SharedPostgres, shared_postgres};
pub use process::Error;
pub use redis::config::{Acl, OUTRIGGER_RULES, Options};
pub use redis::migration::SlotMigration;
pub use redis::topology::{Node, Role};
pub use redis::{NODES, RedisCluster};
pub use redis_shared::shared_redis_nodes;
pub use shared::{down, env_lines, status, up, workspace_root};
pub use timescale::TimescaleServer;
