//! Usage in SQLite.

mod held;
mod old;
mod read;
mod reconcile;
mod write;

pub(super) use old::drop_old;
pub(super) use read::{groups, sums};
pub(super) use reconcile::{kept, records};
pub(super) use write::{add, adjust, counted, insert};
