//! A tenant's transaction.

use std::future::Future as _;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use deadpool_postgres::{Client, Object};
use futures_util::future::{try_join, try_join_all, try_join3};
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use super::classify::{Failure, PgError};
use super::left::Way;
use super::metrics::RoleMetrics;
use super::shares::Place;
use crate::policy::{FleetPermit, FleetTenants, Permit};

/// A statement's parameter, and its type in the database.
pub type Parameter<'p> = (&'p (dyn ToSql + Sync), Type);

/// A statement and its parameters.
pub type Statement<'p> = (&'static str, &'p [Parameter<'p>]);

/// Bounds of the server's own: what hangs there holds locks. A statement whose connection was dropped ends within a
/// second, since the server looks whether it is still there.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = '10s'; SET LOCAL lock_timeout = '5s'; \
                     SET LOCAL idle_in_transaction_session_timeout = '15s'; \
                     SET LOCAL client_connection_check_interval = '1s'";
const SET_TENANTS: &str = "SELECT set_config('app.tenant_id', $1, true), set_config('app.writes_for', $2, true), \
                           set_config('app.reads_for', $3, true)";
/// A word in the log that nobody reads: the commit comes behind everything that was seen.
const SEEN: &str = "SELECT pg_logical_emit_message(true, 'outrigger', '')";
const SET_READS: &str = "SELECT set_config('app.reads_for', $1, true)";
const SET_WRITES: &str = "SELECT set_config('app.writes_for', $1, true)";
/// The server's own bounds do not help where it hangs or its machine is gone: without an answer after this time the
/// connection is given up. Longer than they are, so that a server that works says itself what was too slow.
pub(super) const ANSWER: Duration = Duration::from_secs(12);
/// A statement that takes longer is logged.
const SLOW: Duration = Duration::from_secs(1);

/// Whose rows a transaction reaches.
#[derive(Debug, Clone)]
pub(in crate::store) enum Tenants {
    /// No one's.
    None,
    /// One tenant's.
    One(Uuid),
    /// Inserts for these, one or many, where a table's policy takes a batch of rows; reads nothing.
    Batch(Vec<Uuid>),
    /// A service's own rows, and where a table's policy lets fleets read, those of its tenants; `None` is every tenant.
    Fleet(Uuid, Option<Arc<[Uuid]>>),
}

impl Tenants {
    pub(in crate::store) fn of_fleet(permit: &FleetPermit) -> Self {
        let tenants = match permit.tenants() {
            FleetTenants::Any => None,
            FleetTenants::These(tenants) => Some(Arc::clone(tenants)),
        };
        Self::Fleet(*permit.owner().as_uuid(), tenants)
    }

    pub(in crate::store) fn of(permit: &Permit) -> Self {
        Self::One(*permit.tenant().as_uuid())
    }

    pub(in crate::store) fn batch(permits: &[Permit]) -> Self {
        Self::batch_of(permits.iter().map(|permit| *permit.tenant().as_uuid()).collect())
    }

    pub(in crate::store) fn batch_of(mut tenants: Vec<Uuid>) -> Self {
        tenants.sort_unstable();
        tenants.dedup();
        if tenants.is_empty() { Self::None } else { Self::Batch(tenants) }
    }

    /// Whose share of the store it takes.
    pub(in crate::store) fn counted(&self) -> Option<Uuid> {
        match self {
            Self::One(tenant) => Some(*tenant),
            // Of nobody it is this process's own look at the log.
            Self::Fleet(owner, _) => Some(*owner).filter(|owner| !owner.is_nil()),
            Self::None | Self::Batch(_) => None,
        }
    }

    /// `app.tenant_id`, `app.writes_for` and `app.reads_for`, as row-level security reads them.
    fn settings(&self) -> [String; 3] {
        match self {
            Self::None => [String::new(), none(), none()],
            Self::One(tenant) => [tenant.to_string(), none(), none()],
            Self::Batch(tenants) => [String::new(), list(tenants), none()],
            Self::Fleet(owner, None) => [owner.to_string(), none(), EVERY_TENANT.to_owned()],
            Self::Fleet(owner, Some(tenants)) => [owner.to_string(), none(), list(tenants)],
        }
    }

    /// Whether rows of this tenant may be written on behalf of a fleet.
    fn cover(&self, tenant: &Uuid) -> bool {
        match self {
            Self::Fleet(_, None) => true,
            Self::Fleet(_, Some(tenants)) => tenants.contains(tenant),
            Self::None | Self::One(_) | Self::Batch(_) => false,
        }
    }
}

/// `app.reads_for` of a service that may act for every tenant.
const EVERY_TENANT: &str = "every";

fn none() -> String {
    "{}".to_owned()
}

fn list(tenants: &[Uuid]) -> String {
    let tenants: Vec<_> = tenants.iter().map(Uuid::to_string).collect();
    format!("{{{}}}", tenants.join(","))
}

/// A transaction for its permits' tenants: row-level security shows it their rows and no others.
///
/// Made by the store alone, from permits. Dropped before its commit it is rolled back.
pub struct PgTx {
    connection: Option<Object>,
    tenants: Tenants,
    prepared: bool,
    state: State,
    failure: Option<Failure>,
    metrics: Arc<RoleMetrics>,
    /// Its part of the connections, for as long as it has one.
    place: Option<Place>,
    /// How it ends where its caller leaves.
    way: Arc<Way>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing was sent.
    New,
    /// Begun, and not ended; nothing is under way.
    Open,
    /// A statement or the commit is under way.
    Waiting,
    /// The server has not answered in time.
    Silent,
    /// Committed, or the commit failed.
    Ended,
}

impl PgTx {
    pub(super) fn new(
        connection: Object,
        tenants: Tenants,
        prepared: bool,
        place: Place,
        way: &Arc<Way>,
    ) -> Self {
        Self {
            connection: Some(connection),
            tenants,
            prepared,
            state: State::New,
            failure: None,
            metrics: Arc::clone(&way.metrics),
            place: Some(place),
            way: Arc::clone(way),
        }
    }

    /// Runs a statement and returns its rows. The first one goes out with `BEGIN` and the tenants in one round trip.
    ///
    /// Statements are not named, so that they work through a pooler that gives each transaction another connection, but
    /// where the configuration says that there is none.
    pub async fn query(
        &mut self,
        statement: &'static str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, PgError> {
        let mut rows = self.query_all(&[(statement, parameters)]).await?;
        Ok(rows.pop().unwrap_or_default())
    }

    /// Has a function of the owner's make partitions ahead and drop old ones, and says what it did; `statement` returns how many it
    /// made, dropped, and kept since somebody uses one.
    pub async fn keep_partitions(
        &mut self,
        statement: &'static str,
        of: &'static str,
    ) -> Result<(), PgError> {
        let rows = self.query(statement, &[]).await?;
        let row = rows.first().ok_or(PgError::Ended)?;
        let counts = || {
            Ok::<(i32, i32, i32), tokio_postgres::Error>((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
        };
        let (made, dropped, kept) = counts().map_err(PgError::of_row)?;
        if made > 0 || dropped > 0 {
            tracing::info!(made, dropped, of, "partitions made and dropped");
        }
        if kept > 0 {
            tracing::warn!(of, "an old partition is in use, and is dropped at a later try");
        }
        Ok(())
    }

    /// Makes a transaction that writes nothing wait at its commit for what it has seen: another's commit may be seen on the primary
    /// before the standby has it (where the wait for the standby was cut), and would be gone with the primary.
    pub async fn wait_for_what_was_seen(&mut self) -> Result<(), PgError> {
        self.query(SEEN, &[]).await.map(drop)
    }

    /// Runs statements one after the other in one round trip, and returns each one's rows. Where one fails, those after
    /// it are not run.
    pub async fn query_all(&mut self, statements: &[Statement<'_>]) -> Result<Vec<Vec<Row>>, PgError> {
        let before = std::mem::replace(&mut self.state, State::Waiting);
        let client = self.connection.as_ref().ok_or(PgError::Ended)?;
        let began = Instant::now();
        let begin_for = (before == State::New).then_some(&self.tenants);
        let sent = send(client, self.prepared, begin_for, statements);
        let Ok(ended) = tokio::time::timeout(ANSWER, sent).await else {
            // Dropped like this its connection is closed, and what it did is rolled back.
            self.state = State::Silent;
            self.failure = Some(Failure::Unavailable);
            return Err(PgError::Silent(Failure::Unavailable));
        };
        self.state = State::Open;
        let took = began.elapsed();
        if took > SLOW {
            self.metrics.slow_statements.inc();
            for (statement, _) in statements {
                // The text is a constant, its values are parameters: none is in it.
                let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                tracing::warn!(statement, took_ms, "a slow statement");
            }
        }
        ended.map_err(|error| {
            let error = PgError::of_statement(error);
            self.failure = Some(error.failure());
            error
        })
    }

    /// Lets a fleet's transaction insert for these of its tenants, as a batch does.
    pub async fn write_for(&mut self, tenants: &[Uuid]) -> Result<(), PgError> {
        if let Some(foreign) = tenants.iter().find(|tenant| !self.tenants.cover(tenant)) {
            tracing::error!(%foreign, "a defect: a transaction would write for a tenant that is not its own");
            return Err(PgError::Ended);
        }
        let tenants = list(tenants);
        self.query(SET_WRITES, &[(&tenants, Type::TEXT)]).await.map(drop)
    }

    /// Runs one statement of a fleet's transaction over everyone's rows of the tables that fleets read, in one round trip: for
    /// where in the log there is something, and nothing that a tenant said.
    pub(crate) async fn query_for_everyone(&mut self, statement: Statement<'_>) -> Result<Vec<Row>, PgError> {
        let [_, _, reads_for] = self.tenants.settings();
        match &self.tenants {
            Tenants::Fleet(_, Some(_)) => {}
            Tenants::Fleet(_, None) => return self.query(statement.0, statement.1).await,
            Tenants::None | Tenants::One(_) | Tenants::Batch(_) => {
                tracing::error!("a defect: a transaction that is no fleet's would look at everyone's rows");
                return Err(PgError::Ended);
            }
        }
        let (every, own): ([Parameter<'_>; 1], [Parameter<'_>; 1]) =
            ([(&EVERY_TENANT, Type::TEXT)], [(&reads_for, Type::TEXT)]);
        let mut rows = self.query_all(&[(SET_READS, &every), statement, (SET_READS, &own)]).await?;
        Ok(if rows.len() == 3 { rows.swap_remove(1) } else { Vec::new() })
    }

    /// What the last statement's failure means, where one failed.
    pub(super) fn failure(&self) -> Option<Failure> {
        self.failure
    }

    /// Whether the server has not answered the last statement.
    pub(super) fn is_silent(&self) -> bool {
        self.state == State::Silent
    }

    pub(super) async fn commit(mut self) -> Result<(), PgError> {
        if self.state != State::Open {
            return Ok(());
        }
        self.state = State::Waiting;
        let client = self.connection.as_ref().ok_or(PgError::Ended)?;
        // A commit that waits for a standby may happen yet.
        let Ok(committed) = tokio::time::timeout(ANSWER, client.batch_execute("COMMIT")).await else {
            self.state = State::Silent;
            return Err(PgError::Silent(Failure::Unknown));
        };
        self.state = State::Ended;
        committed.map_err(PgError::of_commit)
    }
}

/// Sends everything before it waits for the first answer: futures are polled, and so sent, in their order. What is to be
/// prepared, and is not yet, is prepared before that.
async fn send(
    client: &Client,
    prepared: bool,
    begin_for: Option<&Tenants>,
    statements: &[Statement<'_>],
) -> Result<Vec<Vec<Row>>, tokio_postgres::Error> {
    let mut named = Vec::new();
    let mut set_named = None;
    if prepared {
        for (statement, parameters) in statements {
            let types: Vec<Type> = parameters.iter().map(|(_, kind)| kind.clone()).collect();
            named.push(client.prepare_typed_cached(statement, &types).await?);
        }
        if begin_for.is_some() {
            set_named =
                Some(client.prepare_typed_cached(SET_TENANTS, &[Type::TEXT, Type::TEXT, Type::TEXT]).await?);
        }
    }
    let all = statements.iter().enumerate().map(|(at, statement)| ask(client, named.get(at), *statement));
    let Some(tenants) = begin_for else { return try_join_all(all).await };
    let [tenant, writes_for, reads_for] = tenants.settings();
    let tenants: [Parameter<'_>; 3] =
        [(&tenant, Type::TEXT), (&writes_for, Type::TEXT), (&reads_for, Type::TEXT)];
    // Where BEGIN fails, the tenants are set for no longer than their own statement, and those after it see no rows.
    let begin = client.batch_execute(BEGIN);
    let set_tenants = ask(client, set_named.as_ref(), (SET_TENANTS, &tenants));
    if let [statement] = statements {
        let first = ask(client, named.first(), *statement);
        return try_join3(begin, set_tenants, first).await.map(|((), _, rows)| vec![rows]);
    }
    try_join(begin, try_join(set_tenants, try_join_all(all))).await.map(|((), (_, rows))| rows)
}

/// Sends a statement at the first poll, by its name where it was prepared.
async fn ask(
    client: &Client,
    named: Option<&tokio_postgres::Statement>,
    (statement, parameters): Statement<'_>,
) -> Result<Vec<Row>, tokio_postgres::Error> {
    let Some(named) = named else { return client.query_typed(statement, parameters).await };
    let values: Vec<&(dyn ToSql + Sync)> = parameters.iter().map(|(value, _)| *value).collect();
    client.query(named, &values).await
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
            // The next user would wait for what nobody waits for any more.
            State::Waiting => self.way.leave(connection, self.place.take()),
            State::Silent => drop(Object::take(connection)),
        }
    }
}
