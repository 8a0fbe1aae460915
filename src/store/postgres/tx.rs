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

/// A statement's parameter, and its type in the database.
pub type Parameter<'p> = (&'p (dyn ToSql + Sync), Type);

/// Bounds of the server's own: what hangs there holds locks. A statement whose connection was dropped ends within a
/// second, since the server looks whether it is still there.
const BEGIN: &str = "BEGIN; SET LOCAL statement_timeout = '10s'; SET LOCAL lock_timeout = '5s'; \
                     SET LOCAL idle_in_transaction_session_timeout = '15s'; \
                     SET LOCAL client_connection_check_interval = '1s'";
const SET_TENANT: &str = "SELECT set_config('app.tenant_id', $1, true)";

/// A transaction for one tenant: row-level security shows it that tenant's rows and no others.
///
/// Made by [`Postgres::run`](super::Postgres::run) alone, from a permit. Dropped before its commit it is rolled back.
pub struct PgTx {
    connection: Option<Object>,
    tenant: Uuid,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing was sent.
    New,
    /// Begun, and not ended; nothing is under way.
    Open,
    /// A statement or the commit is under way.
    Waiting,
    /// Committed, or the commit failed.
    Ended,
}

impl PgTx {
    pub(super) fn new(connection: Object, tenant: Uuid) -> Self {
        Self { connection: Some(connection), tenant, state: State::New }
    }

    /// Runs a statement and returns its rows. The first one goes out with `BEGIN` and the tenant in one round trip.
    ///
    /// Statements are not named, so that they work through a pooler that gives each transaction another connection.
    pub async fn query(
        &mut self,
        statement: &'static str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, PgError> {
        let before = std::mem::replace(&mut self.state, State::Waiting);
        let client = self.connection.as_ref().ok_or(PgError::Ended)?;
        let rows = if before == State::New {
            let tenant = self.tenant.to_string();
            let tenant: [Parameter<'_>; 1] = [(&tenant, Type::TEXT)];
            // Polled in this order, so sent in this order; where BEGIN fails, the tenant is set for no longer than its
            // own statement, and the last one sees no rows.
            let begin = client.batch_execute(BEGIN);
            let set_tenant = client.query_typed(SET_TENANT, &tenant);
            let first = client.query_typed(statement, parameters);
            try_join3(begin, set_tenant, first).await.map(|((), _, rows)| rows)
        } else {
            client.query_typed(statement, parameters).await
        };
        self.state = State::Open;
        rows.map_err(PgError::of_statement)
    }

    pub(super) async fn commit(mut self) -> Result<(), PgError> {
        if self.state != State::Open {
            return Ok(());
        }
        self.state = State::Waiting;
        let client = self.connection.as_ref().ok_or(PgError::Ended)?;
        let committed = client.batch_execute("COMMIT").await;
        self.state = State::Ended;
        committed.map_err(PgError::of_commit)
    }
}

impl Drop for PgTx {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        match self.state {
            State::New | State::Ended => {}
            State::Open => {
                // One poll sends it. What the connection's next user sends comes after it, and nobody needs its answer.
                let mut rollback = pin!(connection.batch_execute("ROLLBACK"));
                if rollback.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                    tracing::debug!("a connection was lost with its transaction");
                }
            }
            // The next user would wait for what nobody waits for any more: closed, and the server gives it up.
            State::Waiting => drop(Object::take(connection)),
        }
    }
}
