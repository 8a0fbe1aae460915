//! `ack: spool` beside `ack: database`: how much is accepted, and how soon all of it is counted.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::contender::{Target, Way};
use super::report::{SpoolRow, WriteRow};
use super::{Bench, CALLERS, with_policy};
use crate::contender::Launch;
use crate::events::database::Database;
use crate::events::load::Processes;

const POLICY: &str = "kind: usage\nmetrics:\n  api_calls: {ack: spool, group_by: [endpoint]}\n";
/// What is accepted in a few seconds is for one tenant's quarter of it.
const MAX_BYTES: u64 = 16 << 30;
const COUNTED: &str =
    "SELECT coalesce(sum(count), 0)::int8 FROM usage_daily WHERE tag = '' AND metric = 'api_calls'";
/// For all that was accepted in a turn to be counted.
const LIMIT: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// By callers, the two in turn.
///
/// # Errors
/// A server does not start, refuses a call, or does not count what it accepted.
pub(super) async fn measure(bench: &Bench<'_>) -> Result<Vec<SpoolRow>> {
    let folder = bench.folder.join("spool");
    let on = &bench.arguments.on;
    let config = with_policy(&on.outrigger_config, &folder, POLICY, |text| {
        let data = folder.join("data");
        let usage = format!("usage: {{spool_max_bytes: {MAX_BYTES}}}\ndata_dir: {}\n", data.display());
        text.replace("usage: {}\n", &usage)
    })?;
    let server = Launch::on_postgres(on, &on.outrigger_bin, &folder).with_config(&config).start()?;
    let target = Target { api: server.ready.api, metrics: 1, ..bench.target.clone() };
    let processes = Processes { server: Some(server.ready.pid), postmaster: bench.postmaster };
    let mut rows = Vec::new();
    for callers in CALLERS {
        let (mut counted, mut accepted, mut rates) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..on.rounds {
            bench.progress.note(&format!("spool, {callers} callers, round {}", round + 1));
            let of_database = bench.processes(Way::Outrigger);
            counted.push(bench.turn(&bench.target, Way::Outrigger, callers, of_database).await?);
            let (before, sent) = (points(&target.database).await?, bench.ids.load(Ordering::Relaxed));
            let began = Instant::now();
            accepted.push(bench.turn(&target, Way::Outrigger, callers, processes).await?);
            let sent = bench.ids.load(Ordering::Relaxed) - sent;
            until_counted(&target.database, before + i64::try_from(sent)?, began).await?;
            rates.push(sent as f64 / began.elapsed().as_secs_f64());
        }
        rows.push(SpoolRow {
            callers,
            database: WriteRow::of("ack: database", &counted, &counted)?,
            spool: WriteRow::of("ack: spool", &accepted, &counted)?,
            counted_per_s: crate::report::statistics::median(&rates),
        });
    }
    server.stop()?;
    Ok(rows)
}

async fn points(database: &Database) -> Result<i64> {
    let client = database.connect().await?;
    Ok(client.query_one(COUNTED, &[]).await?.try_get(0)?)
}

async fn until_counted(database: &Database, wanted: i64, began: Instant) -> Result<()> {
    let client = database.connect().await?;
    loop {
        let counted: i64 = client.query_one(COUNTED, &[]).await?.try_get(0).context("points")?;
        if counted == wanted {
            return Ok(());
        }
        if counted > wanted || began.elapsed() > LIMIT {
            bail!("{counted} points are counted of {wanted} that were accepted");
        }
        crate::interrupt::check()?;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
