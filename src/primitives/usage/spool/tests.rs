//! What was accepted to disk, on both stores.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
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
    assert_eq!(spooler.shares.is_empty(), aside == 0);
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
    let stores = Stores::new(4).await;
    for (name, store) in stores.both() {
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
    let stores = Stores::new(4).await;
    for (name, store) in stores.both() {
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
