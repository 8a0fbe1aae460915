//! A transaction on the writer's thread, or a look on a reader's.

use rusqlite::Connection;
use uuid::Uuid;

use super::SqliteError;
use super::held::Change;
use super::space::is_no_room;
use super::threads::Done;

/// A caller's part of a transaction that others share: what it wrote goes where it fails, and theirs stays.
pub struct SqliteTx<'c> {
    connection: &'c mut Connection,
    no_room: &'c mut bool,
    held: &'c mut Vec<Change>,
}

impl SqliteTx<'_> {
    pub(super) fn run_in<T, E>(
        connection: &mut Connection,
        work: impl FnOnce(SqliteTx<'_>) -> Result<T, E>,
    ) -> Done<T, E> {
        let (mut no_room, mut held) = (false, Vec::new());
        let ended = work(SqliteTx { connection, no_room: &mut no_room, held: &mut held });
        Done { ended, no_room, held }
    }

    /// Runs statements. They name their tenant themselves: SQLite has no row-level security.
    pub fn run<T>(
        &mut self,
        statements: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, SqliteError> {
        let ended = statements(self.connection);
        *self.no_room |= ended.as_ref().err().is_some_and(is_no_room);
        ended.map_err(SqliteError::from)
    }

    /// Says that a tenant's rows take so many bytes more, or fewer. It counts with the commit.
    pub fn holds(&mut self, tenant: Uuid, bytes: i64) {
        match self.held.last_mut() {
            Some((last, sum)) if *last == tenant => *sum = sum.saturating_add(bytes),
            _ => self.held.push((tenant, bytes)),
        }
    }
}
