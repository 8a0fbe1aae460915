//! `outrigger outbox`: what is on its way out of the event log.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand};

use super::{FOUND_PROBLEMS, runtime};
use crate::config::{ProxyConfig, StoreChoice};
use crate::policy::PolicySource;
use crate::primitives;
use crate::primitives::events::push::{self, Subscription};
use crate::primitives::events::{EventsPolicy, relay};
use crate::store::Store;
use crate::store::postgres::{ConnectAs, Postgres};

#[derive(Subcommand)]
pub(super) enum OutboxCommand {
    /// Lists the events that Kafka refused, and the later ones of their keys
    List(ListArgs),
    /// Sends a subscription's events from a time on again
    Replay(ReplayArgs),
}

#[derive(Args)]
pub(super) struct ReplayArgs {
    /// The configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The subscription, as `push:` of the events policy names it
    #[arg(long, value_name = "NAME")]
    subscription: String,
    /// From when on, RFC 3339
    #[arg(long, value_name = "TIME")]
    from: jiff::Timestamp,
    /// Of this tenant alone
    #[arg(long, value_name = "UUID")]
    tenant: Option<uuid::Uuid>,
    /// The result as JSON: {"subscription","tenants"}
    #[arg(long)]
    json: bool,
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
        OutboxCommand::Replay(arguments) => replay(arguments),
    }
}

/// The configuration; what is wrong with it is said.
fn load(path: &Path) -> Option<ProxyConfig> {
    match ProxyConfig::load(path, &primitives::sections()) {
        Ok(config) => Some(config),
        Err(report) => {
            eprintln!("{}", report.to_string().trim_end());
            None
        }
    }
}

fn replay(arguments: &ReplayArgs) -> anyhow::Result<ExitCode> {
    let problem = |text: String| {
        eprintln!("error: {text}");
        Ok(ExitCode::from(FOUND_PROBLEMS))
    };
    let Some(config) = load(&arguments.config) else { return Ok(ExitCode::from(FOUND_PROBLEMS)) };
    let Some(database) = config.postgres.as_ref().filter(|_| config.store == Some(StoreChoice::Postgres))
    else {
        return problem(
            "replays are for `store: postgres`: an embedded store is its process's alone".to_owned(),
        );
    };
    let policies = match super::migrate::event_policies(&config) {
        Ok(policies) => PolicySource::new(policies),
        Err(error) => return problem(format!("{error:#}")),
    };
    let wanted = |one: &&Arc<Subscription>| one.name.as_str() == arguments.subscription;
    let found = policies
        .current()
        .get::<EventsPolicy>()
        .and_then(|events| events.subscriptions().iter().find(wanted).cloned());
    let Some(subscription) = found else {
        return problem(format!("the events policy has no subscription `{}`", arguments.subscription));
    };
    let replayed = runtime()?.block_on(async {
        let postgres =
            Postgres::open(database, &ConnectAs::App(&database.app)).await.map_err(anyhow::Error::msg)?;
        let (store, from_ms) = (Store::Postgres(postgres), arguments.from.as_millisecond());
        Ok::<_, anyhow::Error>(
            push::replay(&store, policies, &subscription, arguments.tenant, from_ms).await?,
        )
    });
    let tenants = match replayed {
        Ok(tenants) => tenants,
        Err(error) => return problem(format!("{error:#}")),
    };
    if arguments.json {
        println!("{}", serde_json::json!({"subscription": arguments.subscription, "tenants": tenants}));
    } else {
        println!(
            "{}: the events of {tenants} tenants are sent again from {}",
            arguments.subscription, arguments.from
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn list(arguments: &ListArgs) -> anyhow::Result<ExitCode> {
    let Some(config) = load(&arguments.config) else { return Ok(ExitCode::from(FOUND_PROBLEMS)) };
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
