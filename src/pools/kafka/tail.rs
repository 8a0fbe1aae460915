//! The last committed record of a partition that one transactional id writes alone.

use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::TopicPartitionList;
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;

use super::classify::failure;
use super::settings::{Kafka, Log};
use super::{KafkaFailure, Verdict};

/// How many records from the end are looked at first, then; at last all of them. Aborted ones and the marks that end
/// transactions count.
const WINDOWS: [i64; 3] = [64, 4096, i64::MAX];
const POLL: Duration = Duration::from_millis(50);

impl ConsumerContext for Log {}

/// The value of the last committed record with this key. The caller has fenced every other writer of the partition.
pub(super) fn last_committed(
    kafka: &Kafka,
    topic: &str,
    partition: i32,
    key: &[u8],
) -> Result<Option<Vec<u8>>, KafkaFailure> {
    let deadline = Instant::now() + Duration::from_millis(kafka.config.timeout_ms);
    let end = watermarks(&consumer(kafka, "read_uncommitted")?, topic, partition, deadline)?.1;
    let consumer = consumer(kafka, "read_committed")?;
    // Until the marks of what was aborted are everywhere, a reader of committed records sees an earlier end, and would
    // take an old cursor for the last one.
    let low = loop {
        let (low, stable) = watermarks(&consumer, topic, partition, deadline)?;
        if stable >= end {
            break low;
        }
        wait(&consumer, deadline)?;
    };
    for window in WINDOWS {
        let start = end.saturating_sub(window).max(low);
        if let Some(value) = read(&consumer, topic, partition, start, key, deadline)? {
            return Ok(Some(value));
        }
        if start == low {
            break;
        }
    }
    Ok(None)
}

fn consumer(kafka: &Kafka, isolation: &str) -> Result<BaseConsumer<Log>, KafkaFailure> {
    let mut settings = kafka.settings()?;
    settings
        .set("isolation.level", isolation)
        // librdkafka assigns nothing without a group; nothing is ever committed in it.
        .set("group.id", format!("{}.relay", kafka.config.prefix))
        .set("enable.partition.eof", "true")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "error")
        // At the end nobody has to wait for more.
        .set("fetch.wait.max.ms", "10");
    BaseConsumer::from_config_and_context(&settings, Log).map_err(|error| failure("making a reader", &error))
}

fn watermarks(
    consumer: &BaseConsumer<Log>,
    topic: &str,
    partition: i32,
    deadline: Instant,
) -> Result<(i64, i64), KafkaFailure> {
    let left = deadline.saturating_duration_since(Instant::now()).max(POLL);
    consumer
        .fetch_watermarks(topic, partition, left)
        .map_err(|error| failure(&format!("asking for the end of {topic}/{partition}"), &error))
}

fn wait(consumer: &BaseConsumer<Log>, deadline: Instant) -> Result<(), KafkaFailure> {
    if Instant::now() >= deadline {
        let text = "the cursor's partition has an open transaction that is not ended".to_owned();
        return Err(KafkaFailure { verdict: Verdict::Again, text });
    }
    // Nothing is assigned: this waits, and serves the log.
    if let Some(Err(error)) = consumer.poll(POLL) {
        tracing::debug!(%error, "waiting for the end of the cursor's partition");
    }
    Ok(())
}

fn read(
    consumer: &BaseConsumer<Log>,
    topic: &str,
    partition: i32,
    start: i64,
    key: &[u8],
    deadline: Instant,
) -> Result<Option<Vec<u8>>, KafkaFailure> {
    let what = format!("reading {topic}/{partition}");
    let failed = |error: &KafkaError| failure(&what, error);
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(start)).map_err(|error| failed(&error))?;
    consumer.assign(&list).map_err(|error| failed(&error))?;
    let mut last = None;
    loop {
        match consumer.poll(POLL) {
            Some(Ok(message)) if message.key() == Some(key) => last = message.payload().map(<[u8]>::to_vec),
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(last),
            // It heals, or the deadline comes.
            Some(Err(error)) if failed(&error).verdict == Verdict::Again => {
                tracing::debug!(%error, "reading the cursor");
            }
            Some(Err(error)) => return Err(failed(&error)),
            Some(Ok(_)) | None => {}
        }
        if Instant::now() >= deadline {
            return Err(KafkaFailure { verdict: Verdict::Again, text: format!("{what}: no end in time") });
        }
    }
}
