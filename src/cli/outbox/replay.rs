//! `outrigger outbox replay`: events again, to a subscription's receivers or into Kafka.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::json;
use uuid::Uuid;

use super::super::migrate::event_policies;
use super::{FOUND_PROBLEMS, load, problem};
use crate::cli::runtime;
use crate::config::{PostgresConfig, ProxyConfig, StoreChoice};
use crate::names::Name;
use crate::policy::{Policies, PolicySource};
use crate::pools::kafka::Kafka;
use crate::primitives::events::push::{self, Subscription};
use crate::primitives::events::relay::{self, Progress, Replay};
use crate::primitives::events::{self, EventsPolicy};
use crate::store::Store;
use crate::store::postgres::{ConnectAs, Postgres};

#[derive(Args)]
pub(in super::super) struct ReplayArgs {
    /// The configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// To this subscription's receivers, as `push:` of the events policy names it
    #[arg(long, value_name = "NAME", required_unless_present = "topic", conflicts_with = "topic")]
    subscription: Option<String>,
    /// Into Kafka, of this topic; with --republish
    #[arg(long, value_name = "NAME", requires = "republish")]
    topic: Option<String>,
    /// Says that consumers of Kafka may get events again: the records have the header `outrigger-replay: true`, and no
    /// `outrigger-seq`
    #[arg(long, conflicts_with = "subscription")]
    republish: bool,
    /// What was accepted from this time on, RFC 3339; all that is kept where only a key is named
    #[arg(long, value_name = "TIME", required_unless_present = "key")]
    from: Option<jiff::Timestamp>,
    /// Of this key alone: `partitionkey`, else `subject`, else `id`. A key is a tenant's
    #[arg(long, value_name = "KEY", requires = "tenant")]
    key: Option<String>,
    /// Of this tenant alone
    #[arg(long, value_name = "UUID")]
    tenant: Option<Uuid>,
    /// The result as JSON: {"subscription","tenants"}, with --key {"subscription","events"}, into Kafka
    /// {"topic","events","until"}
    #[arg(long)]
    json: bool,
}

pub(super) fn replay(arguments: &ReplayArgs) -> anyhow::Result<ExitCode> {
    let Some(config) = load(&arguments.config) else { return Ok(ExitCode::from(FOUND_PROBLEMS)) };
    match sent_again(arguments, &config) {
        Ok(told) => {
            println!("{told}");
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => problem(&format!("{error:#}")),
    }
}

/// Does it; what to print.
fn sent_again(arguments: &ReplayArgs, config: &ProxyConfig) -> anyhow::Result<String> {
    let database = config.postgres.as_ref().filter(|_| config.store == Some(StoreChoice::Postgres));
    let Some(database) = database else {
        anyhow::bail!("replays are for `store: postgres`: an embedded store is its process's alone");
    };
    if let Some(from) = arguments.from.filter(|from| *from > jiff::Timestamp::now()) {
        anyhow::bail!("--from {from} is yet to come");
    }
    let policies = event_policies(config)?;
    match (&arguments.subscription, &arguments.topic) {
        (Some(name), _) => to_subscription(arguments, database, policies, name),
        (None, Some(topic)) => into_kafka(arguments, config, database, &policies, topic),
        (None, None) => anyhow::bail!("name a --subscription or a --topic"),
    }
}

fn to_subscription(
    arguments: &ReplayArgs,
    database: &PostgresConfig,
    policies: Policies,
    name: &str,
) -> anyhow::Result<String> {
    let policies = PolicySource::new(policies);
    let wanted = |one: &&Arc<Subscription>| one.name.as_str() == name;
    let found = policies
        .current()
        .get::<EventsPolicy>()
        .and_then(|events| events.subscriptions().iter().find(wanted).cloned());
    let Some(subscription) = found else {
        anyhow::bail!("the events policy has no subscription `{name}`");
    };
    if let Some(tenant) = arguments.tenant.filter(|tenant| !subscription.tenants.includes(*tenant)) {
        anyhow::bail!("the subscription `{name}` is not for the tenant {tenant}");
    }
    let from_ms = arguments.since_ms();
    runtime()?.block_on(async {
        let postgres =
            Postgres::open(database, &ConnectAs::App(&database.app)).await.map_err(anyhow::Error::msg)?;
        let store = Store::Postgres(postgres);
        if let (Some(key), Some(tenant)) = (&arguments.key, arguments.tenant) {
            let of = (tenant, key.as_str());
            let events = push::replay_key(&store, policies, &subscription, of, from_ms).await?;
            return Ok(match arguments.json {
                true => json!({"subscription": name, "events": events}).to_string(),
                false => format!("{name}: {events} events of the key {key:?} are sent again, in their order"),
            });
        }
        let tenants = push::replay(&store, policies, &subscription, arguments.tenant, from_ms).await?;
        Ok(match arguments.json {
            true => json!({"subscription": name, "tenants": tenants}).to_string(),
            false => {
                format!("{name}: the events of {tenants} tenants are sent again from {}", arguments.since())
            }
        })
    })
}

fn into_kafka(
    arguments: &ReplayArgs,
    config: &ProxyConfig,
    database: &PostgresConfig,
    policies: &Policies,
    topic: &str,
) -> anyhow::Result<String> {
    let (Some(kafka), Some(role)) = (&config.kafka, &database.relay) else {
        anyhow::bail!("the configuration has no `kafka`, or no `postgres.relay`: nothing is relayed by it");
    };
    let is_known = Name::parse(topic).is_ok_and(|name| {
        let policy = policies.get::<EventsPolicy>();
        policy.is_some_and(|policy| {
            policy.topic(&name).or_else(|| policy.topic_of_dead_letters(&name)).is_some()
        })
    });
    if !is_known {
        anyhow::bail!("the events policy has no topic `{topic}`");
    }
    let replay = Replay {
        topic: topic.to_owned(),
        from_ms: arguments.since_ms(),
        tenant: arguments.tenant,
        key: arguments.key.clone(),
        shards: config.section("events").map_or(1, events::relay_shards),
    };
    let kafka = Arc::new(Kafka::new(kafka.clone())?);
    let mut last = Progress::default();
    let ended = runtime()?.block_on(async {
        let postgres = Postgres::open(database, &ConnectAs::Relay(role)).await.map_err(anyhow::Error::msg)?;
        let says = |progress| {
            last = progress;
            eprintln!("{topic}: {}", so_far(progress));
        };
        Ok::<_, anyhow::Error>(relay::republish(&Store::Postgres(postgres), kafka, replay, says).await?)
    });
    let progress = ended.map_err(|error| match last.until_ms.map(time) {
        Some(until) => error.context(format!("{}; to go on, say --from {until}", so_far(last))),
        None => error.context("nothing is known to be sent"),
    })?;
    let until = progress.until_ms.map(time);
    Ok(match arguments.json {
        true => json!({"topic": topic, "events": progress.sent, "until": until}).to_string(),
        false => format!("{topic}: {}, from {} on", so_far(progress), arguments.since()),
    })
}

impl ReplayArgs {
    fn since_ms(&self) -> i64 {
        self.from.map_or(0, jiff::Timestamp::as_millisecond)
    }

    fn since(&self) -> String {
        self.from.map_or("the first that is kept".to_owned(), |from| from.to_string())
    }
}

fn so_far(progress: Progress) -> String {
    let sent = progress.sent;
    match progress.until_ms.map(time) {
        Some(until) => format!("{sent} events are in Kafka again, up to the one accepted at {until}"),
        None => "no event is in Kafka again".to_owned(),
    }
}

fn time(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .map_or_else(|_| format!("{ms} ms since 1970"), |time| time.to_string())
}
