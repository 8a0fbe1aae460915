//! PostgreSQL: a small pool of connections, and transactions that cannot be had without a permit.
//!
//! A tenant's transaction begins, says which tenant it is for and sends its first statements in one round trip. What
//! a failure means is said in one place ([`classify`]): run again where nothing can have been written, `Unknown` where it
//! can. A transaction that is dropped is rolled back before its connection serves another.

#[cfg(test)]
pub(crate) mod bench;
mod classify;
mod connect;
mod left;
mod metrics;
mod migrate;
mod pool;
mod schema;
#[cfg(test)]
mod schema_tests;
#[cfg(test)]
mod share_tests;
mod shares;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod timescale_tests;
mod tx;

pub use classify::{Failure, PgError};
pub use connect::StartError;
pub use metrics::PostgresMetrics;
pub use migrate::{Epoch, Migrated, MigrationError, Settings, Timescale, UsageTerms, migrate};
pub use pool::{ConnectAs, Postgres};
pub use schema::{Identity, Inspected, inspect};
pub(in crate::store) use tx::Tenants;
pub use tx::{Parameter, PgTx, Statement};
