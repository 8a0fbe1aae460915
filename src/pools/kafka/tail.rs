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
use super::{KafkaFailure, Record, Verdict};

/// How many records from the end are looked at first, then; at last all of them. Aborted ones and the marks that end
/// transactions count.
const WINDOWS: [i64; 3] = [64, 4096, i64::MAX];
const POLL: Duration = Duration::from_millis(50);

impl ConsumerContext for Log {}

/// The value of the last committed record with this key that is before `probe`, which the caller has just committed
/// there, after it fenced every other writer of the partition.
///
/// A reader cannot know by an offset that it has come to the end: until the marks of what was aborted are everywhere,
/// and after a change of leaders, what is told as the end may be an earlier one, and an old cursor would be taken for the
/// last. Whoever has seen its own probe has seen all that was before it.
pub(super) fn last_committed(
    kafka: &Kafka,
    key: &[u8],
    probe: &Record,
) -> Result<Option<Vec<u8>>, KafkaFailure> {
    let what = format!("reading {}/{}", probe.topic, probe.partition);
    let deadline = Instant::now() + Duration::from_millis(kafka.config.timeout_ms);
    let consumer = consumer(kafka)?;
    let left = deadline.saturating_duration_since(Instant::now());
    let (low, end) = consumer
        .fetch_watermarks(&probe.topic, probe.partition, left)
        .map_err(|error| consumer.context().explain(failure(&what, &error)))?;
    for window in WINDOWS {
        let start = end.saturating_sub(window).max(low);
        let found = read(&consumer, start, key, probe, &what, deadline)?;
        if found.is_some() || start == low {
            return Ok(found);
        }
    }
    Ok(None)
}

fn consumer(kafka: &Kafka) -> Result<BaseConsumer<Log>, KafkaFailure> {
    let mut settings = kafka.settings()?;
    settings
        .set("isolation.level", "read_committed")
        // librdkafka assigns nothing without a group; nothing is ever committed in it.
        .set("group.id", format!("{}.relay", kafka.config.prefix))
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "error")
        .set("fetch.wait.max.ms", "10");
    BaseConsumer::from_config_and_context(&settings, Log::default())
        .map_err(|error| failure("making a reader", &error))
}

fn read(
    consumer: &BaseConsumer<Log>,
    start: i64,
    key: &[u8],
    probe: &Record,
    what: &str,
    deadline: Instant,
) -> Result<Option<Vec<u8>>, KafkaFailure> {
    let failed = |error: &KafkaError| consumer.context().explain(failure(what, error));
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&probe.topic, probe.partition, Offset::Offset(start))
        .map_err(|error| failed(&error))?;
    consumer.assign(&list).map_err(|error| failed(&error))?;
    let mut last = None;
    loop {
        match consumer.poll(POLL) {
            Some(Ok(message)) if message.key() == Some(key) => last = message.payload().map(<[u8]>::to_vec),
            Some(Ok(message))
                if message.key() == Some(&probe.key) && message.payload() == probe.value.as_deref() =>
            {
                return Ok(last);
            }
            // It heals, or the deadline comes.
            Some(Err(error)) if failed(&error).verdict == Verdict::Again => {
                tracing::debug!(%error, "reading the cursor");
            }
            Some(Err(error)) => return Err(failed(&error)),
            Some(Ok(_)) | None => {}
        }
        if Instant::now() >= deadline {
            let text = format!("{what}: what was just committed is not seen in time");
            return Err(KafkaFailure { verdict: Verdict::Again, text });
        }
    }
}
