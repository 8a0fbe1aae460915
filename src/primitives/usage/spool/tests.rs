//! What was accepted to disk, on both stores.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use rig::PostgresRole;
use serde_json::json;
use uuid::Uuid;

use super::super::conflicts::{self, Behind};
use super::super::metrics::UsageMetrics;
use super::super::{Ack, Calendar, Call, Metric, Range, Reading, SumOf, Window, read};
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
    let name = Name::parse("calls").unwrap();
    let metric = Metric { name, accept_late_ms: 1, group_by: Vec::new(), ack: Ack::Spool };
    let call = Call::of(tenant, vec![Arc::new(metric)], Vec::new(), &Calendar::new(TimeZone::UTC, None));
    let record = |(key, value): &(&str, &str)| json!({"metric": "calls", "value": value, "time": time.to_string(), "idempotency_key": key});
    let body = json!({"records": records.iter().map(record).collect::<Vec<_>>()}).to_string();
    entry::write(&call, Timestamp::now(), body.as_bytes()).unwrap()
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
    let (registry, tasks) = (Registry::with_process_metrics().unwrap(), Tasks::default());
    let metrics = UsageMetrics::new(&registry).unwrap();
    let spooler = Spooler::start(directory, MAX_BYTES, store, Arc::clone(&metrics.spool), &tasks).unwrap();
    assert!(tasks.stop(SOON).await, "not counted in time");
    let segments = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
    let segments: Vec<_> = segments.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect();
    assert!(segments.is_empty(), "{segments:?}");
    let aside: u64 = spooler.spool.aside().unwrap().iter().map(|one| one.bytes).sum();
    assert_eq!(spooler.spool.bytes(), aside);
    assert!(spooler.shares.is_empty());
    registry.render().unwrap()
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_counted_is_put_aside_and_keeps_nobody_waiting() {
    let stores = Stores::with_timescale(4).await;
    for (name, store) in stores.all() {
        let directory = tempfile::tempdir().unwrap();
        let mut of_a_later_release = entry_of(A, &[("k3", "1")], hour());
        of_a_later_release[0] = 9;
        let old = entry_of(A, &[("k2", "1")], hour() - (24 * 150).hours());
        let entries = vec![
            entry_of(A, &[("k1", "1")], hour()),
            old,
            of_a_later_release,
            entry_of(B, &[("k1", "2")], hour()),
        ];
        append(directory.path(), entries).await;
        let metrics = count_all(store, directory.path()).await;
        assert!(metrics.contains("outrigger_usage_spool_refused_total 2"), "{name}: {metrics}");
        assert_eq!(
            (seen(store, A).await.0, seen(store, B).await.0),
            ("1".to_owned(), "2".to_owned()),
            "{name}"
        );
        let files = fs::read_dir(directory.path().join("refused")).unwrap().map(|file| file.unwrap().path());
        let mut files: Vec<_> = files.collect();
        files.sort();
        let [old, unknown] = &files[..] else { panic!("{name}: {files:?}") };
        let records: serde_json::Value = serde_json::from_slice(&fs::read(old).unwrap()).unwrap();
        assert_eq!(records["records"][0]["idempotency_key"], "k2", "{name}: it can be sent again by hand");
        let named = [old, unknown].map(|path| path.file_name().unwrap().to_str().unwrap());
        assert!(named[0].starts_with(&format!("{A}.")) && named[0].ends_with(".json"), "{name}: {named:?}");
        assert!(named[1].starts_with("unknown.") && named[1].ends_with(".entry"), "{name}: {named:?}");
        // Another one, of a life that began with nothing, is not written over it.
        append(directory.path(), vec![entry_of(A, &[("k4", "1")], hour() - (24 * 150).hours())]).await;
        count_all(store, directory.path()).await;
        assert_eq!(fs::read_dir(directory.path().join("refused")).unwrap().count(), 3, "{name}");
    }
}

/// What PostgreSQL refuses for good is one entry's matter, though it came among others: here its day cannot be made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_the_store_refuses_is_found_among_others() {
    let stores = Stores::new(4).await;
    let store = &stores.postgres;
    let directory = tempfile::tempdir().unwrap();
    let mut entries: Vec<_> =
        (0..40).map(|number: u32| entry_of(A, &[(&number.to_string(), "1")], hour())).collect();
    // 20 days ahead: none is accepted, and none could be kept.
    entries.insert(17, entry_of(B, &[("k", "5")], hour() + (24 * 20).hours()));
    append(directory.path(), entries).await;
    let metrics = count_all(store, directory.path()).await;
    assert!(metrics.contains("outrigger_usage_spool_refused_total 1"), "{metrics}");
    assert_eq!(seen(store, A).await.0, "40");
}

/// As after a restore to a time when the day had none, or on a standby that had not got it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_whose_partitions_are_lost_is_made_anew_and_nothing_is_put_aside() {
    let stores = Stores::new(4).await;
    let directory = tempfile::tempdir().unwrap();
    let (registry, tasks) = (Registry::with_process_metrics().unwrap(), Tasks::default());
    let metrics = UsageMetrics::new(&registry).unwrap();
    let spool = Arc::clone(&metrics.spool);
    let spooler = Spooler::start(directory.path(), MAX_BYTES, &stores.postgres, spool, &tasks).unwrap();
    spooler.spool.append(entry_of(A, &[("k1", "1")], hour())).await.unwrap();
    spooler.until_counted().await;
    let day = hour().strftime("%Y%m%d").to_string();
    let drop = format!("DROP TABLE usage_events_{day}, usage_dedupe_{day}");
    let database = &stores._database.database;
    tokio::task::block_in_place(|| database.psql(PostgresRole::Superuser, &[&drop])).unwrap();
    spooler.spool.append(entry_of(A, &[("k2", "2")], hour())).await.unwrap();
    spooler.until_counted().await;
    assert_eq!(seen(&stores.postgres, A).await.0, "3");
    assert_eq!(spooler.spool.aside().unwrap(), []);
    assert!(tasks.stop(SOON).await);
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
