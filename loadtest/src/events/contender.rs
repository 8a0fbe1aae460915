//! Who publishes, and how: through Outrigger, or directly into PostgreSQL.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};
use uuid::Uuid;

use super::database::Database;
use super::http::Connection;
use super::kafka::{BareProducer, Brokers};
use super::load::Calls;
use super::message::{Request, attributes, data, key};

/// Callers in one transaction of the client-side batcher at the most; as in Outrigger.
const MAX_CALLERS: usize = 256;
const ACCEPTED: u16 = 202;

const INSERT: &str = "INSERT INTO direct_events (id, accepted_at, tenant_id, topic, lane, key, type, attributes, form, data) \
     SELECT nextval('direct_events_id_seq'), now(), tenant_id, topic, lane, key, type, attributes, form, data \
     FROM unnest($1::uuid[], $2::text[], $3::smallint[], $4::text[], $5::text[], $6::bytea[], $7::smallint[], $8::bytea[]) \
         AS input (tenant_id, topic, lane, key, type, attributes, form, data)";
const INTO_OUTBOX: &str = "INSERT INTO outbox (tenant_id, topic, key, type, event_id, attributes, data) \
     VALUES ($1, $2, $3, $4, $5, $6, $7)";

/// A way to publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Each caller its own connection and transaction: one UNNEST insert.
    Direct,
    /// All callers on one connection: what waits goes into the next insert.
    DirectBatched,
    /// Each caller its own connection and transaction: one row into an outbox.
    Outbox,
    /// Through Outrigger, ids of the client's: deduplicated.
    Outrigger,
    /// Through Outrigger, plain JSON without ids.
    OutriggerPlain,
    /// Through the other build of Outrigger.
    Before,
    /// All callers on one transactional producer of Kafka.
    Kafka,
    /// Through Outrigger and its relay into Kafka.
    Relay,
}

impl Way {
    /// As in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::DirectBatched => "direct-batched",
            Self::Outbox => "outbox",
            Self::Outrigger => "outrigger",
            Self::OutriggerPlain => "outrigger-plain",
            Self::Before => "before",
            Self::Kafka => "bare producer",
            Self::Relay => "outrigger relay",
        }
    }
}

/// What a caller needs to know.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) database: Database,
    pub(crate) postmaster: Option<u32>,
    pub(crate) api: SocketAddr,
    pub(crate) before: Option<SocketAddr>,
    pub(crate) token: String,
    pub(crate) tenant: Uuid,
    pub(crate) topic: String,
    pub(crate) brokers: Brokers,
}

/// One caller, with one call under way at the most.
#[derive(Debug)]
pub(crate) struct Caller {
    number: u64,
    events: u64,
    by: By,
}

#[derive(Debug)]
enum By {
    Http(Box<(Connection, Request)>),
    Rows(Box<Rows>),
    Batcher(Batcher),
    Outbox(Box<Rows>),
    Kafka(BareProducer),
}

impl Caller {
    /// Callers who publish `events` events a call.
    ///
    /// # Errors
    /// No connection.
    pub(crate) async fn all(target: &Target, way: Way, callers: u64, events: u64) -> Result<Vec<Self>> {
        let batcher = match way {
            Way::DirectBatched => Some(Batcher::start(Rows::new(target, INSERT).await?)),
            _ => None,
        };
        let producer = match way {
            Way::Kafka => Some(BareProducer::start(&target.brokers)?),
            _ => None,
        };
        let mut all = Vec::new();
        for number in 0..callers {
            let by = match way {
                Way::Kafka => By::Kafka(producer.clone().context("a producer")?),
                Way::Direct => By::Rows(Box::new(Rows::new(target, INSERT).await?)),
                Way::DirectBatched => By::Batcher(batcher.clone().context("a batcher")?),
                Way::Outbox => By::Outbox(Box::new(Rows::new(target, INTO_OUTBOX).await?)),
                Way::Outrigger | Way::OutriggerPlain | Way::Before | Way::Relay => {
                    let address = match way {
                        Way::Before => target.before.context("--before is not given")?,
                        _ => target.api,
                    };
                    let (host, topic, token) = (address.to_string(), &target.topic, &target.token);
                    let request = match way {
                        Way::OutriggerPlain => Request::plain(&host, topic, token),
                        _ => Request::with_ids(&host, topic, token, usize::try_from(events)?),
                    };
                    By::Http(Box::new((Connection::open(address).await?, request)))
                }
            };
            all.push(Self { number, events, by });
        }
        Ok(all)
    }

    /// Events of a call.
    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    /// Publishes the events with the ids from `first` on; returns once they are durable.
    ///
    /// # Errors
    /// They were not accepted.
    pub(crate) async fn publish(&mut self, first: u64) -> Result<()> {
        let ids = first..first + self.events;
        match &mut self.by {
            By::Http(http) => {
                let (connection, request) = &mut **http;
                connection.call(request.from(self.number, first), ACCEPTED).await.map(drop)
            }
            By::Rows(rows) => {
                let caller = self.number;
                rows.insert(ids.map(|id| (id, key(caller, id)))).await
            }
            By::Kafka(producer) => producer.publish(self.number, ids.collect()).await,
            By::Outbox(rows) => rows.insert_one(first, key(self.number, first)).await,
            By::Batcher(batcher) => {
                let caller = self.number;
                batcher.insert(ids.map(|id| (id, key(caller, id))).collect()).await
            }
        }
    }
}

impl Calls for Caller {
    fn items(&self) -> u64 {
        self.events
    }

    async fn call(&mut self, first: u64) -> Result<()> {
        self.publish(first).await
    }
}

/// Inserts on one connection, with a prepared statement.
#[derive(Debug)]
struct Rows {
    client: Client,
    insert: Statement,
    tenant: Uuid,
    topic: String,
    data: String,
}

impl Rows {
    async fn new(target: &Target, statement: &str) -> Result<Self> {
        let client = target.database.connect().await?;
        let insert = client.prepare(statement).await?;
        Ok(Self { client, insert, tenant: target.tenant, topic: target.topic.clone(), data: data() })
    }

    async fn insert(&self, events: impl Iterator<Item = (u64, u64)>) -> Result<()> {
        let tenant = self.tenant.to_string();
        let (mut keys, mut own) = (Vec::new(), Vec::new());
        for (id, key) in events {
            keys.push(format!("k{key:07}"));
            own.push(attributes(&tenant, id, key).into_bytes());
        }
        let events = keys.len();
        let all: [&(dyn ToSql + Sync); 8] = [
            &vec![self.tenant; events],
            &vec![self.topic.as_str(); events],
            &vec![0_i16; events],
            &keys,
            &vec!["lead.made"; events],
            &own,
            &vec![1_i16; events],
            &vec![self.data.as_bytes(); events],
        ];
        self.client.execute(&self.insert, &all).await?;
        Ok(())
    }

    async fn insert_one(&self, id: u64, key: u64) -> Result<()> {
        let (own, key_text) = (attributes(&self.tenant.to_string(), id, key), format!("k{key:07}"));
        let id = i64::try_from(id)?;
        let all: [&(dyn ToSql + Sync); 7] =
            [&self.tenant, &self.topic, &key_text, &"lead.made", &id, &own.as_bytes(), &self.data.as_bytes()];
        self.client.execute(&self.insert, &all).await?;
        Ok(())
    }
}

type Job = (Vec<(u64, u64)>, oneshot::Sender<Result<(), Arc<anyhow::Error>>>);

/// What an application that batches by itself would have: a queue before one connection.
#[derive(Clone, Debug)]
struct Batcher(mpsc::Sender<Job>);

impl Batcher {
    fn start(rows: Rows) -> Self {
        let (jobs, mut waiting) = mpsc::channel::<Job>(8192);
        tokio::spawn(async move {
            let mut taken = Vec::new();
            while waiting.recv_many(&mut taken, MAX_CALLERS).await > 0 {
                let events = taken.iter().flat_map(|(events, _)| events.iter().copied());
                let done = rows.insert(events).await.map_err(Arc::new);
                for (_, answer) in taken.drain(..) {
                    // A caller that was ended at the end of its turn waits no more.
                    drop(answer.send(done.clone()));
                }
            }
        });
        Self(jobs)
    }

    async fn insert(&self, events: Vec<(u64, u64)>) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        self.0.send((events, answer)).await.map_err(|_| anyhow!("the batcher ended"))?;
        answered.await.context("the batcher ended")?.map_err(|error| anyhow!("{error:#}"))
    }
}
