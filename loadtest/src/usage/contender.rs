//! Who records, and how: through Outrigger, or directly into PostgreSQL without deduplication and sums.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures_util::SinkExt as _;
use tokio_postgres::{Client, Statement};
use uuid::Uuid;

use crate::events::database::Database;
use crate::events::http::Connection;
use crate::events::load::Calls;
use crate::events::message::post;

const ACCEPTED: u16 = 202;
const KEY_DIGITS: usize = 12;
const METRIC_DIGITS: usize = 6;
const COPY: &str = "COPY direct_usage (time, tenant_id, metric, value, tags) FROM STDIN";
const UNNEST: &str = "INSERT INTO direct_usage (time, tenant_id, metric, value, tags) \
     SELECT time, tenant_id, metric, value::numeric, tags::jsonb \
     FROM unnest($1::timestamptz[], $2::uuid[], $3::text[], $4::text[], $5::text[]) AS input (time, tenant_id, metric, value, tags)";
const TAGS: &str = r#"{"endpoint":"/leads"}"#;

/// A way to record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Each caller its own connection: one COPY a batch.
    Copy,
    /// Each caller its own connection and transaction: one UNNEST insert a batch.
    Unnest,
    /// Through Outrigger.
    Outrigger,
    /// Through the other build of Outrigger.
    Before,
}

impl Way {
    /// As in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Unnest => "unnest",
            Self::Outrigger => "outrigger",
            Self::Before => "before",
        }
    }
}

/// What a caller needs to know.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) database: Database,
    pub(crate) api: SocketAddr,
    pub(crate) before: Option<SocketAddr>,
    pub(crate) token: String,
    pub(crate) tenant: Uuid,
    /// `api_calls` alone, or so many.
    pub(crate) metrics: u64,
}

/// One caller, with one call under way at the most.
pub(crate) struct Caller {
    records: u64,
    by: By,
}

enum By {
    Http(Box<(Connection, Request)>),
    Copy(Client, Uuid),
    Unnest(Client, Statement, Uuid),
}

impl Caller {
    /// Callers who record `records` records a call.
    ///
    /// # Errors
    /// No connection.
    pub(crate) async fn all(target: &Target, way: Way, callers: u64, records: u64) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for _ in 0..callers {
            let by = match way {
                Way::Copy => By::Copy(target.database.connect().await?, target.tenant),
                Way::Unnest => {
                    let client = target.database.connect().await?;
                    let insert = client.prepare(UNNEST).await?;
                    By::Unnest(client, insert, target.tenant)
                }
                Way::Outrigger | Way::Before => {
                    let address = match way {
                        Way::Before => target.before.context("--before is not given")?,
                        _ => target.api,
                    };
                    let request = Request::new(&address.to_string(), target, records);
                    By::Http(Box::new((Connection::open(address).await?, request)))
                }
            };
            all.push(Self { records, by });
        }
        Ok(all)
    }
}

impl Calls for Caller {
    fn items(&self) -> u64 {
        self.records
    }

    async fn call(&mut self, first: u64) -> Result<()> {
        match &mut self.by {
            By::Http(http) => {
                let (connection, request) = &mut **http;
                connection.call(request.from(first), ACCEPTED).await.map(drop)
            }
            By::Copy(client, tenant) => {
                let mut text = String::with_capacity(100 * usize::try_from(self.records)?);
                for _ in 0..self.records {
                    // Writing to a String cannot fail.
                    writeln!(text, "now\t{tenant}\tapi_calls\t1.5\t{TAGS}").ok();
                }
                let sink = client.copy_in::<_, Bytes>(COPY).await?;
                tokio::pin!(sink);
                sink.send(Bytes::from(text)).await?;
                sink.finish().await?;
                Ok(())
            }
            By::Unnest(client, insert, tenant) => {
                let records = usize::try_from(self.records)?;
                let times = vec![SystemTime::now(); records];
                let (metrics, values, tags) =
                    (vec!["api_calls"; records], vec!["1.5"; records], vec![TAGS; records]);
                client
                    .execute(&*insert, &[&times, &vec![*tenant; records], &metrics, &values, &tags])
                    .await?;
                Ok(())
            }
        }
    }
}

/// A request over HTTP, whose keys and metrics are changed in place.
struct Request {
    bytes: Vec<u8>,
    metrics: u64,
    /// Where each record's key begins, and its metric's number where it has one.
    places: Vec<(usize, Option<usize>)>,
}

impl Request {
    fn new(host: &str, target: &Target, records: u64) -> Self {
        let (key_mark, metric_mark) = ("#".repeat(KEY_DIGITS), "%".repeat(METRIC_DIGITS));
        let metric = if target.metrics > 1 { format!("m{metric_mark}") } else { "api_calls".to_owned() };
        let time = humantime_of(SystemTime::now());
        let one = format!(
            r#"{{"metric":"{metric}","value":1.5,"time":"{time}","idempotency_key":"k-{key_mark}","tags":{TAGS}}}"#
        );
        let all = vec![one; usize::try_from(records).unwrap_or(1)].join(",");
        let bytes =
            post(host, "/v1/usage", &target.token, "application/json", &format!(r#"{{"records":[{all}]}}"#));
        let text = String::from_utf8_lossy(&bytes);
        let keys = text.match_indices(&key_mark).map(|(at, _)| at);
        let mut metrics = text.match_indices(&metric_mark).map(|(at, _)| at);
        let places = keys.map(|key| (key, metrics.next())).collect();
        Self { bytes, metrics: target.metrics, places }
    }

    fn from(&mut self, first: u64) -> &[u8] {
        for ((key, metric), id) in self.places.iter().zip(first..) {
            crate::events::message::write_digits(&mut self.bytes[*key..key + KEY_DIGITS], id);
            if let Some(metric) = metric {
                let number = id % self.metrics;
                crate::events::message::write_digits(
                    &mut self.bytes[*metric..metric + METRIC_DIGITS],
                    number,
                );
            }
        }
        &self.bytes
    }
}

/// RFC 3339, in whole seconds.
fn humantime_of(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    jiff::Timestamp::from_second(i64::try_from(seconds).unwrap_or(0)).unwrap_or_default().to_string()
}
