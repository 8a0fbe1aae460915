//! What was accepted to disk, on both stores.

mod refused;
mod turns;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use rig::PostgresRole;
use serde_json::json;
use uuid::Uuid;

use super::super::conflicts::{self, Behind};
use super::super::metrics::UsageMetrics;
use super::super::{Ack, Calendar, Call, Metric, Range, Reading, SumOf, Window, read};
use super::clock::Clock;
use super::{SEGMENT_BYTES, Spooler, entry};
use crate::names::Name;
use crate::store::bench::Stores;
use crate::store::spool::{Bounds, Spool};
use crate::store::{Reach, Store, StoreError};
use crate::tasks::Tasks;
use crate::telemetry::Registry;

const A: Uuid = Uuid::from_u128(1);
const B: Uuid = Uuid::from_u128(2);
const MAX_BYTES: u64 = 64 * 1024 * 1024;
const SOON: Duration = Duration::from_secs(20);

fn hour() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second().div_euclid(3600) * 3600).unwrap()
}

/// An entry of a tenant: keys and values, at an instant.
fn entry_of(tenant: Uuid, records: &[(&str, &str)], time: Timestamp) -> Vec<u8> {
    let record = |(key, value): &(&str, &str)| json!({"metric": "calls", "value": value, "time": time.to_string(), "idempotency_key": key});
    entry_with(tenant, &json!({"records": records.iter().map(record).collect::<Vec<_>>()}))
}

fn entry_with(tenant: Uuid, body: &serde_json::Value) -> Vec<u8> {
    let name = Name::parse("calls").unwrap();
    let metric = Metric { name, accept_late_ms: 1, group_by: Vec::new(), ack: Ack::Spool };
    let call = Call::of(tenant, vec![Arc::new(metric)], Vec::new(), &Calendar::new(TimeZone::UTC, None));
    entry::write(&call, Timestamp::now(), body.to_string().as_bytes()).unwrap()
}

/// A process on a folder.
struct Running {
    spooler: Spooler,
    registry: Registry,
    tasks: Tasks,
}

impl Running {
    fn on(store: &Store, directory: &Path) -> Self {
        Self::with_clock(store, directory, Clock::default())
    }

    fn with_clock(store: &Store, directory: &Path, clock: Clock) -> Self {
        let (registry, tasks) = (Registry::with_process_metrics().unwrap(), Tasks::default());
        let metrics = Arc::clone(&UsageMetrics::new(&registry).unwrap().spool);
        let spooler = Spooler::start_by(clock, directory, MAX_BYTES, store, metrics, &tasks).unwrap();
        Self { spooler, registry, tasks }
    }

    /// As `accept` does it.
    async fn accept(&self, entry: Vec<u8>) {
        let owned = (entry::head(&entry).unwrap().tenant, entry.len() as u64);
        self.spooler.shares.take(owned, 0, 0).unwrap();
        self.spooler.spool.append(entry).await.unwrap();
        self.spooler.shares.landed(owned, 0, true);
    }

    fn metrics(&self) -> String {
        self.registry.render().unwrap()
    }

    async fn until_metric(&self, line: &str) {
        let is_there = async || self.metrics().lines().any(|one| one == line);
        until(is_there, || format!("{line} is not in {}", self.metrics())).await;
    }

    async fn stop(self) {
        assert!(self.tasks.stop(SOON).await, "not stopped in time");
    }
}

/// Returns once this is true; fails with this if it is not soon.
async fn until(is_true: impl AsyncFn() -> bool, otherwise: impl Fn() -> String) {
    let (began, mut ticks) = (Instant::now(), tokio::time::interval(Duration::from_millis(10)));
    while !is_true().await {
        assert!(began.elapsed() < SOON, "{}", otherwise());
        ticks.tick().await;
    }
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect()
}

async fn append(directory: &Path, entries: Vec<Vec<u8>>) {
    let spool =
        Spool::open(directory, Bounds { max_bytes: MAX_BYTES, segment_bytes: SEGMENT_BYTES }).unwrap();
    for entry in entries {
        spool.append(entry).await.unwrap();
    }
}

/// Counts what is in a folder, as a process does that begins, and ends once that is done; its metrics.
async fn count_all(store: &Store, directory: &Path) -> String {
    let running = Running::on(store, directory);
    assert!(running.tasks.stop(SOON).await, "not counted in time");
    assert_eq!(segments(directory), [""; 0].map(PathBuf::from));
    let spooler = &running.spooler;
    let aside: u64 = spooler.spool.aside().unwrap().iter().map(|one| one.bytes).sum();
    assert_eq!(spooler.spool.bytes(), aside);
    assert!(spooler.shares.is_empty());
    running.metrics()
}

/// A tenant's total of the hour, and the keys of its conflicts.
async fn seen(store: &Store, tenant: Uuid) -> (String, Vec<String>) {
    let read: Result<(Reading, Vec<String>), StoreError> = store
        .read(Reach::background(tenant), move |tx| {
            Box::pin(async move {
                let range = Range::new(Window::Total, hour(), hour() + 1.hour(), &TimeZone::UTC).unwrap();
                let of = SumOf { tenant, metric: "calls", tag: "" };
                let reading = read(tx, &of, &range, None).await.unwrap();
                let behind = Behind::all_from(Timestamp::UNIX_EPOCH);
                let metric = Name::parse("calls").unwrap();
                let listed = conflicts::list(tx, (tenant, &metric), &behind, 10).await?;
                Ok((reading, listed.into_iter().map(|one| format!("{}={}", one.key, one.value)).collect()))
            })
        })
        .await;
    let (reading, conflicts) = read.unwrap();
    (reading.total.to_string(), conflicts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_there_is_counted_once_however_often_it_comes_and_lies_are_listed_once() {
    let stores = Stores::with_timescale(4).await;
    for (name, store) in stores.all() {
        let directory = tempfile::tempdir().unwrap();
        let entries = || {
            vec![
                entry_of(A, &[("k1", "1.5"), ("k2", "2")], hour()),
                entry_of(B, &[("k1", "40")], hour()),
                // One lie, and what is told with it counts.
                entry_of(A, &[("k1", "7"), ("k3", "0.25"), ("k2", "2")], hour()),
            ]
        };
        append(directory.path(), entries()).await;
        let metrics = count_all(store, directory.path()).await;
        for (outcome, count) in [("accepted", 4), ("duplicate", 1), ("conflict", 1)] {
            let line = format!("outrigger_usage_points_total{{outcome=\"{outcome}\"}} {count}");
            assert!(metrics.contains(&line), "{name}: {line} is not in {metrics}");
        }
        for _ in 0..2 {
            assert_eq!(seen(store, A).await, ("3.75".to_owned(), vec!["k1=7".to_owned()]), "{name}");
            assert_eq!(seen(store, B).await, ("40".to_owned(), Vec::new()), "{name}");
            append(directory.path(), entries()).await;
            count_all(store, directory.path()).await;
        }
    }
}

/// As after a restore to a time when the day had none, or on a standby that had not got it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_whose_partitions_are_lost_is_made_anew_and_nothing_is_put_aside() {
    let stores = Stores::new(4).await;
    let directory = tempfile::tempdir().unwrap();
    let running = Running::on(&stores.postgres, directory.path());
    running.accept(entry_of(A, &[("k1", "1")], hour())).await;
    running.spooler.until_counted(A).await;
    let day = hour().strftime("%Y%m%d").to_string();
    let drop = format!("DROP TABLE usage_events_{day}, usage_dedupe_{day}");
    stores.psql("postgres", PostgresRole::Superuser, &[&drop]).unwrap();
    running.accept(entry_of(A, &[("k2", "2")], hour())).await;
    running.spooler.until_counted(A).await;
    assert_eq!(seen(&stores.postgres, A).await.0, "3");
    assert_eq!(running.spooler.spool.aside().unwrap(), []);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_came_late_are_told_by_when_they_were_accepted() {
    let stores = Stores::new(4).await;
    for (name, store) in stores.both() {
        let directory = tempfile::tempdir().unwrap();
        let late = entry_of(A, &[("k1", "1"), ("k2", "1"), ("k3", "1")], hour() - 3.hours());
        append(directory.path(), vec![entry_of(A, &[("k0", "1")], hour()), late.clone()]).await;
        let metrics = count_all(store, directory.path()).await;
        for (outcome, count) in [("accepted", 4), ("late", 3)] {
            let line = format!("outrigger_usage_points_total{{outcome=\"{outcome}\"}} {count}");
            assert!(metrics.contains(&line), "{name}: {line} is not in {metrics}");
        }
        // What was counted before is none.
        append(directory.path(), vec![late]).await;
        let metrics = count_all(store, directory.path()).await;
        assert!(metrics.contains("outrigger_usage_points_total{outcome=\"late\"} 0"), "{name}: {metrics}");
    }
}

/// What a bad sector, or somebody's `rm`, took before it was read is no longer its tenant's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_lost_takes_no_room_once_all_else_is_counted() {
    let stores = Stores::new(4).await;
    let directory = tempfile::tempdir().unwrap();
    let running = Running::on(&stores.sqlite, directory.path());
    running.spooler.shares.note((B, 1000), 5000);
    running.accept(entry_of(A, &[("k1", "1")], hour())).await;
    until(async || running.spooler.shares.is_empty(), || "what is not there takes room".to_owned()).await;
    assert_eq!(running.spooler.shares.adds(B), 0);
    running.stop().await;
}

/// Statements that take too many records run out of their time, here at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_much_for_a_transaction_is_counted_in_parts() {
    let stores = Stores::new(4).await;
    let directory = tempfile::tempdir().unwrap();
    let slow = [
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF (SELECT count(*) FROM added) > 100 THEN RAISE EXCEPTION 'too slow' USING ERRCODE = 'query_canceled'; END IF; \
             RETURN NULL; END $$",
        "CREATE TRIGGER slow AFTER INSERT ON usage_events REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION slow()",
    ];
    let database = &stores._database.database;
    tokio::task::block_in_place(|| database.psql(PostgresRole::Superuser, &slow)).unwrap();
    let keys: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
    let large: Vec<(&str, &str)> = keys.iter().map(|key| (key.as_str(), "1")).collect();
    let small = |tenant, key: &'static str| entry_of(tenant, &[(key, "1")], hour());
    // The lie is in another part than what it is a lie about.
    let mut lying = large.clone();
    lying[999] = ("0", "5");
    let entries = vec![small(B, "a"), entry_of(A, &lying, hour()), small(B, "b")];
    append(directory.path(), entries).await;
    let metrics = count_all(&stores.postgres, directory.path()).await;
    assert!(metrics.contains("outrigger_usage_points_total{outcome=\"accepted\"} 1001"), "{metrics}");
    assert_eq!(seen(&stores.postgres, A).await, ("999".to_owned(), vec!["0=5".to_owned()]));
    assert_eq!(seen(&stores.postgres, B).await.0, "2");
}
