//! What all count by, whatever edition of its policy each has.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use super::kept::{difference, differences, told};
use super::*;
use crate::primitives::usage::count::count_each;

const DAY_US: i64 = 86_400_000_000;

fn utc() -> Calendar {
    Calendar::new(TimeZone::UTC, None)
}

fn new(accepted: usize) -> Verdict {
    Verdict::Counted { accepted, duplicates: 0 }
}

fn without_tags() -> Arc<Metric> {
    Arc::new(Metric { group_by: Vec::new(), ..Metric::clone(&metric()) })
}

/// Counts calls that share a transaction, in a process that has seen the terms where that is given.
async fn together(store: &Store, calls: Vec<Call>) -> Result<Vec<Verdict>, StoreError> {
    let partitions = Days::new(store.clone());
    for call in &calls {
        partitions.make(call.days()).await.unwrap();
    }
    let calls = Arc::new(calls);
    store
        .run(Reach::background(A), 0, move |tx| {
            let calls = Arc::clone(&calls);
            Box::pin(async move { count(tx, &calls[..]).await })
        })
        .await
}

fn call(key: &str, time_us: i64, metric: Arc<Metric>, calendar: &Calendar) -> (Call, Point) {
    let point = point(A, key, time_us, "1", Some("eu"));
    (Call::of(A, vec![metric], vec![point.clone()], calendar), point)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_policy_has_another_time_zone_counts_and_reads_nothing_and_who_shares_its_transaction_does() {
    let stores = Stores::with_timescale(2).await;
    for (name, store) in stores.all() {
        let (now, own) = (now_us(), calendar());
        let other = Verdict::OtherZone("Asia/Kathmandu".to_owned());
        let (first, a) = call("a", now, metric(), &own);
        assert_eq!(together(store, vec![first]).await.unwrap(), [new(1)], "{name}");
        let seen = Arc::new(Seen::default());
        let [(b, of_b), (c, _), (d, of_d)] = [("b", &own), ("c", &utc()), ("d", &own)]
            .map(|(key, calendar)| call(key, now, metric(), calendar));
        let calls = [b, c, d].map(|call| call.having_seen(&seen)).to_vec();
        assert_eq!(together(store, calls).await.unwrap(), [new(1), other.clone(), new(1)], "{name}");
        let (alone, _) = call("e", now, metric(), &utc());
        assert_eq!(together(store, vec![alone.having_seen(&seen)]).await.unwrap(), [other], "{name}");
        assert_eq!(sums(store, A).await, expected(A, &[a, of_b, of_d]), "{name}");

        let midnight =
            |days: i64| Timestamp::from_microsecond((now.div_euclid(DAY_US) + days) * DAY_US).unwrap();
        let range = |window| Range::new(window, midnight(-1), midnight(1), &TimeZone::UTC).unwrap();
        assert_eq!(reading(store, A, "", &range(Window::Hour)).await.1, "3", "{name}: hours are everyone's");
        for (window, tag) in [(Window::Day, ""), (Window::Total, ""), (Window::Hour, "region")] {
            let range = range(window);
            let read: Result<Reading, ReadError> = store
                .read(Reach::background(A), move |tx| {
                    let range = range.clone();
                    Box::pin(async move {
                        read(tx, &SumOf { tenant: A, metric: "calls", tag }, &range, None).await
                    })
                })
                .await;
            let refused = read.unwrap_err().to_string();
            assert_eq!(refused, "the store's days are those of `Asia/Kathmandu`", "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_zone_can_be_changed_before_there_is_usage_and_not_after_that() {
    let stores = Stores::with_timescale(2).await;
    let put =
        |zone: &str| format!("SELECT outrigger_put_usage_terms('{zone}', NULL, '{{}}', '{{}}', '{{}}')");
    for (name, store) in stores.all() {
        let (now, seen) = (now_us(), Arc::new(Seen::default()));
        // Of a correction of nothing the zone is kept, and nothing is counted.
        let (correction, mut point) = call("c", now, metric(), &utc());
        point.corrects = Some(point.key);
        let correction = Call::of(A, vec![metric()], vec![point], correction.calendar());
        let nothing = Verdict::Refused(Refusal { nothing_to_correct: vec![0], ..Refusal::default() });
        let ended = together(store, vec![correction.having_seen(&seen)]).await.unwrap();
        assert_eq!(ended, [nothing], "{name}");
        if name != "sqlite" {
            stores.psql(name, PostgresRole::Owner, &[&put("Asia/Kathmandu")]).unwrap();
        }
        // Who has seen the one before does not count by it.
        let (own, point) = call("a", now, metric(), &calendar());
        assert_eq!(together(store, vec![own.having_seen(&seen)]).await.unwrap(), [new(1)], "{name}");
        assert_eq!(sums(store, A).await, expected(A, &[point]), "{name}");
        if name != "sqlite" {
            let refused = stores.psql(name, PostgresRole::Owner, &[&put("UTC")]).unwrap_err().to_string();
            let words = "are those of `Asia/Kathmandu`, and the policy has `time_zone: UTC`: `time_zone: Asia/Kathmandu` is right";
            assert!(refused.contains(words), "{name}: {refused}");
            let refused = stores.psql(name, PostgresRole::App, &[&put("UTC")]).unwrap_err().to_string();
            assert!(refused.contains("permission denied"), "{name}: {refused}");
        }
        let (other, _) = call("b", now, metric(), &utc());
        let ended = together(store, vec![other]).await.unwrap();
        assert_eq!(ended, [Verdict::OtherZone("Asia/Kathmandu".to_owned())], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_promised_is_counted_in_the_store_s_zone_whatever_its_policy_said() {
    let stores = Stores::with_timescale(2).await;
    for (name, store) in stores.all() {
        let now = now_us();
        let (first, a) = call("a", now, metric(), &calendar());
        together(store, vec![first]).await.unwrap();
        let closes = Calendar::new(TimeZone::UTC, Some(0));
        // In the hours in which a day of UTC is another one than Kathmandu's.
        let time_us = now.div_euclid(DAY_US) * DAY_US - 3_600_000_000;
        let (promised, b) = call("b", time_us, metric(), &closes);
        Days::new(store.clone()).make(promised.days()).await.unwrap();
        let counted: Result<_, StoreError> = store
            .run(Reach::background(A), 0, move |tx| {
                let promised = promised.clone();
                Box::pin(async move { count_each(tx, &[(&promised, Timestamp::now())], None, false).await })
            })
            .await;
        assert_eq!(counted.unwrap().accepted, 1, "{name}");
        assert_eq!(sums(store, A).await, expected(A, &[a, b]), "{name}");
    }
}

const OF_LAST_MONTH: &str = "SELECT coalesce(sum(count), 0) FROM usage_daily \
                             WHERE tag = '' AND adjusts = '-infinity' AND start < date_trunc('month', now() AT TIME ZONE 'Asia/Kathmandu')";
const OF_ALL: &str = "SELECT coalesce(sum(count), 0) FROM usage_daily WHERE tag = ''";

/// Months begin and cease to close while calls are counted by processes that have seen how it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_month_that_is_closed_stays_as_it_is_whoever_counts_and_whatever_they_had_seen() {
    let stores = Stores::new(6).await;
    let (store, name) = (&stores.postgres, "postgres");
    let today = zone().to_datetime(Timestamp::now()).date();
    let month = calendar().begin(today.first_of_month()).unwrap().as_microsecond();
    let (mut counting, ends) = (tokio::task::JoinSet::new(), Arc::new(AtomicBool::new(false)));
    for process in 0..4_u64 {
        let (store, seen, ends) = (store.clone(), Arc::new(Seen::default()), Arc::clone(&ends));
        counting.spawn(async move {
            let mut random = fastrand::Rng::with_seed(process);
            for number in (0..).take_while(|_| !ends.load(Ordering::Relaxed)) {
                let time_us = month - random.i64(1..20 * 24) * 3_600_000_000;
                let (call, _) = call(&format!("{process}-{number}"), time_us, metric(), &calendar());
                assert_eq!(together(&store, vec![call.having_seen(&seen)]).await.unwrap(), [new(1)]);
            }
        });
    }
    let ask = |sql: &str| -> i64 {
        stores.psql(name, PostgresRole::Superuser, &[sql]).unwrap().trim().parse().unwrap()
    };
    let close = |closes: &str| {
        let put =
            format!("SELECT outrigger_put_usage_terms('Asia/Kathmandu', {closes}, '{{}}', '{{}}', '{{}}')");
        stores.psql(name, PostgresRole::Owner, &[&put]).unwrap();
    };
    let some_more = || {
        let all = ask(OF_ALL);
        while ask(OF_ALL) < all + 8 {}
    };
    for change in 0..6 {
        close("0");
        let closed = ask(OF_LAST_MONTH);
        some_more();
        assert_eq!(ask(OF_LAST_MONTH), closed, "after {change} changes");
        close("NULL");
        some_more();
    }
    ends.store(true, Ordering::Relaxed);
    counting.join_all().await;
    let (of_month, all) = (ask(OF_LAST_MONTH), ask(OF_ALL));
    assert!(of_month > 0 && of_month < all, "some are adjustments: {of_month} of {all}");
    assert_eq!(differences(&stores, name, (55, -2)).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terms_change_once_all_that_was_counted_by_them_is_committed() {
    const WAITS: &str = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'outrigger_store'::regclass \
                         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let stores = Stores::new(2).await;
    let seen = Arc::new(Seen::default());
    // By terms that are asked for, and by those that were seen before.
    for (key, has_seen) in [("a", false), ("b", true)] {
        if has_seen {
            let (before, _) = call("before", now_us(), metric(), &calendar());
            together(&stores.postgres, vec![before.having_seen(&seen)]).await.unwrap();
        }
        let call = call(key, now_us(), metric(), &calendar()).0.having_seen(&seen);
        Days::new(stores.postgres.clone()).make(call.days()).await.unwrap();
        let (counted, ends) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (store, calls) = (stores.postgres.clone(), Arc::new([call]));
        let (is_counted, may_end) = (Arc::clone(&counted), Arc::clone(&ends));
        let counting = tokio::spawn(async move {
            let ended: Result<(), StoreError> = store
                .run(Reach::background(A), 0, move |tx| {
                    let (calls, counted, ends) =
                        (Arc::clone(&calls), Arc::clone(&is_counted), Arc::clone(&may_end));
                    Box::pin(async move {
                        assert_eq!(count(tx, &calls[..]).await?, [new(1)]);
                        counted.notify_one();
                        ends.notified().await;
                        Ok(())
                    })
                })
                .await;
            ended
        });
        counted.notified().await;
        let database = &stores._database.database;
        tokio::task::block_in_place(|| {
            std::thread::scope(|scope| {
                let put = scope.spawn(|| database.psql(PostgresRole::Owner, &[CLOSING]));
                let waits = || database.psql(PostgresRole::Superuser, &[WAITS]).unwrap().trim() == "1";
                while !put.is_finished() && !waits() {}
                assert!(!put.is_finished(), "{key}: changed beside what was counted by others");
                ends.notify_one();
                put.join().unwrap().unwrap();
            });
        });
        counting.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_that_one_policy_names_all_count_by() {
    let stores = Stores::with_timescale(2).await;
    for (name, store) in stores.all().filter(|(name, _)| *name != "sqlite") {
        let (now, seen) = (now_us(), Arc::new(Seen::default()));
        let (first, a) = call("a", now, without_tags(), &calendar());
        together(store, vec![first.having_seen(&seen)]).await.unwrap();
        let (with, b) = call("b", now, metric(), &calendar());
        together(store, vec![with]).await.unwrap();
        // Of a process that has seen none, and whose policy has none.
        let (without, c) = call("c", now, without_tags(), &calendar());
        together(store, vec![without.having_seen(&seen)]).await.unwrap();
        let all = expected(A, &[a, b.clone(), c.clone()]);
        let of_tag = expected(A, &[b, c]);
        let right: BTreeMap<_, _> = all
            .into_iter()
            .filter(|(of, _)| of.starts_with("= "))
            .chain(of_tag.into_iter().filter(|(of, _)| !of.starts_with("= ")))
            .collect();
        assert_eq!(sums(store, A).await, right, "{name}");
        // `outrigger migrate` takes away what its policy names no more.
        let put = "SELECT outrigger_put_usage_terms('Asia/Kathmandu', NULL, '{calls}', '{}', '{}')";
        stores.psql(name, PostgresRole::Owner, &[put]).unwrap();
        let (without, _) = call("d", now, without_tags(), &calendar());
        together(store, vec![without.having_seen(&seen)]).await.unwrap();
        let counts = sums(store, A).await;
        let count = |tag: &str| counts.iter().find(|(of, _)| of.starts_with(tag)).unwrap().1.1;
        assert_eq!((count("= "), count("region=eu ")), (4, 2), "{name}");
    }
}

/// Runs statements on a store, as who may do everything.
async fn by_hand(stores: &Stores, (name, store): (&str, &Store), postgres: &[&str], sqlite: &str) {
    match store {
        Store::Postgres(_) => drop(stores.psql(name, PostgresRole::Superuser, postgres).unwrap()),
        Store::Sqlite(file) => {
            let batch = sqlite.to_owned();
            file.write(move |connection| connection.execute_batch(&batch)).await.unwrap();
        }
    }
}

fn sorted(told: Vec<Told>) -> (Vec<String>, Vec<NotCompared>) {
    let (mut differences, mut others) = (Vec::new(), Vec::new());
    for what in told {
        match what {
            Told::NotCompared(what) => others.push(what),
            what @ Told::Difference(_) => differences.push(difference(what)),
        }
    }
    differences.sort();
    (differences, others)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sums_of_a_tag_before_it_was_declared_are_no_difference_and_what_was_changed_by_hand_is() {
    let stores = Stores::with_timescale(2).await;
    for (name, store) in stores.all() {
        let now = now_us();
        let (before, _) = call("a", now - 4 * DAY_US, without_tags(), &calendar());
        together(store, vec![before]).await.unwrap();
        let (late, _) = call("b", now - 4 * DAY_US, metric(), &calendar());
        let (after, _) = call("c", now, metric(), &calendar());
        together(store, vec![late, after]).await.unwrap();
        // As if that had been two days ago.
        let back = "UPDATE usage_tags SET since = since - interval '2 days' WHERE tag = 'region'";
        let back_us = "UPDATE usage_tags SET since_us = since_us - 172800000000 WHERE tag = 'region'";
        by_hand(&stores, (name, store), &[back], back_us).await;
        let (found, left_out) = sorted(told(&stores, name, (6, -2)).await);
        assert_eq!(found, [""; 0], "{name}");
        let [NotCompared::Tag { metric, tag, before, sums: 2 }] = &left_out[..] else {
            panic!("{name}: {left_out:?}")
        };
        assert_eq!((metric.as_str(), tag.as_str()), ("calls", "region"));
        let expected_us = now - DAY_US;
        assert!((before.as_microsecond() - expected_us).abs() < 60_000_000, "{name}: {before}");

        let changes = [
            "UPDATE usage_hourly SET count = 7 WHERE tag = 'region' AND start > now() - interval '1 day'",
            "UPDATE usage_daily SET value = 9 WHERE tag = '' AND start < current_date - 2",
        ];
        let on_sqlite = format!(
            "UPDATE usage_hourly SET count = 7 WHERE tag = 'region' AND start > {}; \
             UPDATE usage_daily SET value = '9' WHERE tag = '' AND start < date('now', '-2 days')",
            now - DAY_US
        );
        by_hand(&stores, (name, store), &changes, &on_sqlite).await;
        let (found, again) = sorted(told(&stores, name, (6, -2)).await);
        assert_eq!(found, ["day = kept 9 2 records 2 2", "hour region=eu kept 1 7 records 1 1"], "{name}");
        assert_eq!(again, left_out, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn days_whose_records_were_dropped_are_no_difference_and_what_was_changed_by_hand_is() {
    let stores = Stores::with_timescale(2).await;
    for (name, store) in stores.all() {
        let (first, _) = call("a", now_us(), metric(), &calendar());
        together(store, vec![first]).await.unwrap();
        let rows = "WITH sums AS (SELECT '00000000-0000-0000-0000-000000000001'::uuid tenant, ago, (current_date - ago)::timestamp AT TIME ZONE 'UTC' \
                    + interval '12 hours' AS start FROM unnest('{403,398}'::int[]) ago) ";
        let hours = format!(
            "{rows} INSERT INTO usage_hourly SELECT tenant, 'calls', '', start, '', '-infinity', ago, 1 FROM sums"
        );
        let at = |ago: i64| (now_us().div_euclid(DAY_US) - ago) * DAY_US + DAY_US / 2;
        let hour = |ago: i64| {
            let tenant = A.simple();
            format!(
                "INSERT INTO usage_hourly VALUES (x'{tenant}', 'calls', '', {}, '', '', '{ago}', 1);",
                at(ago)
            )
        };
        // The record that is gone with those of its day.
        let event = format!(
            "INSERT INTO usage_events VALUES ({}, x'{}', 'calls', '403', NULL, NULL);",
            at(403),
            A.simple()
        );
        // Of another file's rows, since they go in the order in which they came.
        let in_front = "UPDATE usage_events SET rowid = rowid + 10;";
        let event = event.replace(
            "usage_events VALUES (",
            "usage_events (rowid, time_us, tenant, metric, value, tags, metadata) VALUES (1, ",
        );
        let on_sqlite = [in_front, &event, &hour(403), &hour(398)].concat();
        by_hand(&stores, (name, store), &[&hours], &on_sqlite).await;
        housekeeping::round(store, &Leases::new(store.clone(), Owner::of_this_process()), 400).await.unwrap();
        let (found, left_out) = sorted(told(&stores, name, (405, 395)).await);
        assert_eq!(found, ["hour = kept 398 1 records -"], "{name}");
        let [NotCompared::Dropped { before }] = &left_out[..] else { panic!("{name}: {left_out:?}") };
        // SQLite drops to the instant, and whole days are compared.
        let ago = now_us().div_euclid(DAY_US) - before.as_microsecond() / DAY_US;
        assert_eq!(ago, if name == "sqlite" { 399 } else { 400 }, "{name}");
        let (found, left_out) = sorted(told(&stores, name, (410, 402)).await);
        assert_eq!((found, left_out.len()), (Vec::new(), 1), "{name}: nothing can be compared");
        assert_eq!(sorted(told(&stores, name, (1, -1)).await), (Vec::new(), Vec::new()), "{name}");
    }
}

/// A zone that calls itself UTC, as PostgreSQL knows it, and is another one: a version of the time zones that differs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn days_are_those_of_this_program_s_time_zones_and_not_of_postgresql_s() {
    let stores = Stores::with_timescale(2).await;
    let own = Calendar::new(TimeZone::posix("<+0547>-05:47").unwrap(), Some(0));
    assert_eq!(own.zone_name(), "UTC");
    for name in ["postgres", "timescale"] {
        let records = "INSERT INTO usage_adjustments (booked_at, time, tenant_id, metric, value) \
                       VALUES ('2026-03-10 18:13:00Z', '2026-02-28 18:12:59Z', gen_random_uuid(), 'calls', 2), \
                       ('2026-03-10 18:12:59Z', '2026-02-28 18:13:00Z', gen_random_uuid(), 'calls', 3)";
        stores.psql(name, PostgresRole::Superuser, &[records]).unwrap();
        let store = stores.as_owner(name).await;
        let calendar = own.clone();
        let range = ("2026-03-10T00:00:00Z".parse().unwrap(), "2026-03-11T00:00:00Z".parse().unwrap());
        let found: Result<_, StoreError> = store
            .read(Reach::nobody(), move |tx| {
                let calendar = calendar.clone();
                Box::pin(async move {
                    let Tx::Postgres(tx) = tx else { panic!("of SQLite") };
                    super::super::postgres::records(tx, range, &[], &calendar).await
                })
            })
            .await;
        let found = found.unwrap().into_iter().filter_map(|(of, added)| match of.start {
            Start::Day(day) => Some(format!("{day} adjusts {} {}", of.adjusts?, added.value)),
            Start::Hour(_) => None,
        });
        let mut found: Vec<String> = found.collect();
        found.sort();
        assert_eq!(found, ["2026-03-10 adjusts 2026-03-01 3", "2026-03-11 adjusts 2026-02-01 2"], "{name}");
    }
}
