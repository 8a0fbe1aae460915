//! Usage in PostgreSQL.

mod conflicts;
mod dates;
mod numeric;
mod read;
mod reconcile;
mod terms;
mod write;

pub(super) use conflicts::{conflicts, drop_old_conflicts, note_conflicts};
pub(super) use read::{groups, sums};
pub(super) use reconcile::{inventory, kept, records};
pub(super) use terms::{kept_terms, terms};
pub(super) use write::{add, adjust, counted, insert, make_day, now};
