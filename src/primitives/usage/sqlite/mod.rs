//! Usage in SQLite.

mod write;

pub(super) use write::{add, insert};
