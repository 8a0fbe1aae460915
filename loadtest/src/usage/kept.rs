//! Records and sums put there by SQL, and readings of them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use jiff::{Timestamp, ToSpan as _};

use super::contender::Target;
use crate::events::database::Database;
use crate::events::http::Connection;
use crate::events::report::Latency;
use crate::generator::Tally;

/// Of one statement; each is a transaction.
const AT_ONCE: u64 = 500_000;
const READINGS: u32 = 60;
/// About 100 bytes a row, of the hours of today up to now.
const RECORDS: &str = "INSERT INTO usage_events (time, tenant_id, metric, value, tags) \
     SELECT now() - random() * least(interval '6 hours', now() - date_trunc('day', now())), $1::text::uuid, 'api_calls', 1.5, \
         '{\"endpoint\": \"/leads\"}' \
     FROM generate_series(1, $2::bigint)";
/// In the order of the index, as clients' numbered keys are.
const KEYS: &str = "INSERT INTO usage_dedupe (day, place, hash, fingerprint) \
     SELECT (now() AT TIME ZONE 'UTC')::date, $1::bigint + n, gen_random_uuid(), 1 FROM generate_series(1, $2::bigint) n";
/// A thousand tenants, of which one is the load's.
const HOURS: &str = "INSERT INTO usage_hourly (tenant_id, metric, tag, start, tag_value, adjusts, value, count) \
     SELECT CASE number WHEN 500 THEN $1::text::uuid ELSE md5(number::text)::uuid END, 'api_calls', '', hour, '', '-infinity', 1.5, 1 \
     FROM generate_series($2::int8::int4, $3::int8::int4) number, \
         generate_series(date_trunc('hour', now()) - interval '366 days', date_trunc('hour', now()) - interval '1 day', interval '1 hour') hour";
const DAYS: &str = "INSERT INTO usage_daily (tenant_id, metric, tag, start, tag_value, adjusts, value, count) \
     SELECT tenant_id, metric, tag, (start AT TIME ZONE 'UTC')::date, tag_value, adjusts, sum(value), sum(count) \
     FROM usage_hourly GROUP BY 1, 2, 3, 4, 5, 6 ON CONFLICT DO NOTHING";

/// Bytes of PostgreSQL's log, up to now.
///
/// # Errors
/// It cannot be reached.
pub(crate) async fn wal_bytes(database: &Database) -> Result<f64> {
    let client = database.connect().await?;
    let row = client.query_one("SELECT (pg_current_wal_lsn() - '0/0')::float8", &[]).await?;
    Ok(row.try_get(0)?)
}

/// A year of hours for each of a thousand tenants.
///
/// # Errors
/// PostgreSQL refused it.
pub(crate) async fn fill_sums(target: &Target) -> Result<()> {
    let client = target.database.connect().await?;
    client.batch_execute("SET synchronous_commit = off; SET work_mem = '64MB'; SET TimeZone = 'UTC'").await?;
    let tenant = target.tenant.to_string();
    for first in (1..=1000_i64).step_by(50) {
        crate::interrupt::check()?;
        client.execute(HOURS, &[&tenant, &first, &(first + 49)]).await.context("filling hours")?;
    }
    client.execute(DAYS, &[]).await.context("filling days")?;
    for statement in ["VACUUM ANALYZE usage_hourly", "VACUUM ANALYZE usage_daily", "CHECKPOINT"] {
        client.batch_execute(statement).await.context(statement)?;
    }
    Ok(())
}

/// Adds records of today until `wanted` are kept.
///
/// # Errors
/// PostgreSQL refused it.
pub(crate) async fn fill(target: &Target, have: u64, wanted: u64) -> Result<()> {
    let client = target.database.connect().await?;
    client.batch_execute("SET synchronous_commit = off; SET TimeZone = 'UTC'").await?;
    client.batch_execute("SELECT outrigger_make_usage_day(current_date)").await?;
    let tenant = target.tenant.to_string();
    let mut at = have;
    while at < wanted {
        crate::interrupt::check()?;
        let (first, count) = (i64::try_from(at)?, i64::try_from(AT_ONCE.min(wanted - at))?);
        client.execute(RECORDS, &[&tenant, &count]).await.context("filling records")?;
        client.execute(KEYS, &[&first, &count]).await.context("filling keys")?;
        at += u64::try_from(count)?;
    }
    for statement in ["VACUUM ANALYZE usage_events", "VACUUM ANALYZE usage_dedupe", "CHECKPOINT"] {
        client.batch_execute(statement).await.context(statement)?;
    }
    Ok(())
}

/// A year of hourly points of one tenant among a thousand.
///
/// # Errors
/// A reading failed.
pub(crate) async fn year_of_hours(target: &Target) -> Result<Latency> {
    let hour = Timestamp::from_second(Timestamp::now().as_second().div_euclid(3600) * 3600)?;
    let (from, to) = (hour - (24 * 365).hours(), hour);
    readings(target, &format!("window=hour&from={from}&to={to}")).await
}

/// The days of a month.
///
/// # Errors
/// A reading failed.
pub(crate) async fn month_of_days(target: &Target) -> Result<Latency> {
    let day = Timestamp::from_second(Timestamp::now().as_second().div_euclid(86_400) * 86_400)?;
    let (from, to) = (day - (24 * 31).hours(), day);
    readings(target, &format!("window=day&from={from}&to={to}")).await
}

async fn readings(target: &Target, query: &str) -> Result<Latency> {
    let mut connection = Connection::open(target.api).await?;
    let request = format!(
        "GET /v1/usage/api_calls?{query} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\r\n",
        target.api, target.token
    );
    let mut tally = Tally { measured: Duration::from_secs(1), ..Tally::default() };
    for _ in 0..READINGS {
        let began = Instant::now();
        connection.call(request.as_bytes(), 200).await?;
        tally.record(began.elapsed());
    }
    Ok(Latency::of(&tally.latency_ns))
}
