//! A tenant's transaction.

use std::future::Future as _;
use std::pin::pin;
use std::task::{Context, Waker};

use deadpool_postgres::Object;
use futures_util::future::try_join3;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use super::classify::PgError;
use crate::policy::Permit;

/// A statement's parameter, and its type in the database.
pub type Parameter<'p> = (&'p (dyn ToSql + Sync), Type);

/// Bounds of the server's own: what hangs there holds locks.
const BEGIN: &str = "BEGIN; SET LOCAL statement_timeout = '10s'; SET LOCAL lock_timeout = '5s'; \
                     SET LOCAL idle_in_transaction_session_timeout = '15s'";
const SET_TENANT: &str = "SELECT set_config('app.tenant_id', $1, true)";

/// A transaction for one tenant: row-level security shows it that tenant's rows and no others.
///
/// Made by [`Postgres::run`](super::Postgres::run) alone, from a permit. Dropped before its commit it is rolled back.
pub struct PgTx {
    connection: Object,
    tenant: Uuid,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing was sent.
    New,
    /// Begun, and not ended.
    Open,
    /// Committed, or the commit failed.
    Ended,
}

impl PgTx {
    pub(super) fn new(connection: Object, permit: &Permit) -> Self {
        Self { connection, tenant: *permit.tenant().as_uuid(), state: State::New }
    }

    /// Runs a statement and returns its rows. The first one goes out with `BEGIN` and the tenant in one round trip.
    ///
    /// Statements are not named, so that they work through a pooler that gives each transaction another connection.
    pub async fn query(
        &mut self,
        statement: &'static str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, PgError> {
        let client = &**self.connection;
        if self.state != State::New {
            return client.query_typed(statement, parameters).await.map_err(PgError::of_statement);
        }
        self.state = State::Open;
        let tenant = self.tenant.to_string();
        let tenant: [Parameter<'_>; 1] = [(&tenant, Type::TEXT)];
        // Polled in this order, so sent in this order; where BEGIN fails, the tenant is set for no longer than its
        // own statement, and the last one sees no rows.
        let begin = client.batch_execute(BEGIN);
        let set_tenant = client.query_typed(SET_TENANT, &tenant);
        let first = client.query_typed(statement, parameters);
        let ((), _, rows) = try_join3(begin, set_tenant, first).await.map_err(PgError::of_statement)?;
        Ok(rows)
    }

    pub(super) async fn commit(mut self) -> Result<(), PgError> {
        if self.state != State::Open {
            return Ok(());
        }
        let committed = self.connection.batch_execute("COMMIT").await;
        self.state = State::Ended;
        committed.map_err(PgError::of_commit)
    }
}

impl Drop for PgTx {
    fn drop(&mut self) {
        if self.state != State::Open {
            return;
        }
        // One poll sends it. What the connection's next user sends comes after it, and nobody needs its answer.
        let mut rollback = pin!(self.connection.batch_execute("ROLLBACK"));
        if rollback.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            tracing::debug!("a connection was lost with its transaction");
        }
    }
}
