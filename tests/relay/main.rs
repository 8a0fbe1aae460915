//! The relay against real brokers: each event once, in its key's order, whatever happens to relays and brokers.

#![allow(clippy::unwrap_used, reason = "test code")]

mod check;
mod consumer;
mod log;
mod secured;

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use outrigger::config::{KafkaConfig, KafkaSasl, SaslMechanism, SecretSource};
use outrigger::pools::kafka::{Kafka, TopicMismatch, TopicReport, ensure_topics};
use outrigger::primitives::events::Data;
use outrigger::primitives::events::relay::lanes::Stop;
use outrigger::primitives::events::relay::{RelayMetrics, Row, Shard, ShardEnd, run_shard, topics};
use outrigger::telemetry::Registry;
use parking_lot::Mutex;
use rig::{KafkaCluster, KafkaOptions, shared_kafka_brokers};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use check::check;
use consumer::read_committed;
use log::{Log, TENANT};

const LANES: u16 = 8;
/// Partitions of the cursors' topic; most tests use the first.
const SHARDS: u16 = 2;
const BOUND: Duration = Duration::from_secs(90);

/// A prefix that no other test has, and its topic `t` with the cursors' topic.
async fn kafka(brokers: Vec<String>) -> Arc<Kafka> {
    let prefix = format!("test-{}", Uuid::now_v7().simple());
    // A third of the default, so that a transaction fails while a test looks.
    let kafka =
        Kafka::new(KafkaConfig { prefix, timeout_ms: 5000, ..KafkaConfig::of_brokers(brokers) }).unwrap();
    for report in ensure(&kafka, LANES).await {
        assert!(report.was_made && report.mismatches.is_empty(), "{report:?}");
    }
    Arc::new(kafka)
}

async fn ensure(kafka: &Kafka, lanes: u16) -> Vec<TopicReport> {
    ensure_topics(kafka, &topics(kafka, &[("t", lanes)], SHARDS)).await.unwrap()
}

/// A relay with the lease. Cancelling is a lease that is given back; holding it, a process that is stopped.
struct Relay {
    lease_lost: CancellationToken,
    held: watch::Sender<bool>,
    task: JoinHandle<ShardEnd>,
}

impl Relay {
    /// Stops it, or lets it go on.
    fn hold(&self, is_held: bool) {
        self.held.send_replace(is_held);
    }
}

fn start(kafka: &Arc<Kafka>, log: &Arc<Log>, metrics: &Arc<RelayMetrics>) -> Relay {
    start_shard(Shard::new(0, 1), kafka, log, metrics)
}

fn start_shard(shard: Shard, kafka: &Arc<Kafka>, log: &Arc<Log>, metrics: &Arc<RelayMetrics>) -> Relay {
    let (reader, held) = log.take_lease(shard);
    let (kafka, metrics, lease_lost) = (kafka.clone(), metrics.clone(), CancellationToken::new());
    let lost = lease_lost.clone();
    #[allow(clippy::disallowed_methods, reason = "a test's relay is a process of its own")]
    let task = tokio::spawn(async move {
        loop {
            let end = run_shard(&reader, kafka.clone(), shard, &lost, &metrics).await;
            // A predecessor that was slow to begin has fenced the lease's holder, which takes the shard over again.
            if !(matches!(end, ShardEnd::Fenced(_)) && reader.has_lease()) {
                return end;
            }
        }
    });
    Relay { lease_lost, held, task }
}

static LOGGED: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// The log: kept, and shown when a test fails.
struct Output;

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        print!("{}", String::from_utf8_lossy(bytes));
        LOGGED.lock().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What the relay counts; its log is shown when a test fails.
fn metrics() -> (Registry, Arc<RelayMetrics>) {
    tracing_subscriber::fmt().with_ansi(false).with_writer(|| Output).try_init().ok();
    let registry = Registry::default();
    let metrics = Arc::new(RelayMetrics::new(&registry).unwrap());
    (registry, metrics)
}

/// Events `from..to` of 200 bytes, of 100 keys.
fn append(log: &Log, from: usize, to: usize) {
    log.append(
        "t",
        (from..to).map(|number| {
            let key = number * 7 % 100;
            let payload = format!("{number:0>198}");
            let lane = u16::try_from(key).unwrap() % LANES;
            (format!("key-{key}"), lane, Data::Json(Bytes::from(format!("\"{payload}\""))))
        }),
    );
}

/// What is in Kafka, once there are so many.
async fn committed(kafka: &Kafka, expected: usize) -> Vec<consumer::Seen> {
    let config = kafka.config();
    let (brokers, topic) = (config.brokers.join(","), format!("{}.t", config.prefix));
    tokio::task::spawn_blocking(move || read_committed(&brokers, &topic, LANES, expected, BOUND))
        .await
        .unwrap()
}

async fn check_all(kafka: &Kafka, log: &Log) {
    let rows = log.rows();
    let seen = committed(kafka, rows.len()).await;
    check(&rows.iter().collect::<Vec<_>>(), &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_made_once_and_a_mismatch_is_said_in_words() {
    let kafka = kafka(shared_kafka_brokers()).await;
    for report in ensure(&kafka, LANES).await {
        assert!(!report.was_made && report.mismatches.is_empty(), "{report:?}");
        assert_eq!(report.max_message_bytes, Some(1_048_588), "{report:?}");
    }
    let reports = ensure(&kafka, LANES + 1).await;
    let wrong = TopicMismatch::Partitions { has: usize::from(LANES), wanted: LANES + 1 };
    assert_eq!(reports[0].mismatches, [wrong]);
    assert!(reports[1].mismatches.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_delivered_as_cloudevents_and_the_rate_is_shown() {
    const EVENTS: usize = 50_000;
    let (kafka, log) = (kafka(shared_kafka_brokers()).await, Arc::new(Log::default()));
    let (registry, metrics) = metrics();
    append(&log, 0, EVENTS);
    let begun = Instant::now();
    let relays = [0, 1].map(|number| start_shard(Shard::new(number, SHARDS), &kafka, &log, &metrics));
    let seen = committed(&kafka, EVENTS).await;
    let seconds = begun.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss, reason = "shown only")]
    let rate = EVENTS as f64 / seconds;
    println!(
        "{EVENTS} events of 200 bytes, two shards, takeover and consumer included: {rate:.0}/s, {seconds:.1} s"
    );
    let rows = log.rows();
    check(&rows.iter().collect::<Vec<_>>(), &seen);
    let headers: Vec<(&str, &str)> =
        seen[0].headers.iter().map(|(name, value)| (&**name, &**value)).collect();
    let tenant = TENANT.to_string();
    let expected = [
        ("ce_id", seen[0].id()),
        ("ce_source", "test"),
        ("ce_specversion", "1.0"),
        ("ce_tenantid", &*tenant),
        ("ce_type", "t"),
        ("content-type", "application/json"),
        ("outrigger-seq", "1"),
    ];
    assert_eq!(headers, expected);
    // Its successor begins behind it, and nothing comes twice.
    for relay in relays {
        relay.lease_lost.cancel();
        assert!(matches!(relay.task.await.unwrap(), ShardEnd::LeaseLost));
    }
    append(&log, EVENTS, EVENTS + 10);
    let successors = [0, 1].map(|number| start_shard(Shard::new(number, SHARDS), &kafka, &log, &metrics));
    check_all(&kafka, &log).await;
    for successor in successors {
        successor.lease_lost.cancel();
        assert!(matches!(successor.task.await.unwrap(), ShardEnd::LeaseLost));
    }
    let text = registry.render().unwrap();
    assert!(text.contains(&format!("outrigger_events_relay_delivered_total {}\n", EVENTS + 10)), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_event_is_parked_with_its_key_s_later_ones_and_the_others_go_on() {
    let (kafka, log) = (kafka(shared_kafka_brokers()).await, Arc::new(Log::default()));
    let (registry, metrics) = metrics();
    let event = |key: &str, bytes: usize| (key.to_owned(), 3, Data::Binary(Bytes::from(vec![b'x'; bytes])));
    append(&log, 0, 500);
    log.append("t", [event("large", 10), event("other", 700_000), event("large", 2_000_000)]);
    append(&log, 500, 1000);
    log.append("t", [event("large", 11), event("spoilt", 1)]);
    log.spoil_last();
    log.append("t", [event("spoilt", 2), event("other", 12)]);
    let relay = start(&kafka, &log, &metrics);
    let rows = log.rows();
    let is_parked = |row: &&Row| {
        (&*row.event.key == "large" && row.event.data.bytes().len() > 10) || &*row.event.key == "spoilt"
    };
    let (parked, delivered): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(is_parked);
    assert_eq!((parked.len(), delivered.len()), (4, 1003));
    check(&delivered, &committed(&kafka, delivered.len()).await);
    let mut kept = log.parked();
    kept.sort_by_key(|kept| kept.row.event.position);
    assert!(kept.iter().map(|kept| &kept.row).eq(parked));
    let later = "an earlier event of its key is parked";
    let is_later: Vec<bool> = kept.iter().map(|kept| kept.reason == later).collect();
    assert_eq!(
        is_later,
        [false, true, false, true],
        "{:?}",
        kept.iter().map(|kept| &kept.reason).collect::<Vec<_>>()
    );
    // The successor knows the parked keys.
    relay.lease_lost.cancel();
    assert!(matches!(relay.task.await.unwrap(), ShardEnd::LeaseLost));
    log.append("t", [event("large", 13), event("other", 14)]);
    let successor = start(&kafka, &log, &metrics);
    let rows = log.rows();
    let delivered: Vec<&Row> = rows.iter().filter(|row| !is_parked(row)).collect();
    check(&delivered, &committed(&kafka, delivered.len()).await);
    assert_eq!(log.parked().len(), 5);
    assert!(registry.render().unwrap().contains("outrigger_events_relay_parked_total 5\n"));
    successor.lease_lost.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_log_stops_the_shard_and_so_does_another_number_of_shards() {
    let (kafka, log) = (kafka(shared_kafka_brokers()).await, Arc::new(Log::default()));
    let (_, metrics) = metrics();
    append(&log, 0, 200);
    let relay = start(&kafka, &log, &metrics);
    check_all(&kafka, &log).await;
    relay.lease_lost.cancel();
    relay.task.await.unwrap();
    let regrouped = start_shard(Shard::new(0, 2), &kafka, &log, &metrics).task.await.unwrap();
    assert!(matches!(regrouped, ShardEnd::Stopped(Stop::Cursor(_))), "{regrouped}");
    log.lose_last(10);
    let behind = start(&kafka, &log, &metrics).task.await.unwrap();
    assert!(matches!(behind, ShardEnd::Stopped(Stop::Behind { .. })), "{behind}");
    assert!(behind.to_string().contains("outrigger migrate --new-epoch"), "{behind}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_in_no_log() {
    const PASSWORD: &str = "canary-2f6d1c";
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, PASSWORD).unwrap();
    let (_, metrics) = metrics();
    let log = Arc::new(Log::default());
    for mechanism in [SaslMechanism::Plain, SaslMechanism::ScramSha512] {
        let password = SecretSource::File(file.clone());
        let sasl = Some(KafkaSasl { mechanism, username: "relay".to_owned(), password });
        let config =
            KafkaConfig { sasl, timeout_ms: 1000, ..KafkaConfig::of_brokers(shared_kafka_brokers()) };
        // These brokers know no users: what the client says of its failure is what is looked at.
        let relay = start(&Arc::new(Kafka::new(config).unwrap()), &log, &metrics);
        let mut ticks = tokio::time::interval(Duration::from_millis(50));
        let deadline = Instant::now() + BOUND;
        let has_failed = || String::from_utf8_lossy(&LOGGED.lock()).contains("trying again");
        while !has_failed() && !relay.task.is_finished() {
            assert!(Instant::now() < deadline, "no failure was logged");
            ticks.tick().await;
        }
        relay.lease_lost.cancel();
        let end = relay.task.await.unwrap();
        let logged = String::from_utf8(std::mem::take(&mut *LOGGED.lock())).unwrap();
        assert!(logged.contains("librdkafka"), "{logged}");
        assert!(!logged.contains(PASSWORD) && !format!("{end} {end:?}").contains(PASSWORD), "{logged}");
    }
}

/// Brokers of its own, and the relay's topics there.
async fn cluster() -> (Arc<KafkaCluster>, Arc<Kafka>) {
    let started = tokio::task::spawn_blocking(|| KafkaCluster::start(KafkaOptions::default()).unwrap());
    let cluster = Arc::new(started.await.unwrap());
    let kafka = kafka(cluster.addresses()).await;
    (cluster, kafka)
}

async fn blocking<T: Send + 'static>(
    cluster: &Arc<KafkaCluster>,
    act: impl FnOnce(&KafkaCluster) -> T + Send + 'static,
) -> T {
    let cluster = cluster.clone();
    tokio::task::spawn_blocking(move || act(&cluster)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn chaos_relays_take_over_from_each_other_while_a_broker_dies() {
    const EVENTS: usize = 20_000;
    let (cluster, kafka) = cluster().await;
    let log = Arc::new(Log::default());
    let (_, metrics) = metrics();
    let mut relays = vec![start(&kafka, &log, &metrics)];
    let (mut takeovers, mut written) = (0, 0);
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    let mut next = Instant::now();
    while written < EVENTS {
        ticks.tick().await;
        append(&log, written, written + 20);
        written += 20;
        if written == EVENTS / 3 / 20 * 20 {
            blocking(&cluster, |cluster| cluster.kill(1).unwrap()).await;
        }
        if written == EVENTS / 3 * 2 / 20 * 20 {
            blocking(&cluster, |cluster| cluster.restart(1).unwrap()).await;
        }
        if next <= Instant::now() {
            next += Duration::from_millis(fastrand::u64(300..1500));
            takeovers += 1;
            let before = relays.last().unwrap();
            match takeovers % 3 {
                0 => before.lease_lost.cancel(),
                // It is stopped, and goes on when its successor has long been at work.
                1 => before.hold(true),
                // Nobody tells it: it works on until Kafka does.
                _ => {}
            }
            relays.push(start(&kafka, &log, &metrics));
            if let Some(stopped) = relays.len().checked_sub(3) {
                relays[stopped].hold(false);
            }
        }
    }
    blocking(&cluster, |cluster| cluster.wait_ok().unwrap()).await;
    check_all(&kafka, &log).await;
    // A relay that nobody told learns that it is fenced when it has something to send: each has, once more.
    relays.iter().for_each(|relay| relay.hold(false));
    append(&log, written, written + 20);
    check_all(&kafka, &log).await;
    let ends = end(relays).await;
    println!("{EVENTS} events, {takeovers} takeovers: {ends:?}");
    assert!(takeovers >= 10 && ends.fenced > 0, "{ends:?}");
    assert!(log.parked().is_empty());
}

#[derive(Debug, Default)]
struct Ends {
    fenced: usize,
    lease_lost: usize,
}

/// How the relays ended; the last one when it is told to.
async fn end(relays: Vec<Relay>) -> Ends {
    let mut ends = Ends::default();
    let last = relays.len() - 1;
    for (index, relay) in relays.into_iter().enumerate() {
        relay.hold(false);
        if index == last {
            relay.lease_lost.cancel();
        }
        let ended = tokio::time::timeout(Duration::from_secs(60), relay.task).await;
        match ended.unwrap_or_else(|_| panic!("relay {index} works on")).unwrap() {
            ShardEnd::Fenced(_) => ends.fenced += 1,
            ShardEnd::LeaseLost => ends.lease_lost += 1,
            other => panic!("relay {index}: {other}"),
        }
    }
    ends
}

#[tokio::test(flavor = "multi_thread")]
async fn chaos_nothing_is_lost_while_every_broker_is_down() {
    const EVENTS: usize = 6_000;
    let (cluster, kafka) = cluster().await;
    let log = Arc::new(Log::default());
    let (registry, metrics) = metrics();
    let relay = start(&kafka, &log, &metrics);
    append(&log, 0, EVENTS / 3);
    committed(&kafka, EVENTS / 3).await;
    append(&log, EVENTS / 3, EVENTS / 3 * 2);
    blocking(&cluster, |cluster| cluster.kill_all().unwrap()).await;
    append(&log, EVENTS / 3 * 2, EVENTS);
    let down = Instant::now();
    // Until a transaction has failed for want of brokers, and at least for some seconds.
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    let has_failed = |text: &str| {
        ["aborted", "unknown"].iter().any(|outcome| {
            let zero = format!("outrigger_events_relay_transactions_total{{outcome=\"{outcome}\"}} 0\n");
            !text.contains(&zero)
        })
    };
    while down.elapsed() < Duration::from_secs(5) || !has_failed(&registry.render().unwrap()) {
        assert!(down.elapsed() < BOUND, "no transaction failed");
        ticks.tick().await;
    }
    println!("down for {:.1} s", down.elapsed().as_secs_f32());
    assert!(!relay.task.is_finished());
    blocking(&cluster, |cluster| cluster.start_all().unwrap()).await;
    check_all(&kafka, &log).await;
    relay.lease_lost.cancel();
    assert!(matches!(relay.task.await.unwrap(), ShardEnd::LeaseLost));
}
