//! Embedded storage.

pub mod sqlite;
