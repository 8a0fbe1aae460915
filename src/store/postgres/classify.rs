//! What a failure of PostgreSQL means to who runs a transaction. The one place that knows.

use tokio_postgres::error::SqlState;

use crate::error::ErrorKind;

/// What a failure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Nothing was written, and the same transaction can succeed now: a deadlock, a serialisation failure.
    Again,
    /// Nothing was written; the server cannot be reached, is shutting down, or takes no writes.
    Unavailable,
    /// The connection was lost, or the time ran out, while the commit was on its way: it may have happened.
    Unknown,
    /// The server refused the statement: a constraint, a right, a defect in what was sent. It would refuse it again.
    Refused,
}

/// Why a transaction did not end well. The text is for the log: it may hold parts of statements, never values.
#[derive(Debug, thiserror::Error)]
pub enum PgError {
    /// No connection was free, or could be made, in time.
    #[error("no connection to PostgreSQL: {0}")]
    NoConnection(String),
    /// Its tenant has as many connections as one may have beside the others, and none was free in time. Nothing was written.
    #[error("the tenant's other transactions have its share of the connections to PostgreSQL")]
    ShareTaken,
    /// The database is not one to serve from: its schema is behind, or its role would see every tenant. What to do.
    #[error("{0}")]
    Schema(String),
    /// A defect: a column that is not what the statement asks for.
    #[error("a row of PostgreSQL is not as expected: {}", words(.0))]
    Row(tokio_postgres::Error),
    /// A defect: a statement of a transaction that has ended.
    #[error("the transaction has ended")]
    Ended,
    /// The server did not answer in time.
    #[error("PostgreSQL does not answer")]
    Silent(Failure),
    /// PostgreSQL, or the connection to it.
    #[error("PostgreSQL: {}", words(source))]
    Failed {
        /// What it means.
        failure: Failure,
        /// What it said.
        source: tokio_postgres::Error,
    },
}

/// What the driver's own text leaves out: what the server said, or what the connection broke on. A server's message about
/// data quotes it, and its detail does: of those there is the code alone.
pub(super) fn words(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(said), _) if said.code().code().starts_with("22") => {
            format!("a value is not taken (SQLSTATE {})", said.code().code())
        }
        (Some(said), _) => format!("{} (SQLSTATE {})", said.message(), said.code().code()),
        (None, Some(cause)) => format!("{error}: {cause}"),
        (None, None) => error.to_string(),
    }
}

impl PgError {
    /// A failure of a statement, before any commit was sent.
    pub(super) fn of_statement(source: tokio_postgres::Error) -> Self {
        Self::Failed { failure: of_statement(source.code()), source }
    }

    /// A failure of the commit itself.
    pub(super) fn of_commit(source: tokio_postgres::Error) -> Self {
        Self::Failed { failure: of_commit(source.code()), source }
    }

    /// A row without what it should have.
    pub fn of_row(source: tokio_postgres::Error) -> Self {
        Self::Row(source)
    }

    /// Whether the server said nothing for too long.
    pub(super) fn is_silent(&self) -> bool {
        matches!(self, Self::Silent(_))
    }

    /// Whether PostgreSQL said this.
    pub(super) fn is(&self, code: &SqlState) -> bool {
        matches!(self, Self::Failed { source, .. } if source.code() == Some(code))
    }

    /// Whether a value or a constraint is why (SQLSTATE classes 22 and 23).
    #[must_use]
    pub fn is_of_data(&self) -> bool {
        let code = match self {
            Self::Failed { source, .. } => source.code(),
            _ => None,
        };
        code.is_some_and(|code| code.code().starts_with("22") || code.code().starts_with("23"))
    }

    /// Whether a statement's or a lock's time ran out, or the server said nothing for too long.
    #[must_use]
    pub fn is_too_slow(&self) -> bool {
        self.is(&SqlState::QUERY_CANCELED) || self.is(&SqlState::LOCK_NOT_AVAILABLE) || self.is_silent()
    }

    /// What it means.
    #[must_use]
    pub fn failure(&self) -> Failure {
        match self {
            Self::NoConnection(_) | Self::Schema(_) | Self::ShareTaken => Failure::Unavailable,
            Self::Row(_) | Self::Ended => Failure::Refused,
            Self::Silent(failure) | Self::Failed { failure, .. } => *failure,
        }
    }

    /// What kind of error it is to the caller.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        if matches!(self, Self::ShareTaken) {
            return ErrorKind::Overloaded;
        }
        match self.failure() {
            Failure::Again | Failure::Unavailable => ErrorKind::BackendUnavailable,
            Failure::Unknown => ErrorKind::OutcomeUnknown,
            Failure::Refused => ErrorKind::Internal,
        }
    }
}

/// `code` is none where the server said nothing: the connection broke, or what came was no PostgreSQL.
fn of_statement(code: Option<&SqlState>) -> Failure {
    // What was not committed is rolled back with its connection.
    code.map_or(Failure::Unavailable, of_code)
}

fn of_commit(code: Option<&SqlState>) -> Failure {
    match code {
        // A commit that PostgreSQL refuses is a rollback. One that a shutdown cut off may be on disk, and so may one whose
        // server was lost behind a pooler, which says so with a connection exception of its own (PgBouncer: 08P01).
        Some(code) if is_shutdown(code) || code.code().starts_with("08") => Failure::Unknown,
        Some(code) => of_code(code),
        None => Failure::Unknown,
    }
}

fn of_code(code: &SqlState) -> Failure {
    let (class, _) = code.code().split_at_checked(2).unwrap_or_default();
    match class {
        _ if *code == SqlState::T_R_SERIALIZATION_FAILURE || *code == SqlState::T_R_DEADLOCK_DETECTED => {
            Failure::Again
        }
        // Connection exceptions, no room for another connection, a server that stops or stands by.
        "08" | "53" => Failure::Unavailable,
        _ if is_shutdown(code) || *code == SqlState::READ_ONLY_SQL_TRANSACTION => Failure::Unavailable,
        // A statement's or a lock's time ran out, or it was cancelled: the transaction is rolled back.
        _ if *code == SqlState::QUERY_CANCELED || *code == SqlState::LOCK_NOT_AVAILABLE => {
            Failure::Unavailable
        }
        _ => Failure::Refused,
    }
}

fn is_shutdown(code: &SqlState) -> bool {
    [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::CANNOT_CONNECT_NOW].contains(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_one_meaning_before_and_at_the_commit() {
        for (code, statement, commit) in [
            (Some("40001"), Failure::Again, Failure::Again),
            (Some("40P01"), Failure::Again, Failure::Again),
            (Some("08006"), Failure::Unavailable, Failure::Unknown),
            (Some("08P01"), Failure::Unavailable, Failure::Unknown),
            (Some("53300"), Failure::Unavailable, Failure::Unavailable),
            (Some("57P01"), Failure::Unavailable, Failure::Unknown),
            (Some("57P02"), Failure::Unavailable, Failure::Unknown),
            (Some("57P03"), Failure::Unavailable, Failure::Unknown),
            (Some("25006"), Failure::Unavailable, Failure::Unavailable),
            (Some("57014"), Failure::Unavailable, Failure::Unavailable),
            (Some("55P03"), Failure::Unavailable, Failure::Unavailable),
            (Some("23505"), Failure::Refused, Failure::Refused),
            (Some("42501"), Failure::Refused, Failure::Refused),
            (Some("42P01"), Failure::Refused, Failure::Refused),
            (None, Failure::Unavailable, Failure::Unknown),
        ] {
            let code = code.map(SqlState::from_code);
            assert_eq!(of_statement(code.as_ref()), statement, "{code:?}");
            assert_eq!(of_commit(code.as_ref()), commit, "{code:?}");
        }
    }
}
