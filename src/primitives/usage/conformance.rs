//! What all stores do alike, TimescaleDB among them.

mod kept;
mod late;
mod terms;
mod timescale;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _, civil};
use rig::PostgresRole;
use uuid::Uuid;

use super::{
    Ack, Added, Amount, Calendar, Call, Days, Difference, Late, Metric, NotCompared, Point, PointKey, Range,
    ReadError, Reading, Refusal, Rollup, Seen, Start, Sum, SumOf, Told, Verdict, Window, count, fingerprint,
    housekeeping, read, reconcile,
};
use crate::leases::{Leases, Owner};
use crate::names::Name;
use crate::store::bench::Stores;
use crate::store::{Reach, Store, StoreError, Tx};

const A: Uuid = Uuid::from_u128(1);
const B: Uuid = Uuid::from_u128(2);
const DAILY: &str = "SELECT tag || '=' || tag_value || ' ' || start, trim_scale(value)::text, count FROM usage_daily \
                     WHERE tenant_id = current_setting('app.tenant_id')::uuid ORDER BY metric, tag, start, tag_value";
const HOURLY: &str = "SELECT tag || '=' || tag_value || ' ' || to_char(start AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), \
                      trim_scale(value)::text, count FROM usage_hourly \
                      WHERE tenant_id = current_setting('app.tenant_id')::uuid ORDER BY metric, tag, start, tag_value";

/// Has months close at once, as `outrigger migrate` does; SQLite's close as the policy of a call says.
const CLOSING: &str = "SELECT outrigger_put_usage_terms('Asia/Kathmandu', 0, '{}', '{}', '{}')";

fn zone() -> TimeZone {
    TimeZone::get("Asia/Kathmandu").unwrap()
}

fn calendar() -> Calendar {
    Calendar::new(zone(), None)
}

fn metric() -> Arc<Metric> {
    let name = |text| Name::parse(text).unwrap();
    Arc::new(Metric {
        name: name("calls"),
        accept_late_ms: 1,
        group_by: vec![name("region")],
        ack: Ack::Database,
    })
}

fn point(tenant: Uuid, key: &str, time_us: i64, value: &str, region: Option<&str>) -> Point {
    let time = Timestamp::from_microsecond(time_us).unwrap();
    let value = Amount::parse(value).unwrap();
    let tags: Vec<(Box<str>, Box<str>)> =
        region.iter().map(|region| (Box::from("region"), Box::from(*region))).collect();
    Point {
        metric: 0,
        key: PointKey::new(tenant, "calls", super::Day::of(time), key),
        fingerprint: fingerprint(value, time_us, region.unwrap_or(""), ""),
        value,
        time,
        tags,
        metadata: None,
        corrects: None,
    }
}

fn now_us() -> i64 {
    Timestamp::now().as_microsecond()
}

/// Counts a call as its tenant.
async fn counted(partitions: &Days, store: &Store, tenant: Uuid, points: &[Point]) -> Verdict {
    let call = Call::of(tenant, vec![metric()], points.to_vec(), &calendar());
    partitions.make(call.days()).await.unwrap();
    as_tenant(store, tenant, call).await.unwrap().pop().unwrap()
}

async fn as_tenant(store: &Store, tenant: Uuid, call: Call) -> Result<Vec<Verdict>, StoreError> {
    let calls = Arc::new([call]);
    store
        .run(Reach::background(tenant), 0, move |tx| {
            let calls = Arc::clone(&calls);
            Box::pin(async move { count(tx, &calls[..]).await })
        })
        .await
}

/// A tenant's sums by day and by hour: what they are of, value, count.
async fn sums(store: &Store, tenant: Uuid) -> BTreeMap<String, (String, i64)> {
    let read: Result<Vec<(String, String, i64)>, StoreError> = store
        .read(Reach::background(tenant), move |tx| {
            Box::pin(async move {
                match tx {
                    Tx::Postgres(tx) => {
                        let mut rows = tx.query(DAILY, &[]).await?;
                        rows.extend(tx.query(HOURLY, &[]).await?);
                        Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
                    }
                    Tx::Sqlite(tx) => Ok(tx.run(|connection| {
                        let of = |text: &str| {
                            let mut asked = connection.prepare(text)?;
                            let rows = asked.query_map([tenant.as_bytes()], |row| {
                                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                            })?;
                            rows.collect::<Result<Vec<_>, _>>()
                        };
                        let mut rows = of("SELECT tag || '=' || tag_value || ' ' || start, value, count FROM usage_daily \
                                           WHERE tenant = ?1")?;
                        rows.extend(of(
                            "SELECT tag || '=' || tag_value || ' ' || strftime('%Y-%m-%dT%H:%M:%SZ', start / 1000000, 'unixepoch'), \
                             value, count FROM usage_hourly WHERE tenant = ?1",
                        )?);
                        Ok(rows)
                    })?),
                }
            })
        })
        .await;
    read.unwrap().into_iter().map(|(of, value, count)| (of, (value, count))).collect()
}

fn refused(conflicts: Vec<usize>) -> Verdict {
    Verdict::Refused(Refusal { conflicts, ..Refusal::default() })
}

/// What the sums of these points are.
fn expected(tenant: Uuid, points: &[Point]) -> BTreeMap<String, (String, i64)> {
    let (tags, calendar) = (["region".to_owned()], calendar());
    let (mut rollup, books) = (Rollup::default(), calendar.at(Timestamp::UNIX_EPOCH));
    points.iter().for_each(|point| rollup.add(tenant, ("calls", &tags), point, &books.book(point.time)));
    let shown = |added: &Added| (added.value.to_string(), added.count);
    let days = rollup
        .daily
        .iter()
        .map(|((key, day), added)| (format!("{}={} {day}", key.tag, key.tag_value), shown(added)));
    let hours = rollup.hourly.iter().map(|((key, hour), added)| {
        let hour = Timestamp::from_microsecond(*hour).unwrap();
        (format!("{}={} {hour}", key.tag, key.tag_value), shown(added))
    });
    days.chain(hours).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_point_counts_once_and_a_call_with_a_conflict_counts_nothing() {
    let stores = Stores::with_timescale(4).await;
    for (name, store) in stores.all() {
        let (partitions, now) = (Days::new(store.clone()), now_us());
        let points = [
            point(A, "k1", now, "1.5", Some("eu")),
            point(A, "k2", now, "0.000000001", Some("us")),
            point(A, "k3", now - 40 * 86_400_000_000, "99999999999999999999999999999.999999999", None),
        ];
        let new = Verdict::Counted { accepted: 3, duplicates: 0 };
        assert_eq!(counted(&partitions, store, A, &points).await, new, "{name}");
        let again = Verdict::Counted { accepted: 0, duplicates: 3 };
        assert_eq!(counted(&partitions, store, A, &points).await, again, "{name}");
        let lie = [point(A, "k4", now, "7", None), point(A, "k2", now, "0.000000002", Some("us"))];
        assert_eq!(counted(&partitions, store, A, &lie).await, refused(vec![1]), "{name}");
        let mixed = [point(A, "k4", now, "7", None), points[0].clone(), point(A, "k4", now, "7", None)];
        let some = Verdict::Counted { accepted: 1, duplicates: 2 };
        assert_eq!(counted(&partitions, store, A, &mixed).await, some, "{name}");
        let other = [point(B, "k1", now, "2", None)];
        let own = Verdict::Counted { accepted: 1, duplicates: 0 };
        assert_eq!(counted(&partitions, store, B, &other).await, own, "{name}: another tenant's key");
        let all = [points.as_slice(), &mixed[..1]].concat();
        assert_eq!(sums(store, A).await, expected(A, &all), "{name}");
        assert_eq!(sums(store, B).await, expected(B, &other), "{name}");
    }
}

/// Clients that repeat, contradict themselves, and come at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_comes_at_once_and_again_the_sums_are_those_of_what_was_counted() {
    let stores = Stores::with_timescale(4).await;
    for (name, store) in stores.all() {
        let (partitions, now) = (Arc::new(Days::new(store.clone())), now_us());
        let mut clients = tokio::task::JoinSet::new();
        for client in 0..6_u64 {
            let (partitions, store, tenant) =
                (Arc::clone(&partitions), store.clone(), [A, B][(client % 2) as usize]);
            clients.spawn(async move {
                let mut random = fastrand::Rng::with_seed(31 + client);
                let mut said: HashMap<PointKey, Point> = HashMap::new();
                for _ in 0..60 {
                    let call: Vec<Point> = (0..random.usize(1..12))
                        .map(|_| {
                            let (key, lies) = (random.u32(0..200).to_string(), random.u8(0..40) == 0);
                            let time = now - i64::from(key.len() as u8) * 3_600_000_000;
                            let value = format!("{}.{key}", if lies { 2 } else { 1 });
                            let region = [None, Some("eu"), Some("us")][key.len() % 3];
                            point(tenant, &key, time, &value, region)
                        })
                        .collect();
                    if let Verdict::Counted { .. } = counted(&partitions, &store, tenant, &call).await {
                        for point in call {
                            let before = said.insert(point.key, point.clone());
                            assert!(before.is_none_or(|before| before == point), "one key with two values");
                        }
                    }
                }
                (tenant, said)
            });
        }
        let mut counted: BTreeMap<Uuid, HashMap<PointKey, Point>> = BTreeMap::new();
        for (tenant, said) in clients.join_all().await {
            for (key, point) in said {
                let before = counted.entry(tenant).or_default().insert(key, point.clone());
                assert!(
                    before.is_none_or(|before| before == point),
                    "{name}: two clients' values of one key"
                );
            }
        }
        for (tenant, points) in counted {
            let points: Vec<Point> = points.into_values().collect();
            assert!(points.len() > 100, "{name}: {}", points.len());
            assert_eq!(sums(store, tenant).await, expected(tenant, &points), "{name}");
        }
    }
}

async fn reading(store: &Store, tenant: Uuid, tag: &'static str, range: &Range) -> (Vec<String>, String) {
    let range = range.clone();
    let read: Result<_, ReadError> = store
        .read(Reach::background(tenant), move |tx| {
            let range = range.clone();
            Box::pin(async move { read(tx, &SumOf { tenant, metric: "calls", tag }, &range, None).await })
        })
        .await;
    let Reading { points, total, next } = read.unwrap();
    assert_eq!(next, None);
    let shown = points.iter().map(|point| {
        let adjusts = point.adjusts.map_or(String::new(), |month| format!(" adjusts {month}"));
        format!("{} {:?} {} {}{adjusts}", point.start, point.group, point.added.value, point.added.count)
    });
    (shown.collect(), total.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_counted_is_read_by_hours_days_and_months_and_by_tag() {
    let stores = Stores::with_timescale(2).await;
    // Days of Kathmandu begin at 18:15 UTC.
    let begin = |day: civil::Date| day.to_zoned_datetime(zone()).unwrap().start_of_day().unwrap().timestamp();
    let today = zone().to_datetime(Timestamp::now()).date();
    let (first, month) = (today - 3.days(), today.first_of_month());
    let at = |time: Timestamp, us: i64| time.as_microsecond() + us;
    for (name, store) in stores.all() {
        let partitions = Days::new(store.clone());
        let points = [
            point(A, "k1", at(begin(first), 0), "1.5", Some("eu")),
            point(A, "k2", at(begin(first), -1), "100", Some("eu")),
            point(A, "k3", at(begin(today - 1.days()), 5_400_000_000), "0.25", None),
        ];
        counted(&partitions, store, A, &points).await;
        counted(&partitions, store, B, &[point(B, "k1", at(begin(first), 0), "7", Some("eu"))]).await;
        let days = Range::new(Window::Day, begin(first), begin(today), &zone()).unwrap();
        let (shown, total) = reading(store, A, "", &days).await;
        let expected = [
            format!("{} \"\" 1.5 1", begin(first)),
            format!("{} \"\" 0 0", begin(first + 1.days())),
            format!("{} \"\" 0.25 1", begin(today - 1.days())),
        ];
        assert_eq!((shown, total.as_str()), (expected.to_vec(), "1.75"), "{name}");
        let all = Range::new(Window::Total, begin(first - 1.days()), begin(today), &zone()).unwrap();
        let (shown, total) = reading(store, A, "region", &all).await;
        let from = begin(first - 1.days());
        let expected = [format!("{from} \"\" 0.25 1"), format!("{from} \"eu\" 101.5 2")];
        assert_eq!((shown, total.as_str()), (expected.to_vec(), "101.75"), "{name}");
        let hour = begin(first).as_microsecond().div_euclid(3_600_000_000) * 3_600_000_000;
        let hour = Timestamp::from_microsecond(hour).unwrap();
        let hours = Range::new(Window::Hour, hour, hour + 2.hours(), &zone()).unwrap();
        let (shown, total) = reading(store, A, "", &hours).await;
        let expected = [format!("{hour} \"\" 101.5 2"), format!("{} \"\" 0 0", hour + 1.hours())];
        assert_eq!((shown, total.as_str()), (expected.to_vec(), "101.5"), "{name}");
        let next = begin(month + 1.month());
        let months = Range::new(Window::Month, begin(month - 1.month()), next, &zone()).unwrap();
        assert_eq!(reading(store, A, "", &months).await.1, "101.75", "{name}");
        assert_eq!(reading(store, B, "", &months).await.1, "7", "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_correction_names_what_was_counted_and_takes_it_back() {
    let stores = Stores::with_timescale(2).await;
    for (name, store) in stores.all() {
        let (partitions, now) = (Days::new(store.clone()), now_us());
        let correction = |key: &str, value: &str, of: &Point| Point {
            corrects: Some(of.key),
            ..point(A, key, now, value, Some("eu"))
        };
        let (first, second) = (point(A, "k1", now, "5", Some("eu")), point(A, "k2", now, "7", Some("eu")));
        let nothing = Refusal { nothing_to_correct: vec![1], ..Refusal::default() };
        let early = [point(A, "k9", now, "1", None), correction("c1", "-1", &first)];
        assert_eq!(counted(&partitions, store, A, &early).await, Verdict::Refused(nothing), "{name}");
        let new = |accepted| Verdict::Counted { accepted, duplicates: 0 };
        assert_eq!(counted(&partitions, store, A, std::slice::from_ref(&first)).await, new(1), "{name}");
        // Of an earlier call, and of this one.
        let both = [correction("c1", "-1.5", &first), correction("c2", "-7", &second), second.clone()];
        assert_eq!(counted(&partitions, store, A, &both).await, new(3), "{name}");
        let again = Verdict::Counted { accepted: 0, duplicates: 3 };
        assert_eq!(counted(&partitions, store, A, &both).await, again, "{name}");
        let itself = [correction("c3", "-1", &point(A, "c3", now, "0", None))];
        let nothing = Refusal { nothing_to_correct: vec![0], ..Refusal::default() };
        assert_eq!(counted(&partitions, store, A, &itself).await, Verdict::Refused(nothing), "{name}");
        let all = [std::slice::from_ref(&first), &both].concat();
        assert_eq!(sums(store, A).await, expected(A, &all), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_for_a_closed_month_is_booked_now_and_the_month_stays_as_it_was() {
    let stores = Stores::with_timescale(2).await;
    let begin = |day: civil::Date| day.to_zoned_datetime(zone()).unwrap().start_of_day().unwrap().timestamp();
    for (name, store) in stores.all() {
        let partitions = Days::new(store.clone());
        // Read anew for each store: midnight may have come.
        let month = zone().to_datetime(Timestamp::now()).date().first_of_month();
        let (before, now) = (begin(month).as_microsecond() - 1, now_us());
        let counted = async |key: &str, time_us: i64, value: &str, close_after_ms: Option<u64>| {
            let points = vec![point(A, key, time_us, value, Some("eu"))];
            let call = Call::of(A, vec![metric()], points, &Calendar::new(zone(), close_after_ms));
            partitions.make(call.days()).await.unwrap();
            as_tenant(store, A, call).await.unwrap().pop().unwrap()
        };
        let new = Verdict::Counted { accepted: 1, duplicates: 0 };
        assert_eq!(counted("open", before, "1", None).await, new, "{name}");
        if name != "sqlite" {
            stores.psql(name, PostgresRole::Owner, &[CLOSING]).unwrap();
        }
        assert_eq!(counted("closed", before, "2", Some(0)).await, new, "{name}");
        assert_eq!(counted("current", now, "4", Some(0)).await, new, "{name}");
        let again = Verdict::Counted { accepted: 0, duplicates: 1 };
        assert_eq!(counted("closed", before, "2", Some(0)).await, again, "{name}");
        let range = |from, to| Range::new(Window::Month, begin(from), begin(to), &zone()).unwrap();
        let (last, next) = (month - 1.month(), month + 1.month());
        let closed = reading(store, A, "", &range(last, month)).await;
        assert_eq!(closed, (vec![format!("{} \"\" 1 1", begin(last))], "1".to_owned()), "{name}");
        let (shown, total) = reading(store, A, "region", &range(month, next)).await;
        let of = |group: &str, value: &str, count, adjusts: &str| {
            format!("{} {group:?} {value} {count}{adjusts}", begin(month))
        };
        let expected = [of("eu", "4", 1, ""), of("eu", "2", 1, &format!(" adjusts {}", begin(last)))];
        assert_eq!((shown, total.as_str()), (expected.to_vec(), "6"), "{name}");
        let days = Range::new(Window::Total, begin(month), begin(next), &zone()).unwrap();
        assert_eq!(reading(store, A, "", &days).await.1, "6", "{name}");
        assert_eq!(reading(store, B, "", &days).await.1, "0", "{name}");
    }
    for name in ["postgres", "timescale"] {
        let noted = "SELECT count(*) || ' ' || max(value) FROM usage_adjustments WHERE time < booked_at";
        let noted = stores.psql(name, PostgresRole::Superuser, &[noted]);
        assert_eq!(noted.unwrap().trim(), "1 2.000000000", "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgresql_nobody_counts_for_another_and_raw_rows_are_out_of_reach() {
    let stores = Stores::with_timescale(2).await;
    for (name, store) in stores.all().filter(|(name, _)| *name != "sqlite") {
        let (partitions, now) = (Days::new(store.clone()), now_us());
        let call = Call::of(B, vec![metric()], vec![point(B, "k", now, "1", None)], &calendar());
        partitions.make(call.days()).await.unwrap();
        let refused = as_tenant(store, A, call).await.unwrap_err();
        assert!(refused.to_string().contains("no permit named"), "{name}: {refused}");
        assert_eq!(sums(store, B).await, BTreeMap::new(), "{name}");
        for statement in [
            "SELECT count(*) FROM usage_events",
            "SELECT count(*) FROM usage_events_float",
            "SELECT count(*) FROM usage_dedupe",
            "INSERT INTO usage_hourly VALUES (gen_random_uuid(), 'calls', '', now(), '', '-infinity', 1, 1)",
            "UPDATE usage_daily SET value = 0",
            "SELECT outrigger_check_tenants('{}')",
        ] {
            let ended = stores.psql(name, PostgresRole::App, &[statement]);
            assert!(ended.unwrap_err().to_string().contains("permission denied"), "{name}: {statement}");
        }
        let points = vec![point(A, "k", now - 101 * 86_400_000_000, "1", None)];
        let long_ago = Call::of(A, vec![metric()], points, &calendar());
        let refused = partitions.make(long_ago.days()).await.unwrap_err();
        assert!(refused.to_string().contains("no usage is kept of"), "{name}: {refused}");
    }
}

#[test]
fn a_sum_s_text_is_read_as_it_is_written_and_nothing_else_is() {
    for text in ["0", "-0.5", "12.000000001", "99999999999999999999999999999999.999999"] {
        assert_eq!(Sum::parse(text).map(|sum| sum.to_string()).as_deref(), Some(text));
    }
    for text in ["", "-", "1.", ".5", "1.0000000001", "NaN", "1e3", "--1"] {
        assert_eq!(Sum::parse(text), None, "{text}");
    }
}
