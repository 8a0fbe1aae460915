//! A reader of committed records.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

/// A record as a native consumer sees it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) partition: i32,
    pub(crate) key: String,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: BTreeMap<String, String>,
}

impl Seen {
    pub(crate) fn id(&self) -> &str {
        &self.headers["ce_id"]
    }
}

/// Everything that is committed, once there are at least `expected` records, up to each partition's end. Fewer within
/// `bound` is what there is.
pub(crate) fn read_committed(
    brokers: &str,
    topic: &str,
    lanes: u16,
    expected: usize,
    bound: Duration,
) -> Vec<Seen> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", topic)
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("enable.auto.commit", "false")
        .set("reconnect.backoff.max.ms", "500")
        .set("fetch.wait.max.ms", "50")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    for lane in 0..i32::from(lanes) {
        list.add_partition_offset(topic, lane, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let deadline = Instant::now() + bound;
    let (mut seen, mut ended) = (Vec::new(), vec![false; usize::from(lanes)]);
    while Instant::now() < deadline && !(seen.len() >= expected && ended.iter().all(|ended| *ended)) {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                ended[usize::try_from(message.partition()).unwrap()] = false;
                seen.push(record(&message));
            }
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(partition))) => {
                ended[usize::try_from(partition).unwrap()] = true;
            }
            // Brokers come and go in these tests.
            Some(Err(error)) => eprintln!("consumer: {error}"),
            None => {}
        }
    }
    seen
}

fn record(message: &impl Message) -> Seen {
    let headers = message.headers().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    Seen {
        partition: message.partition(),
        key: text(message.key().unwrap()),
        value: message.payload().map(<[u8]>::to_vec),
        headers: headers.iter().map(|header| (header.key.to_owned(), text(header.value.unwrap()))).collect(),
    }
}
