//! Usage in PostgreSQL.

mod dates;
mod numeric;
mod write;

pub(super) use write::{add, insert, make_day};
