//! Usage in SQLite.

mod conflicts;
mod held;
mod old;
mod read;
mod reconcile;
mod terms;
mod write;

pub(super) use conflicts::{conflicts, note_conflicts};
pub(super) use old::drop_old;
pub(super) use read::{groups, sums};
pub(super) use reconcile::{inventory, kept, records};
pub(super) use terms::{kept_terms, put_terms, terms};
pub(super) use write::{add, adjust, counted, insert};
