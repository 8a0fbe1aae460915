//! A transaction on the writer's thread, or a look on a reader's.

use rusqlite::Connection;

use super::SqliteError;
use super::space::is_no_room;
use super::threads::Done;

/// A caller's part of a transaction that others share: what it wrote goes where it fails, and theirs stays.
pub struct SqliteTx<'c> {
    connection: &'c mut Connection,
    no_room: &'c mut bool,
}

impl SqliteTx<'_> {
    pub(super) fn run_in<T, E>(
        connection: &mut Connection,
        work: impl FnOnce(SqliteTx<'_>) -> Result<T, E>,
    ) -> Done<T, E> {
        let mut no_room = false;
        let ended = work(SqliteTx { connection, no_room: &mut no_room });
        (ended, no_room)
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
}
