//! How far the log may be read.
//!
//! Ids are drawn before their transactions end, so rows appear out of their order. A reader that went on from the
//! largest it saw would miss those that come later with smaller ids. A writer therefore says, by a shared advisory lock on
//! the sequence's last value, that it will draw above that value; nobody reads above what a transaction that is not over
//! has said. The order of steps is what makes it right: first the sequence, then the locks, then, in a statement with a
//! snapshot of its own, the rows.

use crate::primitives::events::Position;
use crate::store::StoreError;
use crate::store::postgres::{PgError, PgTx, Postgres, Statement};

/// First: what was drawn later is for later.
const LAST: &str = "SELECT last_value FROM events_id_seq";
/// Second: a writer that has no lock yet draws above the last value; one that has none any more is over, and its rows are
/// there to be read. A floor is a shared lock; who makes partitions takes an exclusive one of the same class. Whoever may
/// connect may take such locks: those of a session whose role may not insert into the log hold nobody up. A session that is
/// not known (the server keeps its list of sessions for a transaction) counts; a prepared
/// transaction, which is no session's, does not.
const FLOORS: &str = "SELECT held.objid::bigint FROM pg_locks held \
     LEFT JOIN LATERAL pg_stat_get_activity(held.pid) session ON true \
     WHERE held.locktype = 'advisory' AND held.classid = 1869968498 AND held.objsubid = 2 AND held.mode = 'ShareLock' \
     AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND held.pid IS NOT NULL \
     AND coalesce(has_table_privilege(session.usesysid, 'events'::regclass, 'INSERT'), true)";

/// What both statements are asked with, after statements of a caller's own.
pub(super) const STEPS: [Statement<'static>; 2] = [(LAST, &[]), (FLOORS, &[])];

/// The last position that may be read: by statements that begin after this.
pub(in super::super) async fn readable(tx: &mut PgTx) -> Result<Position, StoreError> {
    let found = tx.query_all(&STEPS).await?;
    of_steps(&found)
}

/// The last number that was drawn, by one statement of its own: while it is what it was, nothing came.
pub(in super::super) async fn last_value(store: &Postgres) -> Result<Position, StoreError> {
    let rows = store.ask(LAST).await?;
    let last = rows.first().ok_or(PgError::Ended)?.try_get(0).map_err(PgError::of_row)?;
    Ok(Position::new(last))
}

/// [`readable`] of the rows of [`STEPS`].
pub(super) fn of_steps(found: &[Vec<tokio_postgres::Row>]) -> Result<Position, StoreError> {
    let [last, floors] = found else { return Err(PgError::Ended.into()) };
    let last: i64 = last.first().ok_or(PgError::Ended)?.try_get(0).map_err(PgError::of_row)?;
    let mut limit = last;
    for floor in floors {
        let low: i64 = floor.try_get(0).map_err(PgError::of_row)?;
        if let Some(floor) = unwrapped(low, last) {
            limit = limit.min(floor);
        }
    }
    Ok(Position::new(limit))
}

/// A lock's number has the low 31 bits of a floor. The floor is the one of those that is nearest to the sequence's last
/// value; none where that is above it, since such a writer draws above it too.
fn unwrapped(low: i64, last: i64) -> Option<i64> {
    const TURN: i64 = 1 << 31;
    let same_turn = (last & !(TURN - 1)) | low;
    let nearest = [same_turn - TURN, same_turn, same_turn + TURN]
        .into_iter()
        .min_by_key(|floor| floor.abs_diff(last))
        .unwrap_or(same_turn);
    (nearest <= last).then_some(nearest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_floor_is_found_beyond_31_bits() {
        const TURN: i64 = 1 << 31;
        for (floor, last, expected) in [
            (5, 5, Some(5)),
            (3, 900, Some(3)),
            (901, 900, None),
            (TURN - 2, TURN + 3, Some(TURN - 2)),
            (TURN + 3, TURN - 2, None),
            (7 * TURN + 1, 7 * TURN + 1, Some(7 * TURN + 1)),
            (7 * TURN - 1, 7 * TURN + 1000, Some(7 * TURN - 1)),
            (0, TURN - 1, None),
        ] {
            assert_eq!(unwrapped(floor & (TURN - 1), last), expected, "{floor} {last}");
        }
    }
}
