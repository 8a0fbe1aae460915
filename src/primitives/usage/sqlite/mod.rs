//! Usage in SQLite.

mod conflicts;
mod held;
mod old;
mod read;
mod reconcile;
mod write;

pub(super) use conflicts::{conflicts, note_conflicts};
pub(super) use old::drop_old;
pub(super) use read::{groups, sums};
pub(super) use reconcile::{kept, records};
pub(super) use write::{add, adjust, counted, insert};
