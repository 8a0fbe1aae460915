//! Usage in PostgreSQL.

mod dates;
mod numeric;
mod read;
mod write;

pub(super) use read::sums;
pub(super) use write::{add, insert, make_day};
