//! A reader of committed records, and what it must have seen.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use outrigger::primitives::events::relay::Row;
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

/// Each of the rows once, in its key's order, in its lane, with numbers that have no gap.
pub(crate) fn check(rows: &[&Row], seen: &[Seen]) {
    let mut expected: HashMap<String, &Row> = HashMap::new();
    for row in rows {
        expected.insert(format!("e{}", row.event.position.number()), row);
    }
    let (mut seqs, mut keys): (HashMap<i32, u64>, HashMap<&str, i64>) = (HashMap::new(), HashMap::new());
    for record in seen {
        let row = expected.remove(record.id()).unwrap_or_else(|| panic!("{record:?} came twice, or is none"));
        assert_eq!(record.partition, i32::from(row.lane), "{record:?}");
        assert_eq!(record.key, format!("{}/{}", row.event.tenant, row.event.key));
        assert_eq!(record.value.as_deref().unwrap_or_default(), row.event.data.bytes());
        let seq = seqs.entry(record.partition).or_insert(0);
        *seq += 1;
        assert_eq!(record.headers["outrigger-seq"], seq.to_string(), "{record:?}");
        let position = row.event.position.number();
        let before = keys.insert(&record.key, position);
        assert!(
            before.is_none_or(|before| before < position),
            "{record:?} came after a later one of its key"
        );
    }
    let mut lost: Vec<&String> = expected.keys().collect();
    lost.sort();
    assert!(lost.is_empty(), "{} were lost: {:?}", lost.len(), &lost[..lost.len().min(10)]);
}
