//! `outrigger migrate`: brings the database to this program's version.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{FOUND_PROBLEMS, runtime};
use crate::config::{ProxyConfig, StoreChoice};
use crate::primitives::{self, events};
use crate::store::postgres;

#[derive(Args)]
pub(super) struct MigrateArgs {
    /// The configuration, with `postgres.owner`
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Says what would be done, and does nothing
    #[arg(long)]
    dry_run: bool,
    /// The result as JSON: {"from","steps","applied"}
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &MigrateArgs) -> anyhow::Result<ExitCode> {
    let config = match ProxyConfig::load(&arguments.config, &primitives::sections()) {
        Ok(config) => config,
        Err(report) => {
            eprintln!("{}", report.to_string().trim_end());
            return Ok(ExitCode::from(FOUND_PROBLEMS));
        }
    };
    let (Some(StoreChoice::Postgres), Some(database)) = (config.store, &config.postgres) else {
        eprintln!(
            "error: nothing to migrate: the configuration has no `store: postgres`. Embedded databases are brought to their \
             version when they are opened"
        );
        return Ok(ExitCode::from(FOUND_PROBLEMS));
    };
    let days = config.section("events").and_then(events::retention_days);
    let migrated = match runtime()?.block_on(postgres::migrate(database, days, arguments.dry_run)) {
        Ok(migrated) => migrated,
        Err(error) => {
            eprintln!("error: {error}");
            return Ok(ExitCode::from(FOUND_PROBLEMS));
        }
    };
    if arguments.json {
        let result = json!({"from": migrated.from, "steps": migrated.steps, "applied": !arguments.dry_run});
        println!("{result:#}");
        return Ok(ExitCode::SUCCESS);
    }
    let done = if arguments.dry_run { "would apply" } else { "applied" };
    for step in &migrated.steps {
        println!("{done} {step}");
    }
    if migrated.steps.is_empty() {
        println!("up to date: version {}", migrated.from);
    }
    Ok(ExitCode::SUCCESS)
}
