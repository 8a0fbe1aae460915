//! What the same work costs with more events kept, and how they are read.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::contender::Target;
use super::database::Database;
use super::http::Connection;
use crate::report::median_ms;

/// Of one statement; each is a transaction.
const AT_ONCE: u64 = 500_000;
const LOOKS: u32 = 21;
const READING: Duration = Duration::from_secs(3);
/// Small events, so that ten million fit: about 150 bytes a row. They are of the hours up to now, as far as they are of today: the partition that is written to is the full one.
const EVENTS: &str = "INSERT INTO events (id, accepted_at, tenant_id, topic, lane, key, type, attributes, form, data) \
     SELECT nextval('events_id_seq'), \
         now() - (1 - ($3::bigint + n) / $4::double precision) * least(interval '6 hours', now() - date_trunc('day', now())), \
         $1::text::uuid, $2::text, 0, 'k' || n % 4096, 'lead.made', \
         convert_to(format('{\"specversion\":\"1.0\",\"id\":\"f%s\",\"source\":\"/loadtest\",\"type\":\"lead.made\"}', $3::bigint + n), 'UTF8'), \
         1, convert_to('{}', 'UTF8') \
     FROM generate_series(1, $5::bigint) n";
/// An id that is known for each, in the order of the index, as clients' numbered ids are (docs/decisions/070). Half are of the day
/// before, where an id that is not of today is looked up too.
const IDS: &str = "INSERT INTO event_dedupe (tenant_id, key, day, until, fingerprint) \
     SELECT $1::text::uuid, int8send($2::bigint + n) || uuid_send(gen_random_uuid()), \
         (now() AT TIME ZONE 'UTC')::date - (n & 1)::integer, now() + interval '1 day', 1 \
     FROM generate_series(1, $3::bigint) n";

/// Adds events until `wanted` are kept, of `planned` at the end.
///
/// # Errors
/// PostgreSQL refused it.
pub(crate) async fn fill(target: &Target, have: u64, wanted: u64, planned: u64) -> Result<()> {
    let client = target.database.connect().await?;
    client.batch_execute("SET synchronous_commit = off; SET work_mem = '64MB'; SET TimeZone = 'UTC'").await?;
    let tenant = target.tenant.to_string();
    let mut at = have;
    while at < wanted {
        crate::interrupt::check()?;
        let count = i64::try_from(AT_ONCE.min(wanted - at))?;
        let begin = i64::try_from(at)?;
        client
            .execute(EVENTS, &[&tenant, &target.topic, &begin, &(planned as f64), &count])
            .await
            .context("filling events")?;
        client.execute(IDS, &[&tenant, &begin, &count]).await.context("filling ids")?;
        at += u64::try_from(count)?;
    }
    for statement in ["VACUUM ANALYZE events", "VACUUM ANALYZE event_dedupe", "CHECKPOINT"] {
        client.batch_execute(statement).await.context(statement)?;
    }
    Ok(())
}

/// Events that are kept, about.
///
/// # Errors
/// PostgreSQL refused it.
pub(crate) async fn count(database: &Database) -> Result<u64> {
    let row = database.connect().await?.query_one("SELECT last_value FROM events_id_seq", &[]).await?;
    Ok(u64::try_from(row.try_get::<_, i64>(0)?)?)
}

/// Milliseconds, in the middle, until the first page of a read from some time in the past is there.
///
/// # Errors
/// A read failed.
pub(crate) async fn first_page_ms(target: &Target) -> Result<f64> {
    let client = target.database.connect().await?;
    let times = client
        .query(
            "SELECT to_char((oldest + (now() - oldest) * n / $1::float8) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') \
             FROM (SELECT accepted_at AS oldest FROM events ORDER BY id LIMIT 1) first, generate_series(1, $1::float8::int - 1) n",
            &[&f64::from(LOOKS)],
        )
        .await?;
    let mut took = Vec::new();
    for row in &times {
        let from: String = row.try_get(0)?;
        let mut connection = Connection::open(target.api).await?;
        let began = Instant::now();
        connection.send(&read(target, &from)).await?;
        let first = connection.receive().await?;
        took.push(began.elapsed());
        anyhow::ensure!(first.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(first));
    }
    Ok(median_ms(&took))
}

/// Events read a second as NDJSON, from the beginning.
///
/// # Errors
/// The read failed, or ended early.
pub(crate) async fn read_per_s(target: &Target) -> Result<f64> {
    let mut connection = Connection::open(target.api).await?;
    connection.send(&read(target, "earliest")).await?;
    let began = Instant::now();
    let (mut lines, mut last) = (0_u64, 0_u8);
    while began.elapsed() < READING {
        let piece = connection.receive().await?;
        if piece.is_empty() {
            break;
        }
        for byte in piece {
            // The lines of the chunks' own lengths end otherwise.
            lines += u64::from(last == b'}' && *byte == b'\n');
            last = *byte;
        }
    }
    Ok(lines as f64 / began.elapsed().as_secs_f64())
}

fn read(target: &Target, from: &str) -> Vec<u8> {
    format!(
        "GET /v1/events/{}?from={from} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nAccept: application/x-ndjson\r\n\r\n",
        target.topic, target.api, target.token
    )
    .into_bytes()
}
