//! Who receives: consumers of a group that pull and acknowledge, and pollers of an outbox.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::contender::Target;
use super::database::Database;
use super::http::Connection;
use super::ledger::Ledger;
use super::message::post;

/// Of one pull, and of one poll.
const AT_ONCE: usize = 1000;
/// Between two polls of an outbox that has nothing: as often as Outrigger looks while events come.
const POLL: Duration = Duration::from_millis(10);
const JSON: &str = "application/json";
const OK: u16 = 200;
const NO_CONTENT: u16 = 204;
/// The poller's transaction: what it took is gone once it is handed on. One event a row.
const TAKE: &str = "DELETE FROM outbox WHERE id IN \
     (SELECT id FROM outbox ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED) RETURNING id, event_id, key, attributes, data";

#[derive(Deserialize)]
struct Pulled<'a> {
    #[serde(borrow)]
    deliveries: Vec<Delivered<'a>>,
}

#[derive(Deserialize)]
struct Delivered<'a> {
    receipt: &'a str,
    #[serde(borrow)]
    event: Event<'a>,
}

#[derive(Deserialize)]
struct Event<'a> {
    id: &'a str,
    partitionkey: &'a str,
}

/// A group that begins with what is published from now on.
///
/// # Errors
/// Outrigger refused it.
pub(crate) async fn at_head(target: &Target, group: &str) -> Result<()> {
    let mut connection = Connection::open(target.api).await?;
    let body = format!(r#"{{"group":"{group}","to":"latest"}}"#);
    connection.call(&request(target, target.api, "seek", &body), NO_CONTENT).await.map(drop)
}

/// Starts `count` consumers of a group.
pub(crate) fn pull(
    target: &Target,
    group: &str,
    count: usize,
    ledger: &Arc<Ledger>,
    over: &CancellationToken,
) -> JoinSet<Result<()>> {
    let mut running = JoinSet::new();
    for _ in 0..count {
        let (target, group) = (target.clone(), group.to_owned());
        let (ledger, over) = (Arc::clone(ledger), over.clone());
        running.spawn(async move {
            let body = format!(r#"{{"group":"{group}","max":{AT_ONCE},"wait_ms":200}}"#);
            let pull = request(&target, target.api, "pull", &body);
            let mut connection = Connection::open(target.api).await?;
            while !over.is_cancelled() {
                let reply = connection.call(&pull, OK).await.context("pull")?;
                let pulled: Pulled<'_> = serde_json::from_slice(reply).context("what a pull brought")?;
                if pulled.deliveries.is_empty() {
                    continue;
                }
                let mut receipts = String::with_capacity(pulled.deliveries.len() * 32);
                for one in &pulled.deliveries {
                    ledger.received(number(one.event.id)?, number(&one.event.partitionkey[1..])?);
                    let comma = if receipts.is_empty() { "" } else { "," };
                    receipts.push_str(&format!("{comma}\"{}\"", one.receipt));
                }
                let body = format!(r#"{{"group":"{group}","receipts":[{receipts}]}}"#);
                connection.call(&request(&target, target.api, "ack", &body), OK).await.context("ack")?;
            }
            Ok(())
        });
    }
    running
}

/// Starts `count` pollers of the outbox.
///
/// # Errors
/// No connection.
pub(crate) async fn poll(
    database: &Database,
    count: usize,
    ledger: &Arc<Ledger>,
    over: &CancellationToken,
) -> Result<JoinSet<Result<()>>> {
    let mut running = JoinSet::new();
    for _ in 0..count {
        let client = database.connect().await?;
        let take = client.prepare(TAKE).await?;
        let (ledger, over) = (Arc::clone(ledger), over.clone());
        running.spawn(async move {
            while !over.is_cancelled() {
                let mut rows = client.query(&take, &[]).await?;
                rows.sort_unstable_by_key(|row| row.get::<_, i64>(0));
                for row in &rows {
                    let (id, key): (i64, &str) = (row.try_get(1)?, row.try_get(2)?);
                    ledger.received(u64::try_from(id)?, number(&key[1..])?);
                }
                if rows.is_empty() {
                    tokio::time::sleep(POLL).await;
                }
            }
            Ok(())
        });
    }
    Ok(running)
}

fn request(target: &Target, api: SocketAddr, verb: &str, body: &str) -> Vec<u8> {
    let path = format!("/v1/events/{}:{verb}", target.topic);
    post(&api.to_string(), &path, &target.token, JSON, body)
}

fn number(text: &str) -> Result<u64> {
    text.parse().with_context(|| format!("{text:?} is no number of the load test's"))
}
