//! Storage of this process's own: SQLite in the data directory, or PostgreSQL.

pub mod postgres;
pub mod sqlite;
