//! SQLite: one writer thread with group commit, readers beside it.

/// An open database.
pub struct Sqlite {}
