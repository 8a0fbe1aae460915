//! What is TimescaleDB's own: chunks that are compressed, the aggregate for reporting tools, and who reaches what they are made of.
//! Its jobs are run by hand, since this build has no background workers.

use super::kept::differences;
use super::*;

const DAY_US: i64 = 86_400_000_000;
/// Of an age at which chunks are compressed and the aggregate is still refreshed.
const OLD_DAYS: i64 = 93;

const JOB: &str = "DO $$ DECLARE job integer := (SELECT job_id FROM timescaledb_information.jobs WHERE proc_name = 'policy_?'); \
                   BEGIN CALL run_job(job); END $$";
const CHUNKS: &str = "SELECT string_agg((range_start AT TIME ZONE 'UTC')::date || ' ' || is_compressed, ',' ORDER BY range_start) \
                      FROM timescaledb_information.chunks WHERE hypertable_name = 'usage_events'";
/// How many days before one the sums of hours have, and the aggregate, and how many rows of them are not in both.
const COMPARED: &str = "WITH sums AS (SELECT date_trunc('day', start, 'UTC') AS day, tenant_id, metric, sum(value) AS value, \
                        sum(count)::bigint AS count FROM usage_hourly WHERE tag = '' AND start < '?'::timestamp AT TIME ZONE 'UTC' \
                        GROUP BY 1, 2, 3) \
                        SELECT (SELECT count(*) FROM sums) || ' ' || (SELECT count(*) FROM daily_usage) || ' ' || count(*) \
                        FROM ((TABLE sums EXCEPT TABLE daily_usage) UNION ALL (TABLE daily_usage EXCEPT TABLE sums)) AS difference";

fn job(of: &str) -> String {
    JOB.replace('?', of)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_late_into_a_compressed_chunk_count_once_and_the_aggregate_is_the_sums() {
    let stores = Stores::with_timescale(1).await;
    let (_, store) = stores.all().find(|(name, _)| *name == "timescale").unwrap();
    let ask =
        |sql: &str| stores.psql("timescale", PostgresRole::Superuser, &[sql]).unwrap().trim().to_owned();
    let (partitions, now) = (Days::new(store.clone()), now_us());
    let [old, recent] = [OLD_DAYS, 2].map(|days| now - days * DAY_US);
    let day = |us| TimeZone::UTC.to_datetime(Timestamp::from_microsecond(us).unwrap()).date();
    let chunks = format!("{} true,{} false,{} false", day(old), day(recent), day(now));
    let compared = COMPARED.replace('?', &day(now).to_string());
    let points: Vec<Point> = (0..300)
        .map(|number: i64| {
            let time = [old, recent, now][(number % 3) as usize];
            let region = [None, Some("eu")][(number % 2) as usize];
            let point =
                point(A, &format!("k{number}"), time, "99999999999999999999999999999.000000001", region);
            let metadata = (number % 4 < 2).then(|| format!("{{\"call\":{number},\"n\":1e131071}}").into());
            Point { metadata, ..point }
        })
        .collect();
    let new = |accepted| Verdict::Counted { accepted, duplicates: 0 };
    assert_eq!(counted(&partitions, store, A, &points).await, new(300));
    ask(&job("compression"));
    assert_eq!(ask(CHUNKS), chunks);
    assert_eq!(
        ask("SELECT count(*) || ' ' || max(value) FROM usage_events WHERE time < now() - interval '92 days'"),
        "100 99999999999999999999999999999.000000001"
    );
    // As it was written, also out of a compressed chunk.
    let metadata = "SELECT count(metadata) || ' ' || min(metadata::text) FROM usage_events WHERE time < now() - interval '92 days'";
    assert_eq!(ask(metadata), "50 {\"call\":0,\"n\":1e131071}");

    let again = Verdict::Counted { accepted: 0, duplicates: 300 };
    assert_eq!(counted(&partitions, store, A, &points).await, again);
    let late = Point { metadata: Some("{\"call\":-1}".into()), ..point(A, "late", old, "0.5", Some("eu")) };
    let late = [late, points[0].clone()];
    assert_eq!(counted(&partitions, store, A, &late).await, Verdict::Counted { accepted: 1, duplicates: 1 });
    assert_eq!(ask(metadata), "51 {\"call\":-1}");
    let lie = [point(A, "k0", old, "1", None)];
    assert_eq!(counted(&partitions, store, A, &lie).await, refused(vec![0]));
    assert_eq!(counted(&partitions, store, B, &[point(B, "k0", old, "2", None)]).await, new(1));
    let all: Vec<Point> = points.iter().chain(&late[..1]).cloned().collect();
    assert_eq!(sums(store, A).await, expected(A, &all));
    assert_eq!(differences(&stores, "timescale", (OLD_DAYS, OLD_DAYS - 1)).await, [""; 0]);

    ask(&job("refresh_continuous_aggregate"));
    assert_eq!(ask(&compared), "3 3 0", "days of the sums, of the aggregate, and differences");
    assert_eq!(counted(&partitions, store, A, &[point(A, "later", old, "-0.25", None)]).await, new(1));
    assert_eq!(ask(&compared), "3 3 2", "refreshed when its job comes");
    ask(&job("compression"));
    ask(&job("refresh_continuous_aggregate"));
    assert_eq!(ask(&compared), "3 3 0");
    assert_eq!(differences(&stores, "timescale", (OLD_DAYS, OLD_DAYS - 1)).await, [""; 0]);

    // Chunks go, and what was made of them stays.
    ask("INSERT INTO usage_events SELECT now() - interval '401 days', gen_random_uuid(), 'calls', 3");
    ask("CALL refresh_continuous_aggregate('daily_usage', NULL, NULL)");
    housekeeping::round(store, &Leases::new(store.clone(), Owner::of_this_process()), 400).await.unwrap();
    assert_eq!(ask(CHUNKS), chunks);
    ask(&job("refresh_continuous_aggregate"));
    assert_eq!(ask("SELECT count(*) FROM daily_usage WHERE day < now() - interval '400 days'"), "1");
}

/// How much of what TimescaleDB made of `usage_events` and the aggregate a role has any right to.
const REACHED: &str = "SELECT count(*) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace \
                       WHERE nspname = '_timescaledb_internal' AND relkind IN ('r', 'v', 'm', 'p') \
                       AND pg_get_userbyid(relowner) = 'outrigger_owner' \
                       AND has_table_privilege(?, pg_class.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_timescaledb_the_application_reaches_no_chunk_and_a_reporting_role_what_it_was_granted() {
    let stores = Stores::with_timescale(1).await;
    let (_, store) = stores.all().find(|(name, _)| *name == "timescale").unwrap();
    let ask =
        |sql: &[&str]| stores.psql("timescale", PostgresRole::Superuser, sql).unwrap().trim().to_owned();
    let (partitions, now) = (Days::new(store.clone()), now_us());
    let points = [point(A, "k1", now, "1.5", Some("eu")), point(B, "k2", now - OLD_DAYS * DAY_US, "2", None)];
    counted(&partitions, store, A, &points[..1]).await;
    counted(&partitions, store, B, &points[1..]).await;
    let jobs = [job("compression"), job("refresh_continuous_aggregate")];
    ask(&[&jobs[0], &jobs[1]]);
    // Two chunks, one of them compressed, and what the aggregate is made of.
    let made: i64 = ask(&[&REACHED.replace('?', "'outrigger_owner'")]).parse().unwrap();
    assert!(made >= 6, "{made}");
    assert_eq!(ask(&[&REACHED.replace('?', "'outrigger_app'")]), "0");
    assert_eq!(ask(&[&REACHED.replace('?', "'outrigger_relay'")]), "0");
    for statement in ["SELECT * FROM daily_usage", "SELECT drop_chunks('usage_events', now())"] {
        let refused = stores.psql("timescale", PostgresRole::App, &[statement]).unwrap_err().to_string();
        assert!(
            refused.contains("permission denied") || refused.contains("must be owner"),
            "{statement}: {refused}"
        );
    }
    // As docs/usage.md says it.
    let read = "SET ROLE reporting; SELECT (SELECT sum(value) FROM usage_events_float), (SELECT sum(value) FROM usage_events), \
                (SELECT sum(value) FROM daily_usage)";
    let granted = "GRANT SELECT ON usage_events, usage_events_float, daily_usage TO reporting";
    stores.psql("timescale", PostgresRole::Superuser, &["CREATE ROLE reporting"]).unwrap();
    stores.psql("timescale", PostgresRole::Owner, &[granted]).unwrap();
    assert_eq!(ask(&[read]), "3.5|3.500000000|2.000000000");
}
