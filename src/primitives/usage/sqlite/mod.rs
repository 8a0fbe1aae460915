//! Usage in SQLite.

mod read;
mod write;

pub(super) use read::sums;
pub(super) use write::{add, insert};
