//! What cannot be counted: put aside, left to a later release, or held until somebody looked; and taken back.

use jiff::SignedDuration;

use super::super::requeue::{RequeueError, Requeued, requeue};
use super::super::{ASIDE, SpoolError};
use super::*;
use crate::store::spool::AppendError;

const C: Uuid = Uuid::from_u128(3);

/// Names of what was put aside.
fn aside(directory: &Path) -> Vec<String> {
    let files = fs::read_dir(directory.join("refused")).unwrap().map(|file| file.unwrap().file_name());
    let mut names: Vec<String> = files.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

fn days(days: i64) -> SignedDuration {
    SignedDuration::from_hours(24 * days)
}

fn wrong_by(wrong_by: SignedDuration) -> Clock {
    Clock { wrong_by }
}

/// PostgreSQL refuses this tenant's records with this code.
pub(super) fn refuse(stores: &Stores, tenant: Uuid, code: &str) {
    let function = format!(
        "CREATE OR REPLACE FUNCTION refuses() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF NEW.tenant_id = '{tenant}' THEN RAISE EXCEPTION 'refused' USING ERRCODE = '{code}'; END IF; RETURN NEW; END $$"
    );
    let trigger = "CREATE OR REPLACE TRIGGER refuses BEFORE INSERT ON usage_events FOR EACH ROW EXECUTE FUNCTION refuses()";
    stores.psql("postgres", PostgresRole::Superuser, &[&function, trigger]).unwrap();
}

pub(super) fn refuse_no_more(stores: &Stores) {
    stores.psql("postgres", PostgresRole::Superuser, &["DROP TRIGGER refuses ON usage_events"]).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_counted_is_put_aside_and_keeps_nobody_waiting() {
    let stores = Stores::with_timescale(4).await;
    for (name, store) in stores.all() {
        let directory = tempfile::tempdir().unwrap();
        let mut no_entry = entry_of(A, &[("k3", "1")], hour());
        no_entry[0] = 0;
        let old = entry_of(A, &[("k2", "1")], hour() - (24 * 150).hours());
        let entries =
            vec![entry_of(A, &[("k1", "1")], hour()), old, no_entry, entry_of(B, &[("k1", "2")], hour())];
        append(directory.path(), entries).await;
        let metrics = count_all(store, directory.path()).await;
        assert!(metrics.contains("outrigger_usage_spool_refused_total 2"), "{name}: {metrics}");
        assert_eq!(
            (seen(store, A).await.0, seen(store, B).await.0),
            ("1".to_owned(), "2".to_owned()),
            "{name}"
        );
        let [of_a, unknown] = &aside(directory.path())[..] else { panic!("{name}: two files") };
        assert!(of_a.starts_with(&format!("{A}.")) && of_a.ends_with(".entry"), "{name}: {of_a}");
        assert!(unknown.starts_with("unknown.") && unknown.ends_with(".entry"), "{name}: {unknown}");
        let kept = fs::read(directory.path().join("refused").join(of_a)).unwrap();
        assert_eq!(&*entry::read(&kept).unwrap().keys, [Box::from("k2")], "{name}: as it was accepted");
        // Another one, of a life that began with nothing, is not written over it.
        append(directory.path(), vec![entry_of(A, &[("k4", "1")], hour() - (24 * 150).hours())]).await;
        count_all(store, directory.path()).await;
        assert_eq!(aside(directory.path()).len(), 3, "{name}");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_later_release_wrote_stays_where_it_is_and_the_rest_is_counted() {
    let stores = Stores::new(4).await;
    for (name, store) in stores.both() {
        let directory = tempfile::tempdir().unwrap();
        let mut later = entry_of(A, &[("later", "1")], hour());
        later[0] = entry::VERSION + 1;
        let entries = vec![
            entry_of(A, &[("k1", "1")], hour()),
            later.clone(),
            entry_of(A, &[("k2", "1")], hour()),
            entry_of(B, &[("k1", "2")], hour()),
        ];
        append(directory.path(), entries).await;
        // Twice, as it is found again by every process of this release.
        for _ in 0..2 {
            let running = Running::on(store, directory.path());
            running.accept(entry_of(A, &[("k3", "1")], hour())).await;
            running.spooler.until_counted(A).await;
            let oldest = "outrigger_usage_spool_oldest_timestamp_seconds 0";
            let refused = "outrigger_usage_spool_refused_total 0";
            let metrics = running.metrics();
            assert!(
                !metrics.contains(oldest) && metrics.contains(refused),
                "{name}: somebody is told: {metrics}"
            );
            running.stop().await;
            assert_eq!(
                (seen(store, A).await.0, seen(store, B).await.0),
                ("3".to_owned(), "2".to_owned()),
                "{name}"
            );
            assert_eq!(segments(directory.path()).len(), 1, "{name}: its segment, and no other");
        }
        let spool =
            Spool::open(directory.path(), Bounds { max_bytes: MAX_BYTES, segment_bytes: SEGMENT_BYTES });
        let mut kept = Vec::new();
        spool.unwrap().visit(|entry| kept.push(entry.payload.clone())).unwrap();
        assert!(kept.contains(&later), "{name}");
    }
}

/// This machine's clock says that all is too old, and PostgreSQL's that it is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_wrong_puts_nothing_aside() {
    let stores = Stores::new(4).await;
    let store = &stores.postgres;
    let directory = tempfile::tempdir().unwrap();
    let running = Running::with_clock(store, directory.path(), wrong_by(days(200)));
    for number in 0..10 {
        running.accept(entry_of([A, B][number % 2], &[(&number.to_string(), "1")], hour())).await;
    }
    running.spooler.until_counted(A).await;
    running.spooler.until_counted(B).await;
    assert_eq!((seen(store, A).await.0, seen(store, B).await.0), ("5".to_owned(), "5".to_owned()));
    running.stop().await;
    // The other way round PostgreSQL makes no day for it, and this machine sees nothing wrong.
    let running = Running::with_clock(store, directory.path(), wrong_by(days(-150)));
    running.accept(entry_of(A, &[("old", "1")], hour() - days(150))).await;
    running.until_metric("outrigger_usage_spool_tenants_held_count 1").await;
    running.accept(entry_of(B, &[("k", "1")], hour())).await;
    running.spooler.until_counted(B).await;
    assert_eq!(seen(store, B).await.0, "6");
    assert_eq!(running.spooler.spool.aside().unwrap(), []);
    running.stop().await;
    // Once both agree it is too old.
    let metrics = count_all(store, directory.path()).await;
    assert!(metrics.contains("outrigger_usage_spool_refused_total 1"), "{metrics}");
}

/// SQLite has no other clock than this machine's: that the calls of more than one tenant are refused says that it is wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_calls_of_several_tenants_are_refused_in_a_row_they_wait() {
    let stores = Stores::new(4).await;
    let store = &stores.sqlite;
    let directory = tempfile::tempdir().unwrap();
    let entries = (0..20).map(|number| entry_of([A, B][number % 2], &[(&number.to_string(), "1")], hour()));
    append(directory.path(), entries.collect()).await;
    let running = Running::with_clock(store, directory.path(), wrong_by(days(200)));
    running.until_metric("outrigger_usage_spool_tenants_held_count 2").await;
    running.until_metric("outrigger_usage_spool_refused_total 1").await;
    running.stop().await;
    assert_eq!(aside(directory.path()).len(), 1);
    // With the right one all is counted, and what was put aside too.
    requeued(directory.path(), false).await.unwrap();
    count_all(store, directory.path()).await;
    assert_eq!((seen(store, A).await.0, seen(store, B).await.0), ("10".to_owned(), "10".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_counted_between_says_that_only_some_entries_are_wrong() {
    let stores = Stores::new(4).await;
    for (name, store) in stores.both() {
        let directory = tempfile::tempdir().unwrap();
        let old = |tenant| entry_of(tenant, &[("old", "1")], hour() - days(150));
        append(directory.path(), vec![old(A), old(B)]).await;
        let running = Running::on(store, directory.path());
        // By PostgreSQL's clock and this machine's they are too old; SQLite has but the one.
        let (held, refused) = if let Store::Postgres(_) = store { (0, 2) } else { (1, 1) };
        running.until_metric(&format!("outrigger_usage_spool_refused_total {refused}")).await;
        running.until_metric(&format!("outrigger_usage_spool_tenants_held_count {held}")).await;
        running.accept(entry_of(C, &[("k", "1")], hour())).await;
        running.until_metric("outrigger_usage_spool_refused_total 2").await;
        running.until_metric("outrigger_usage_spool_tenants_held_count 0").await;
        running.until_metric("outrigger_usage_points_total{outcome=\"accepted\"} 1").await;
        assert_eq!(seen(store, C).await.0, "1", "{name}");
        running.stop().await;
    }
}

async fn requeued(directory: &Path, is_dry_run: bool) -> Result<Vec<Requeued>, RequeueError> {
    let mut told = Vec::new();
    requeue(directory, &[], is_dry_run, |one| told.push(one.clone())).await?;
    Ok(told)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_put_aside_is_taken_back_and_counts_once() {
    let stores = Stores::new(4).await;
    let (store, directory) = (&stores.postgres, tempfile::tempdir().unwrap());
    let directory = directory.path();
    assert!(matches!(requeued(&directory.join("none"), true).await, Err(RequeueError::NoFolder(_))));
    refuse(&stores, A, "check_violation");
    let entries = vec![
        entry_of(A, &[("k1", "1"), ("k2", "2")], hour()),
        entry_of(A, &[("k1", "9"), ("k3", "4")], hour()),
        entry_of(B, &[("k", "1")], hour()),
    ];
    append(directory, entries).await;
    count_all(store, directory).await;
    assert_eq!((seen(store, A).await.0, aside(directory).len()), ("0".to_owned(), 2));
    refuse_no_more(&stores);
    let refused = directory.join("refused");
    let copies: Vec<_> = aside(directory)
        .into_iter()
        .map(|name| (fs::read(refused.join(&name)).unwrap(), refused.join(name)))
        .collect();
    fs::write(refused.join("notes.txt"), "of an operator").unwrap();
    let running = Running::on(store, directory);
    assert!(
        matches!(requeued(directory, false).await, Err(RequeueError::Open { .. })),
        "a process has the folder"
    );
    running.stop().await;
    let only = requeue(directory, &["nothing".to_owned()], false, |_| ()).await;
    assert!(matches!(only, Err(RequeueError::NoFile(_))));
    let dry = requeued(directory, true).await.unwrap();
    assert_eq!((aside(directory).len(), segments(directory).len()), (3, 0), "nothing is done");
    assert_eq!(requeued(directory, false).await.unwrap(), dry);
    let records: Vec<_> =
        dry.iter().map(|one| one.call.as_ref().map(|call| (call.tenant, call.records))).collect();
    assert_eq!(records[..2], [Ok((A, 2)), Ok((A, 2))], "{dry:?}");
    assert!(records[2].is_err() && dry[2].file == "notes.txt", "{dry:?}");
    assert_eq!(aside(directory), ["notes.txt"]);
    fs::remove_file(refused.join("notes.txt")).unwrap();
    // As after a kill between the two steps: they are there twice.
    copies.iter().for_each(|(bytes, path)| fs::write(path, bytes).unwrap());
    assert_eq!(requeued(directory, false).await.unwrap()[..], dry[..2]);
    count_all(store, directory).await;
    assert_eq!(
        seen(store, A).await,
        ("7".to_owned(), vec!["k1=9".to_owned()]),
        "in the order in which they came"
    );
    assert_eq!((aside(directory).len(), requeued(directory, false).await.unwrap()), (0, Vec::new()));
}

/// Files that an operator removed make room at once, whoever's they were.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_put_aside_takes_room_until_somebody_removes_it() {
    let stores = Stores::new(4).await;
    let directory = tempfile::tempdir().unwrap();
    let running = Running::on(&stores.sqlite, directory.path());
    let spooler = &running.spooler;
    let put_aside = |number: u32, bytes: u64| {
        let contents = vec![b'x'; usize::try_from(bytes).unwrap()];
        let path = spooler.spool.put_aside(&format!("{B}.{number}.{ASIDE}"), &contents).unwrap();
        spooler.shares.add_aside(B, bytes);
        path
    };
    let all = put_aside(1, MAX_BYTES - 100);
    let take = || spooler.take((A, 101), 0);
    assert!(matches!(take().await, Err(SpoolError::Append(AppendError::Full))));
    fs::remove_file(all).unwrap();
    put_aside(2, MAX_BYTES / 4);
    until(async || take().await.is_ok(), || "what was removed still counts".to_owned()).await;
    let of_b = spooler.take((B, 101), 0).await;
    assert!(matches!(of_b, Err(SpoolError::ShareTaken)), "what is there counts as its tenant's: {of_b:?}");
    running.stop().await;
}
