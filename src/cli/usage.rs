//! `outrigger usage`: what operators do with usage.

mod requeue;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::json;

use super::outbox::{load, problem};
use super::{FOUND_PROBLEMS, INCOMPLETE, runtime};
use crate::config::{ProxyConfig, StoreChoice};
use crate::primitives::usage::{Added, Difference, NotCompared, Start, Told, reconcile};
use crate::store::postgres::{ConnectAs, Postgres};
use crate::store::sqlite::{Bound, Durability, Sqlite};
use crate::store::{DURABLE, Store};

#[derive(Subcommand)]
pub(super) enum UsageCommand {
    /// Make the sums of some days anew from the records, and say where those that are kept differ: then the exit code is 1. It is 4 where none
    /// differs and not all can be compared, which is said as well
    Reconcile(ReconcileArgs),
    /// Take calls that were accepted to disk and put aside back for counting; no process may use the data directory
    Requeue(requeue::RequeueArgs),
}

#[derive(Args)]
pub(super) struct ReconcileArgs {
    /// The configuration; with PostgreSQL its `postgres.owner` looks
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The first UTC day, such as 2026-01-31
    #[arg(long, value_name = "DAY")]
    from: Date,
    /// The day after the last; without it the one after --from
    #[arg(long, value_name = "DAY")]
    to: Option<Date>,
    /// A line of JSON for each difference:
    /// {"tenant","metric","start","window","group_by"?,"group"?,"adjusts"?,"kept":{"value","count"},"records":{"value","count"}}, and for what
    /// cannot be compared: {"not_compared":"dropped"|"tag","before","metric"?,"group_by"?,"sums"?}
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &UsageCommand) -> anyhow::Result<ExitCode> {
    match command {
        UsageCommand::Reconcile(arguments) => reconciled(arguments),
        UsageCommand::Requeue(arguments) => requeue::requeued(arguments),
    }
}

fn reconciled(arguments: &ReconcileArgs) -> anyhow::Result<ExitCode> {
    let Some(config) = load(&arguments.config) else { return Ok(ExitCode::from(FOUND_PROBLEMS)) };
    match look(arguments, &config) {
        Ok(Ended { differences: 0, not_compared: 0 }) => {
            if !arguments.json {
                println!("every sum is that of its records");
            }
            Ok(ExitCode::SUCCESS)
        }
        Ok(Ended { differences: 0, .. }) => Ok(ExitCode::from(INCOMPLETE)),
        Ok(_) => Ok(ExitCode::from(FOUND_PROBLEMS)),
        Err(error) => problem(&format!("{error:#}")),
    }
}

/// How much was printed.
#[derive(Default)]
struct Ended {
    differences: usize,
    not_compared: usize,
}

/// Prints each difference, and what cannot be compared.
fn look(arguments: &ReconcileArgs, config: &ProxyConfig) -> anyhow::Result<Ended> {
    let after = arguments.from.tomorrow().context("--from")?;
    let begin = |day: Date| Ok::<Timestamp, jiff::Error>(day.to_zoned_datetime(TimeZone::UTC)?.timestamp());
    let range = (begin(arguments.from)?, begin(arguments.to.unwrap_or(after))?);
    runtime()?.block_on(async {
        let store = open(config).await?;
        let mut told = Ended::default();
        let tell = |what: Told| {
            let line = match &what {
                Told::Difference(difference) if arguments.json => as_json(difference),
                Told::Difference(difference) => in_words(difference),
                Told::NotCompared(what) if arguments.json => left_out_as_json(what),
                Told::NotCompared(what) => left_out(what),
            };
            match what {
                Told::Difference(_) => told.differences += 1,
                Told::NotCompared(_) => told.not_compared += 1,
            }
            println!("{line}");
        };
        let ended = reconcile(&store, range, tell).await;
        if let Store::Sqlite(sqlite) = &store {
            sqlite.close().await;
        }
        ended?;
        Ok(told)
    })
}

/// The store, as who may look at everyone's records.
async fn open(config: &ProxyConfig) -> anyhow::Result<Store> {
    match (config.store, &config.postgres, &config.data_dir) {
        (Some(StoreChoice::Postgres), Some(database), _) => {
            let owner = database.owner.as_ref();
            let owner =
                owner.context("the configuration has no `postgres.owner`, which alone sees raw records")?;
            let opened = Postgres::open(database, &ConnectAs::Owner(owner)).await;
            Ok(Store::Postgres(opened.map_err(anyhow::Error::msg)?))
        }
        (Some(StoreChoice::Embedded), _, Some(directory)) => {
            let path = directory.join("durable.db");
            anyhow::ensure!(path.exists(), "there is no {}", path.display());
            let opened = Sqlite::open(&path, Durability::Full, Bound::of(u64::MAX >> 1), DURABLE);
            let opened =
                opened.with_context(|| format!("{}: end the process that has it first", path.display()));
            Ok(Store::Sqlite(opened?))
        }
        _ => anyhow::bail!("the configuration has no `store`"),
    }
}

fn in_words(difference: &Difference) -> String {
    let Difference { of, kept, records } = difference;
    let group = if of.tag.is_empty() { String::new() } else { format!(" {}={:?}", of.tag, of.tag_value) };
    let adjusts = of.adjusts.map_or(String::new(), |month| format!(" adjusts {month}"));
    let shown = |added: &Option<Added>| match added {
        Some(added) => format!("{} of {}", added.value, added.count),
        None => "nothing".to_owned(),
    };
    let (window, start) = window(of.start);
    format!(
        "tenant {} {} {window} {start}{group}{adjusts}: kept {}, records {}",
        of.tenant,
        of.metric,
        shown(kept),
        shown(records)
    )
}

fn as_json(difference: &Difference) -> String {
    let Difference { of, kept, records } = difference;
    let shown = |added: &Option<Added>| {
        added.map(|added| json!({"value": added.value.to_string(), "count": added.count}))
    };
    let (window, start) = window(of.start);
    let mut line = json!({
        "tenant": of.tenant, "metric": of.metric, "window": window, "start": start, "kept": shown(kept), "records": shown(records),
    });
    if !of.tag.is_empty() {
        line["group_by"] = json!(of.tag);
        line["group"] = json!(of.tag_value);
    }
    if let Some(month) = of.adjusts {
        line["adjusts"] = json!(month.to_string());
    }
    line.to_string()
}

fn left_out(what: &NotCompared) -> String {
    match what {
        NotCompared::Dropped { before } => {
            format!(
                "not compared: what is before {before}: its records were kept for `usage.retention_days`, and are gone"
            )
        }
        NotCompared::Tag { metric, tag, before, sums } => format!(
            "not compared: {sums} sums of {metric} by {tag} before {before}: the tag counts since a day before that, and records that were \
             counted earlier are not in its sums"
        ),
    }
}

fn left_out_as_json(what: &NotCompared) -> String {
    match what {
        NotCompared::Dropped { before } => json!({"not_compared": "dropped", "before": before.to_string()}),
        NotCompared::Tag { metric, tag, before, sums } => json!({
            "not_compared": "tag", "before": before.to_string(), "metric": metric, "group_by": tag, "sums": sums,
        }),
    }
    .to_string()
}

fn window(start: Start) -> (&'static str, String) {
    match start {
        Start::Hour(hour) => ("hour", hour.to_string()),
        Start::Day(day) => ("day", day.to_string()),
    }
}
