//! `outrigger outbox`: what is on its way out of the event log.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{FOUND_PROBLEMS, runtime};
use crate::config::ProxyConfig;
use crate::primitives::{self, events::relay};
use crate::store::Store;
use crate::store::postgres::{ConnectAs, Postgres};

#[derive(Subcommand)]
pub(super) enum OutboxCommand {
    /// Lists the events that Kafka refused, and the later ones of their keys
    List(ListArgs),
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
    }
}

fn list(arguments: &ListArgs) -> anyhow::Result<ExitCode> {
    let config = match ProxyConfig::load(&arguments.config, &primitives::sections()) {
        Ok(config) => config,
        Err(report) => {
            eprintln!("{}", report.to_string().trim_end());
            return Ok(ExitCode::from(FOUND_PROBLEMS));
        }
    };
    let role = config.postgres.as_ref().and_then(|database| Some((database, database.relay.as_ref()?)));
    let Some((database, role)) = role else {
        eprintln!("error: the configuration has no `postgres.relay`: nothing is relayed by it");
        return Ok(ExitCode::from(FOUND_PROBLEMS));
    };
    let parked = runtime()?.block_on(async {
        let postgres = Postgres::open(database, &ConnectAs::Relay(role)).await.map_err(anyhow::Error::msg)?;
        Ok::<_, anyhow::Error>(relay::parked_events(&Store::Postgres(postgres), arguments.limit).await?)
    });
    let parked = match parked {
        Ok(parked) => parked,
        Err(error) => {
            eprintln!("error: {error:#}");
            return Ok(ExitCode::from(FOUND_PROBLEMS));
        }
    };
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
