//! What is kept: for how long, and that sums are those of their records.

use super::*;

const RECORDS_OF_OLD: &str = "INSERT INTO usage_events SELECT (current_date - ago)::timestamp AT TIME ZONE 'UTC', gen_random_uuid(), \
                              'calls', 1 FROM unnest('{399,401}'::int[]) ago";
const CHUNKS: &str = "SELECT string_agg('chunk ' || current_date - (range_start AT TIME ZONE 'UTC')::date, ',' ORDER BY range_start) \
                      FROM timescaledb_information.chunks WHERE hypertable_name = 'usage_events'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_go_when_no_record_of_their_day_is_taken_and_records_after_the_retention() {
    let stores = Stores::with_timescale(2).await;
    let day = |ago: i32| super::super::Day::of(Timestamp::now()).number() - ago;
    for (name, store) in stores.all() {
        let leases = Leases::new(store.clone(), Owner::of_this_process());
        let left = match store {
            Store::Postgres(_) => {
                let psql = |sql: &[&str]| stores.psql(name, PostgresRole::Superuser, sql).unwrap();
                let mut partitions = vec![("dedupe", 99), ("dedupe", 101)];
                if name == "timescale" {
                    psql(&[RECORDS_OF_OLD]);
                } else {
                    partitions.extend([("events", 399), ("events", 401)]);
                }
                for (table, ago) in partitions {
                    psql(&[&format!(
                        "DO $$ DECLARE day date := current_date - {ago}; BEGIN EXECUTE format('CREATE TABLE usage_{table}_%s \
                         PARTITION OF usage_{table} FOR VALUES FROM (%L) TO (%L)', to_char(day, 'YYYYMMDD'), day, day + 1); END $$"
                    )]);
                }
                housekeeping::round(store, &leases, 400).await.unwrap();
                let left = "SELECT string_agg(split_part(relname, '_', 2) || ' ' || current_date - to_date(right(relname, 8), 'YYYYMMDD'), \
                            ',' ORDER BY relname) FROM pg_class WHERE relname ~ '^usage_(events|dedupe)_[0-9]+$'";
                let chunks = if name == "timescale" { psql(&[CHUNKS]) } else { String::new() };
                format!("{} {}", psql(&[left]).trim(), chunks.trim()).trim().to_owned()
            }
            Store::Sqlite(sqlite) => {
                let rows: String = [99, 101]
                    .map(|ago| format!("INSERT INTO usage_dedupe VALUES ({}, {ago}, x'00', 1);", day(ago)))
                    .concat();
                let events = [401, 399].map(|ago| {
                    let time_us = i64::from(day(ago)) * 86_400_000_000;
                    format!(
                        "INSERT INTO usage_events VALUES ({time_us}, x'{}', 'calls', '1', NULL, NULL);",
                        "00".repeat(16)
                    )
                });
                let batch = rows + &events.concat();
                sqlite.write(move |connection| connection.execute_batch(&batch)).await.unwrap();
                housekeeping::round(store, &leases, 400).await.unwrap();
                let today = day(0);
                let left = sqlite.read(move |connection| {
                    let days = "SELECT (SELECT group_concat(?1 - day) FROM usage_dedupe) || ' ' || \
                                (SELECT group_concat(?1 - time_us / 86400000000) FROM usage_events)";
                    connection.query_row(days, [today], |row| row.get::<_, String>(0))
                });
                left.await.unwrap()
            }
        };
        let expected = match name {
            "sqlite" => "99 399",
            "timescale" => "dedupe 99,dedupe 0,dedupe -1,dedupe -2 chunk 399",
            _ => "dedupe 99,dedupe 0,dedupe -1,dedupe -2,events 399,events 0,events -1,events -2",
        };
        assert_eq!(left, expected, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conflicts_that_were_kept_long_enough_go_in_one_round_however_many_they_are() {
    let stores = Stores::with_timescale(2).await;
    for (name, store) in stores.all() {
        let leases = Leases::new(store.clone(), Owner::of_this_process());
        let left = match store {
            Store::Postgres(_) => {
                // More than two steps drop.
                let found = "INSERT INTO usage_conflicts (tenant_id, metric, idempotency_key, fingerprint, found_at, time, value) \
                             SELECT gen_random_uuid(), 'calls', key::text, 1, now() - make_interval(days => CASE WHEN key > 25000 THEN 399 ELSE 402 END), now(), 1 \
                             FROM generate_series(1, 25002) key";
                stores.psql(name, PostgresRole::Superuser, &[found]).unwrap();
                assert!(housekeeping::round(store, &leases, 400).await.unwrap(), "{name}");
                let left = "SELECT count(*) FROM usage_conflicts";
                stores.psql(name, PostgresRole::Superuser, &[left]).unwrap().trim().parse().unwrap()
            }
            Store::Sqlite(sqlite) => {
                let day = |ago: i32| {
                    i64::from(super::super::Day::of(Timestamp::now()).number() - ago) * 86_400_000_000
                };
                let found = format!(
                    "WITH RECURSIVE keys (key) AS (VALUES (1) UNION ALL SELECT key + 1 FROM keys WHERE key < 1202) \
                     INSERT INTO usage_conflicts (tenant, metric, idempotency_key, fingerprint, found_us, time_us, value) \
                     SELECT x'{}', 'calls', key, 1, CASE WHEN key > 1200 THEN {} ELSE {} END, 0, '1' FROM keys",
                    "00".repeat(16),
                    day(399),
                    day(402)
                );
                sqlite.write(move |connection| connection.execute_batch(&found)).await.unwrap();
                assert!(housekeeping::round(store, &leases, 400).await.unwrap(), "{name}");
                let left = "SELECT count(*) FROM usage_conflicts";
                let left =
                    sqlite.read(|connection| connection.query_row(left, [], |row| row.get::<_, i64>(0)));
                left.await.unwrap()
            }
        };
        assert_eq!(left, 2, "{name}");
    }
}

/// What is told of the days from so many ago to so many ago, as who sees everyone's records.
pub(super) async fn told(stores: &Stores, name: &str, (from, to): (i64, i64)) -> Vec<Told> {
    let store = stores.as_owner(name).await;
    let midnight = |days: i64| {
        let day = TimeZone::UTC.to_datetime(Timestamp::now()).date().checked_sub(days.days()).unwrap();
        day.to_zoned_datetime(TimeZone::UTC).unwrap().timestamp()
    };
    let mut told = Vec::new();
    reconcile(&store, (midnight(from), midnight(to)), |what| told.push(what)).await.unwrap();
    told
}

/// The differences among them, where all is compared.
pub(super) async fn differences(stores: &Stores, name: &str, days: (i64, i64)) -> Vec<String> {
    told(stores, name, days).await.into_iter().map(difference).collect()
}

pub(super) fn difference(told: Told) -> String {
    let Told::Difference(Difference { of, kept, records }) = told else { panic!("{told:?}") };
    let shown = |added: Option<Added>| {
        added.map_or("-".to_owned(), |added| format!("{} {}", added.value, added.count))
    };
    let what = matches!(of.start, Start::Day(_)).then_some("day").unwrap_or("hour");
    format!("{what} {}={} kept {} records {}", of.tag, of.tag_value, shown(kept), shown(records))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sums_made_anew_from_the_records_are_those_that_are_kept_and_what_was_changed_by_hand_is_found() {
    let stores = Stores::with_timescale(4).await;
    let mut random = fastrand::Rng::with_seed(7);
    for (name, store) in stores.all() {
        let (partitions, now) = (Days::new(store.clone()), now_us());
        for number in 0..40 {
            let points: Vec<Point> = (0..random.usize(1..20))
                .map(|_| {
                    let (key, hours) = (random.u32(0..400).to_string(), random.i64(0..35 * 24));
                    let value = format!("{}.{:09}", random.i32(-5..50), random.u32(0..1_000_000_000));
                    let region = [None, Some("eu"), Some("us")][random.usize(0..3)];
                    point([A, B][number % 2], &key, now - hours * 3_600_000_000, &value, region)
                })
                .collect();
            let tenant = [A, B][number % 2];
            // Half of them come when months close, so that some are adjustments.
            let calendar = Calendar::new(zone(), (number >= 20).then_some(0));
            if number == 20 && name != "sqlite" {
                stores.psql(name, PostgresRole::Owner, &[CLOSING]).unwrap();
            }
            let call = Call::of(tenant, vec![metric()], points, &calendar);
            partitions.make(call.days()).await.unwrap();
            as_tenant(store, tenant, call).await.unwrap();
        }
        assert_eq!(differences(&stores, name, (40, -2)).await, [""; 0], "{name}");
        let points = [point(A, "last", now, "1.5", Some("asia"))];
        counted(&partitions, store, A, &points).await;
        let changes = [
            "UPDATE usage_hourly SET value = '1.500000001' WHERE tag_value = 'asia'",
            "UPDATE usage_daily SET count = 2 WHERE tag_value = 'asia'",
        ];
        match store {
            Store::Postgres(_) => {
                stores.psql(name, PostgresRole::Superuser, &changes).unwrap();
            }
            Store::Sqlite(sqlite) => {
                let batch = changes.join(";");
                sqlite.write(move |connection| connection.execute_batch(&batch)).await.unwrap();
            }
        }
        let expected =
            ["day region=asia kept 1.5 2 records 1.5 1", "hour region=asia kept 1.500000001 1 records 1.5 1"];
        let mut found = differences(&stores, name, (40, -2)).await;
        found.sort();
        assert_eq!(found, expected, "{name}");
    }
}
