//! `outrigger outbox`: what is on its way out of the event log.

mod attempts;
mod orders;
mod replay;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{FOUND_PROBLEMS, runtime};
use crate::config::ProxyConfig;
use crate::primitives;
use crate::primitives::events::relay;
use crate::store::Store;
use crate::store::postgres::{ConnectAs, Postgres};

#[derive(Subcommand)]
pub(super) enum OutboxCommand {
    /// Lists the events that Kafka refused, and the later ones of their keys
    List(ListArgs),
    /// Sends parked keys again, once Kafka takes their events
    Release(orders::ReleaseArgs),
    /// Gives one parked event up, and keeps a record of that
    Discard(orders::DiscardArgs),
    /// Lists what was tried for a subscription
    Attempts(attempts::AttemptsArgs),
    /// Sends events again: to a subscription's receivers, or into Kafka
    Replay(replay::ReplayArgs),
}

#[derive(Args)]
pub(super) struct ListArgs {
    /// The configuration, with `postgres.relay`
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// How many at the most
    #[arg(long, default_value_t = 100)]
    limit: u32,
    /// As JSON: [{"position","tenant","topic","lane","key","type","reason","parked_ms"}]
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &OutboxCommand) -> anyhow::Result<ExitCode> {
    match command {
        OutboxCommand::List(arguments) => list(arguments),
        OutboxCommand::Attempts(arguments) => attempts::attempts(arguments),
        OutboxCommand::Release(arguments) => orders::release(arguments),
        OutboxCommand::Discard(arguments) => orders::discard(arguments),
        OutboxCommand::Replay(arguments) => replay::replay(arguments),
    }
}

/// The configuration; what is wrong with it is said.
pub(super) fn load(path: &Path) -> Option<ProxyConfig> {
    match ProxyConfig::load(path, &primitives::sections()) {
        Ok(config) => Some(config),
        Err(report) => {
            eprintln!("{}", report.to_string().trim_end());
            None
        }
    }
}

/// What is wrong, for the operator.
pub(super) fn problem(text: &str) -> anyhow::Result<ExitCode> {
    eprintln!("error: {text}");
    Ok(ExitCode::from(FOUND_PROBLEMS))
}

/// Does `work` with the store as the relay's role sees it; what is wrong is said.
fn as_relay<T>(
    path: &Path,
    work: impl AsyncFnOnce(&Store) -> anyhow::Result<T>,
) -> anyhow::Result<Option<T>> {
    let Some(config) = load(path) else { return Ok(None) };
    let role = config.postgres.as_ref().and_then(|database| Some((database, database.relay.as_ref()?)));
    let Some((database, role)) = role else {
        problem("the configuration has no `postgres.relay`: nothing is relayed by it")?;
        return Ok(None);
    };
    let done = runtime()?.block_on(async {
        let postgres = Postgres::open(database, &ConnectAs::Relay(role)).await.map_err(anyhow::Error::msg)?;
        work(&Store::Postgres(postgres)).await
    });
    match done {
        Ok(done) => Ok(Some(done)),
        Err(error) => {
            problem(&format!("{error:#}"))?;
            Ok(None)
        }
    }
}

fn list(arguments: &ListArgs) -> anyhow::Result<ExitCode> {
    let listed = as_relay(&arguments.config, async |store: &Store| {
        Ok(relay::parked_events(store, arguments.limit).await?)
    })?;
    let Some(parked) = listed else { return Ok(ExitCode::from(FOUND_PROBLEMS)) };
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&parked)?);
        return Ok(ExitCode::SUCCESS);
    }
    for event in &parked {
        println!(
            "{} {} tenant {} lane {} key {:?} type {}: {}",
            event.position, event.topic, event.tenant, event.lane, event.key, event.kind, event.reason
        );
    }
    if parked.is_empty() {
        println!("nothing is parked");
    }
    Ok(ExitCode::SUCCESS)
}
