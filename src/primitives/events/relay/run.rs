//! Drives a shard for as long as its lease is held.

mod release;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::kafka::{Egress, TakeoverError};
use super::lanes::{Lanes, MAX_PARKED_KEYS_OF_TENANT, Numbered, Plan, Stop};
use super::metrics::{RelayMetrics, ShardMetrics};
use super::record::record;
use super::{LogError, LogReader, ParkedRow, Row, Shard};
use crate::pools::backoff::Backoff;
use crate::pools::kafka::{Kafka, KafkaFailure, Record, TransactionFailure, Verdict};
use crate::primitives::events::Position;

/// Rows of a transaction at most.
pub const MAX_ROWS: usize = 5_000;

/// Why a relay no longer delivers a shard.
#[derive(Debug, thiserror::Error)]
pub enum ShardEnd {
    /// The lease was lost or given back. Whoever holds it next goes on at the committed cursor.
    #[error("the lease is gone")]
    LeaseLost,
    /// Another relay took the shard over in Kafka: this one's lease must have run out. It is given up at once.
    #[error("another relay has taken the shard over: {0}")]
    Fenced(KafkaFailure),
    /// It must not go on before an operator acted.
    #[error(transparent)]
    Stopped(#[from] Stop),
    /// Kafka needs an operator; try again in a while, since the remedy is not seen from here.
    #[error(transparent)]
    Failed(KafkaFailure),
    /// The producer's thread could not be started.
    #[error("the producer's thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Delivers the shard's events until `lease_lost` is cancelled or something ends it. What is in the middle then is
/// decided by Kafka: committed, or aborted by the next one's takeover.
pub async fn run_shard(
    reader: &dyn LogReader,
    kafka: Arc<Kafka>,
    shard: Shard,
    lease_lost: &CancellationToken,
    metrics: &RelayMetrics,
) -> ShardEnd {
    let config = kafka.config();
    let (prefix, interval) = (config.prefix.clone(), Duration::from_millis(config.transaction_ms));
    let egress = match Egress::start(kafka, shard) {
        Ok(egress) => egress,
        Err(error) => return error.into(),
    };
    let mut run = Run {
        reader,
        egress,
        shard,
        prefix,
        interval,
        metrics: metrics.of(shard),
        limit: MAX_ROWS,
        release_limit: release::MAX_RELEASED,
        look_for_orders: Instant::now(),
        backoff: Backoff::default(),
        reasons: BTreeMap::new(),
    };
    let end = tokio::select! {
        () = lease_lost.cancelled() => ShardEnd::LeaseLost,
        end = run.drive() => end,
    };
    tracing::info!(shard = shard.number(), %end, "relay ended");
    end
}

struct Run<'a> {
    reader: &'a dyn LogReader,
    egress: Egress,
    shard: Shard,
    prefix: String,
    interval: Duration,
    metrics: ShardMetrics,
    /// Rows of the next transaction: halved to find the one that Kafka refuses.
    limit: usize,
    /// The same of the next transaction with parked rows.
    release_limit: usize,
    look_for_orders: Instant,
    backoff: Backoff,
    /// Why rows were refused that are not yet behind the cursor.
    reasons: BTreeMap<Position, String>,
}

/// What to do after a transaction.
enum Next {
    ReadOn,
    TakeOver,
}

impl Run<'_> {
    async fn drive(&mut self) -> ShardEnd {
        loop {
            let delivered = match self.take_over().await {
                Ok(lanes) => self.deliver(lanes).await,
                Err(end) => Err(end),
            };
            if let Err(end) = delivered {
                return end;
            }
        }
    }

    async fn take_over(&mut self) -> Result<Lanes, ShardEnd> {
        let cursor = loop {
            match self.egress.take_over().await {
                Ok(cursor) => break cursor,
                Err(TakeoverError::Cursor(error)) => return Err(Stop::Cursor(error).into()),
                Err(TakeoverError::Kafka(failure)) => self.wait_or_end(failure).await?,
            }
        };
        let (reader, shard) = (self.reader, self.shard);
        // After Kafka fenced the predecessor, as `LogReader` says.
        let parked = loop {
            if let Some(answer) = self.settled(reader.parked(shard).await).await? {
                break answer;
            }
        };
        let position = cursor.as_ref().map_or(Position::START, |cursor| cursor.position);
        let origin = loop {
            if let Some(answer) = self.settled(reader.origin(position).await).await? {
                break answer;
            }
        };
        let mut lanes = Lanes::take_over(shard, &origin, cursor, parked)?;
        self.settle_released(&mut lanes).await?;
        tracing::info!(shard = shard.number(), position = position.number(), "shard taken over");
        self.backoff.reset();
        self.reasons.clear();
        self.metrics.parked_keys.set(i64::try_from(lanes.parked_keys()).unwrap_or(i64::MAX));
        Ok(lanes)
    }

    /// Delivers until the shard has to be taken over anew.
    async fn deliver(&mut self, mut lanes: Lanes) -> Result<(), ShardEnd> {
        loop {
            let begun = Instant::now();
            if let Next::TakeOver = self.orders(&mut lanes).await? {
                return Ok(());
            }
            let batch = match self.reader.read(self.shard, lanes.position(), self.limit).await {
                Ok(batch) => batch,
                failed => {
                    self.settled(failed).await?;
                    self.recheck(&lanes).await?;
                    continue;
                }
            };
            let oldest = batch.rows.first().map(|row| row.event.accepted_ms);
            self.metrics.seen(batch.rows.len(), oldest, batch.behind);
            let more = batch.more;
            if batch.rows.is_empty() {
                // The store answers, and Kafka is asked nothing.
                self.backoff.reset();
            }
            if !batch.rows.is_empty()
                && matches!(self.transaction(&mut lanes, batch.rows).await?, Next::TakeOver)
            {
                return Ok(());
            }
            if !more {
                sleep_until(begun + self.interval).await;
            }
        }
    }

    /// The store was away: it may have come back as an earlier one.
    async fn recheck(&mut self, lanes: &Lanes) -> Result<(), ShardEnd> {
        let (reader, position) = (self.reader, lanes.position());
        let origin = loop {
            if let Some(answer) = self.settled(reader.origin(position).await).await? {
                break answer;
            }
        };
        Ok(lanes.recheck(&origin)?)
    }

    async fn transaction(&mut self, lanes: &mut Lanes, rows: Vec<Row>) -> Result<Next, ShardEnd> {
        let Plan { sends, parks, cursor } = lanes.plan(rows)?;
        let records: Result<Vec<Record>, _> =
            sends.iter().map(|send| record(&self.prefix, send).map_err(|reason| (send, reason))).collect();
        let records = match records {
            Ok(records) => records,
            Err((send, reason)) => {
                lanes.aborted();
                self.refuse(lanes, &send.row, reason)?;
                return Ok(Next::ReadOn);
            }
        };
        let parks = self.with_reasons(lanes, parks);
        if !parks.is_empty() {
            let (reader, shard) = (self.reader, self.shard);
            while self.settled(reader.park(shard, &parks).await).await?.is_none() {}
        }
        match self.egress.deliver(records, &cursor).await {
            Ok(()) => {
                lanes.committed();
                let accepted: Vec<i64> = sends.iter().map(|send| send.row.event.accepted_ms).collect();
                self.metrics.committed(&accepted, parks.len());
                self.reasons.retain(|position, _| *position > cursor.position);
                self.limit = self.limit.saturating_mul(2).min(MAX_ROWS);
                self.backoff.reset();
                Ok(Next::ReadOn)
            }
            Err(failure) => self.failed(lanes, &sends, failure).await,
        }
    }

    async fn failed(
        &mut self,
        lanes: &mut Lanes,
        sends: &[Numbered],
        failure: TransactionFailure,
    ) -> Result<Next, ShardEnd> {
        match failure {
            TransactionFailure::Aborted(failure) => {
                self.metrics.aborted.inc();
                lanes.aborted();
                self.wait_or_end(failure).await?;
                Ok(Next::ReadOn)
            }
            TransactionFailure::Unknown(failure) => {
                self.metrics.unknown.inc();
                self.wait_or_end(failure).await?;
                Ok(Next::TakeOver)
            }
            TransactionFailure::Refused { records, reason } => {
                self.metrics.refused.inc();
                lanes.aborted();
                match (sends, &records[..]) {
                    // It was alone, or in a batch of its own.
                    ([alone], _) => self.refuse(lanes, &alone.row, reason)?,
                    (_, [one]) if sends.get(*one).is_some() => {
                        self.refuse(lanes, &sends[*one].row, reason)?;
                    }
                    // The cursor's own record.
                    ([], _) | (_, [_]) => {
                        let text = format!("the cursor's record is refused: {reason}");
                        return Err(ShardEnd::Failed(KafkaFailure { verdict: Verdict::Fatal, text }));
                    }
                    _ => self.limit = (sends.len() / 2).max(1),
                }
                Ok(Next::ReadOn)
            }
        }
    }

    fn refuse(&mut self, lanes: &mut Lanes, row: &Row, reason: String) -> Result<(), ShardEnd> {
        let position = row.event.position;
        tracing::error!(
            shard = self.shard.number(),
            topic = &*row.topic,
            lane = row.lane,
            position = position.number(),
            reason,
            "kafka refuses an event: it and its key's later ones are parked"
        );
        lanes.refuse(row)?;
        if lanes.has_parked_tenant(&row.event.tenant) {
            let (shard, tenant) = (self.shard.number(), row.event.tenant);
            tracing::error!(shard, %tenant, "kafka refuses too many keys of a tenant: all of it is parked");
        }
        self.reasons.insert(position, reason);
        self.metrics.parked_keys.set(i64::try_from(lanes.parked_keys()).unwrap_or(i64::MAX));
        Ok(())
    }

    fn with_reasons(&self, lanes: &Lanes, rows: Vec<Row>) -> Vec<ParkedRow> {
        let reason = |row: &Row| match self.reasons.get(&row.event.position) {
            Some(said) => said.clone(),
            None if lanes.has_parked_tenant(&row.event.tenant) => {
                format!("more than {MAX_PARKED_KEYS_OF_TENANT} keys of its tenant are parked in the shard")
            }
            None => "an earlier event of its key is parked".to_owned(),
        };
        rows.into_iter().map(|row| ParkedRow { reason: reason(&row), row }).collect()
    }

    /// Waits where trying again helps.
    async fn wait_or_end(&mut self, failure: KafkaFailure) -> Result<(), ShardEnd> {
        match failure.verdict {
            Verdict::Fenced => Err(ShardEnd::Fenced(failure)),
            Verdict::Fatal => Err(ShardEnd::Failed(failure)),
            Verdict::Again | Verdict::RefusedEvent => {
                tracing::warn!(shard = self.shard.number(), %failure, "kafka does not take events; trying again");
                sleep(self.backoff.next()).await;
                Ok(())
            }
        }
    }

    /// The store's answer; none, after a wait, where it has to be asked again.
    async fn settled<T>(&mut self, answer: Result<T, LogError>) -> Result<Option<T>, ShardEnd> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(LogError::LeaseLost) => Err(ShardEnd::LeaseLost),
            Err(LogError::Unavailable(error)) => {
                tracing::warn!(shard = self.shard.number(), error, "the store does not answer");
                sleep(self.backoff.next()).await;
                Ok(None)
            }
        }
    }
}
