//! Storage of this process's own: SQLite in the data directory, or PostgreSQL.
//!
//! The transactional primitives share one [`Store`], so that they can commit together. A transaction is a function of a
//! [`Tx`]; what it does there is written, all of it, or nothing is.

#[cfg(test)]
pub(crate) mod bench;
mod group_commit;
pub mod postgres;
pub mod spool;
pub mod sqlite;
mod tx;

pub use group_commit::{GroupCommit, GroupCommitError, GroupMetrics, Terms, Work};
pub use tx::{Reach, Store, StoreError, Tx};

/// The tables of `durable.db`.
pub const DURABLE: &[sqlite::Migrations] = &[(
    "store",
    &[
        include_str!("../../migrations/sqlite/001_events.sql"),
        include_str!("../../migrations/sqlite/002_usage.sql"),
    ],
)];
