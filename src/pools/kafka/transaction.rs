//! One transaction after the other, by one producer. Everything here blocks.

use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use rdkafka::ClientContext;
use rdkafka::config::{FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};

use super::classify::{failure, verdict};
use super::settings::{Kafka, Log, SOCKET_TIMEOUT_MS};
use super::{KafkaFailure, Verdict};

/// The largest record that is sent at all, in bytes; brokers have their own limit, 1 MiB unless set.
const MAX_RECORD_BYTES: &str = "67108864";
/// Records that wait to be sent, of one transaction.
const MAX_QUEUED_RECORDS: &str = "100000";
/// Beside [`MAX_QUEUED_RECORDS`], in KiB.
const MAX_QUEUED_KIB: &str = "131072";
/// A batch for a partition is closed at so many bytes. It must stay below the least `max.message.bytes` of a topic: the
/// broker refuses a batch as a whole, and one that holds a single record tells which one it refuses.
const BATCH_BYTES: &str = "524288";
/// How long to wait when the queue is full.
const FULL_WAIT: Duration = Duration::from_millis(5);

/// How long one attempt to abort may take. Each takes what is queued out of the queue; a batch that comes back for a
/// retry after that would stay there until its time is over (measured: 15 s), and the next attempt takes it out.
const ABORT_SLICE: Duration = Duration::from_millis(250);

/// What goes to Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The key.
    pub key: Vec<u8>,
    /// The value; none is Kafka's null.
    pub value: Option<Bytes>,
    /// Names and values.
    pub headers: Vec<(String, Bytes)>,
}

/// Why a transaction was not committed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransactionFailure {
    /// Nothing of it can be seen, for certain. The producer goes on.
    #[error("aborted: {0}")]
    Aborted(KafkaFailure),
    /// As [`Aborted`](Self::Aborted), since the broker refuses records for themselves.
    #[error("refused: {reason}")]
    Refused {
        /// Which of the records, by their index; with more than one, each may be innocent.
        records: Vec<usize>,
        /// What the broker said.
        reason: String,
    },
    /// It may be committed or not: begin as after a takeover.
    #[error("not known: {0}")]
    Unknown(KafkaFailure),
}

impl TransactionFailure {
    /// For one whose records are nobody's event: what to do about it.
    pub(super) fn into_failure(self) -> KafkaFailure {
        match self {
            Self::Aborted(failure) | Self::Unknown(failure) => failure,
            Self::Refused { reason, .. } => KafkaFailure { verdict: Verdict::Fatal, text: reason },
        }
    }
}

/// What became of the records of the open transaction.
#[derive(Debug, Default)]
struct Deliveries {
    /// Sent, and not yet acknowledged or failed.
    outstanding: usize,
    refused: Vec<usize>,
    first: Option<RDKafkaErrorCode>,
}

#[derive(Default)]
struct Context {
    log: Log,
    deliveries: Mutex<Deliveries>,
    /// The last one was acknowledged, or the first one failed.
    settled: Condvar,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.log.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.log.error(error, reason);
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, index: usize) {
        let mut deliveries = self.deliveries.lock();
        deliveries.outstanding = deliveries.outstanding.saturating_sub(1);
        if deliveries.outstanding == 0 {
            self.settled.notify_all();
        }
        let Err((error, _)) = result else { return };
        let Some(code) = error.rdkafka_error_code() else { return };
        if verdict(code) == Verdict::RefusedEvent {
            deliveries.refused.push(index);
        }
        // What an abort takes out of the queue says nothing.
        if !matches!(code, RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight) {
            deliveries.first.get_or_insert(code);
            self.settled.notify_all();
        }
    }
}

/// A producer that has fenced its predecessors.
pub(super) struct Transactions {
    producer: ThreadedProducer<Context>,
    timeout: Duration,
}

impl Transactions {
    /// Makes the producer and fences whoever used the id before; what that one had open is aborted when this returns.
    pub(super) fn take_over(kafka: &Kafka, id: &str) -> Result<Self, KafkaFailure> {
        let transactions = Self::unconnected(kafka, id)?;
        transactions
            .producer
            .init_transactions(transactions.timeout)
            .map_err(|error| transactions.failure("taking the shard over", &error))?;
        Ok(transactions)
    }

    fn unconnected(kafka: &Kafka, id: &str) -> Result<Self, KafkaFailure> {
        let timeout_ms = kafka.config.timeout_ms;
        let mut settings = kafka.settings()?;
        settings
            .set("transactional.id", id)
            .set("transaction.timeout.ms", timeout_ms.to_string())
            // Implied by the id, and said here since everything stands on it. Gaps need no guarantee of their own: a
            // record that fails makes its whole transaction fail.
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "1")
            // None of these may be above the transaction's.
            .set("message.timeout.ms", timeout_ms.to_string())
            .set("request.timeout.ms", (timeout_ms / 2).to_string())
            .set("socket.timeout.ms", timeout_ms.min(SOCKET_TIMEOUT_MS).to_string())
            .set("message.max.bytes", MAX_RECORD_BYTES)
            .set("batch.size", BATCH_BYTES)
            .set("queue.buffering.max.messages", MAX_QUEUED_RECORDS)
            .set("queue.buffering.max.kbytes", MAX_QUEUED_KIB);
        let producer = ThreadedProducer::from_config_and_context(&settings, Context::default())
            .map_err(|error| failure("making a producer", &error))?;
        Ok(Self { producer, timeout: Duration::from_millis(timeout_ms) })
    }

    /// All of the records, in this order, and the cursor where there is one: or none of them.
    pub(super) fn deliver(
        &self,
        records: &[Record],
        cursor: Option<&Record>,
    ) -> Result<(), TransactionFailure> {
        let context = self.producer.client().context();
        context.log.forget();
        let outstanding = records.len() + usize::from(cursor.is_some());
        *context.deliveries.lock() = Deliveries { outstanding, ..Deliveries::default() };
        self.producer
            .begin_transaction()
            .map_err(|error| TransactionFailure::Unknown(self.failure("beginning", &error)))?;
        if let Err((index, failed)) = self.send_all(records, cursor) {
            if failed.verdict == Verdict::RefusedEvent {
                context.deliveries.lock().refused.push(index);
            }
            return Err(self.abort(failed));
        }
        self.acknowledged().map_err(|failed| self.abort(failed))?;
        let Err(error) = self.producer.commit_transaction(self.timeout) else { return Ok(()) };
        let failed = self.failure("committing", &error);
        match &error {
            // The records were not all acknowledged in time, and no commit was asked for.
            KafkaError::Flush(_) => Err(self.abort(failed)),
            KafkaError::Transaction(error) if error.txn_requires_abort() => Err(self.abort(failed)),
            _ => Err(TransactionFailure::Unknown(failed)),
        }
    }

    /// Waits for the brokers. Once a record has failed the others are not waited for: nothing of a transaction that
    /// must be aborted is sent any more, and what waits in the queue would stay there until its time is over.
    fn acknowledged(&self) -> Result<(), KafkaFailure> {
        let deadline = Instant::now() + self.timeout;
        let context = self.producer.client().context();
        let mut deliveries = context.deliveries.lock();
        let mut is_late = false;
        while deliveries.outstanding > 0 && deliveries.first.is_none() && !is_late {
            is_late = context.settled.wait_until(&mut deliveries, deadline).timed_out();
        }
        let text = match deliveries.first {
            None if deliveries.outstanding == 0 => return Ok(()),
            None => "sending: not acknowledged in time".to_owned(),
            Some(code) => format!("sending: {code}"),
        };
        Err(context.log.explain(KafkaFailure { verdict: Verdict::Again, text }))
    }

    fn send_all(&self, records: &[Record], cursor: Option<&Record>) -> Result<(), (usize, KafkaFailure)> {
        let deadline = Instant::now() + self.timeout;
        for (index, record) in records.iter().chain(cursor).enumerate() {
            self.send(record, index, deadline).map_err(|error| (index, self.failure("sending", &error)))?;
        }
        Ok(())
    }

    fn send(&self, record: &Record, index: usize, deadline: Instant) -> Result<(), KafkaError> {
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for (name, value) in &record.headers {
            headers = headers.insert(Header { key: name, value: Some(&value[..]) });
        }
        let mut message: BaseRecord<'_, [u8], [u8], usize> =
            BaseRecord::with_opaque_to(&record.topic, index).partition(record.partition).key(&record.key);
        message.payload = record.value.as_deref();
        message.headers = Some(headers);
        loop {
            match self.producer.send(message) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again))
                    if Instant::now() < deadline =>
                {
                    message = again;
                    self.producer.poll(FULL_WAIT);
                }
                Err((error, _)) => return Err(error),
            }
        }
    }

    fn abort(&self, why: KafkaFailure) -> TransactionFailure {
        if why.verdict == Verdict::Fenced {
            return TransactionFailure::Unknown(why);
        }
        let deadline = Instant::now() + self.timeout;
        while let Err(error) = self.producer.abort_transaction(ABORT_SLICE) {
            let again = matches!(&error, KafkaError::Transaction(error) if error.is_retriable());
            if !again || Instant::now() >= deadline {
                return TransactionFailure::Unknown(self.failure("aborting", &error));
            }
        }
        let deliveries = std::mem::take(&mut *self.producer.client().context().deliveries.lock());
        let Some(code) = deliveries.first else {
            return match deliveries.refused.is_empty() {
                true => TransactionFailure::Aborted(why),
                false => TransactionFailure::Refused { records: deliveries.refused, reason: why.text },
            };
        };
        // A broker that went away while it refused a record is asked again.
        if verdict(code) == Verdict::RefusedEvent && !deliveries.refused.is_empty() {
            return TransactionFailure::Refused { records: deliveries.refused, reason: code.to_string() };
        }
        let verdict = match verdict(code) {
            Verdict::RefusedEvent => Verdict::Again,
            other => other,
        };
        TransactionFailure::Aborted(KafkaFailure { verdict, text: format!("sending: {code}") })
    }

    /// What an error means; one that made the producer unusable counts by its cause.
    fn failure(&self, what: &str, error: &KafkaError) -> KafkaFailure {
        let found = failure(what, error);
        match self.producer.client().fatal_error() {
            Some((code, reason)) => {
                // An unusable producer is made anew, unless another one has taken its place.
                let verdict = match verdict(code) {
                    Verdict::Fenced => Verdict::Fenced,
                    Verdict::Fatal => Verdict::Fatal,
                    Verdict::Again | Verdict::RefusedEvent => Verdict::Again,
                };
                KafkaFailure { verdict, text: format!("{what}: {code}: {reason}") }
            }
            None => self.producer.client().context().log.explain(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KafkaConfig;

    #[test]
    fn librdkafka_takes_every_time_that_the_configuration_allows() {
        for timeout_ms in [1000, 5000, 15_000, 300_000] {
            let config =
                KafkaConfig { timeout_ms, ..KafkaConfig::of_brokers(vec!["127.0.0.1:1".to_owned()]) };
            let made = Transactions::unconnected(&Kafka::new(config).unwrap(), "test");
            assert_eq!(made.map(|_| ()), Ok(()), "{timeout_ms} ms");
        }
    }
}
