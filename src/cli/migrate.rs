//! `outrigger migrate`: brings the database to this program's version.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{FOUND_PROBLEMS, runtime};
use crate::config::{ProxyConfig, StoreChoice};
use crate::policy::{Kind, Policies, PolicyLoader};
use crate::pools::kafka::{Kafka, TopicReport, ensure_topics};
use crate::primitives::usage::UsagePolicy;
use crate::primitives::{self, events, usage};
use crate::store::postgres;

#[derive(Args)]
pub(super) struct MigrateArgs {
    /// The configuration, with `postgres.owner`
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// After a restore to an earlier time, before anything is served: relays go on from the database's last event
    #[arg(long)]
    new_epoch: bool,
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
    let topics = match topics(&config, arguments.dry_run) {
        Ok(topics) => topics,
        Err(problem) => {
            eprintln!("error: {problem}");
            return Ok(ExitCode::from(FOUND_PROBLEMS));
        }
    };
    let epoch = if arguments.new_epoch { postgres::Epoch::New } else { postgres::Epoch::Same };
    let usage = match usage_terms(&config) {
        Ok(usage) => usage,
        Err(problem) => {
            eprintln!("error: {problem}");
            return Ok(ExitCode::from(FOUND_PROBLEMS));
        }
    };
    let settings = postgres::Settings {
        events_days: config.section("events").and_then(events::retention_days),
        usage_days: config.section("usage").and_then(usage::retention_days),
        usage,
    };
    let migrated = match runtime()?.block_on(postgres::migrate(database, &settings, epoch, arguments.dry_run))
    {
        Ok(migrated) => migrated,
        Err(error) => {
            eprintln!("error: {error}");
            return Ok(ExitCode::from(FOUND_PROBLEMS));
        }
    };
    let wrong = topics.iter().any(|topic| !topic.mismatches.is_empty());
    let code = if wrong { ExitCode::from(FOUND_PROBLEMS) } else { ExitCode::SUCCESS };
    if arguments.json {
        let topics: Vec<_> = topics.iter().map(as_json).collect();
        let timescale = migrated.timescale.as_ref();
        let timescale = timescale.map(|found| json!({"version": found.version, "used": found.is_used}));
        let result = json!({
            "from": migrated.from, "steps": migrated.steps, "applied": !arguments.dry_run, "topics": topics,
            "timescale": timescale,
        });
        println!("{result:#}");
        return Ok(code);
    }
    tell(&migrated, &topics, arguments.dry_run);
    if let (Some(terms), false) = (&settings.usage, arguments.dry_run) {
        let closes = terms
            .close_after_ms
            .map_or("never close".to_owned(), |ms| format!("close {ms} ms after their end"));
        println!("usage is counted in days and months of {}, which {closes}", terms.time_zone);
    }
    Ok(code)
}

/// By what usage is counted, as the policy says; nothing where there is none.
fn usage_terms(config: &ProxyConfig) -> anyhow::Result<Option<postgres::UsageTerms>> {
    if config.section("usage").is_none() {
        return Ok(None);
    }
    if !config.policies.exists() {
        // Whoever migrates may have no policies: the first sidecar that counts has some.
        eprintln!("there is no {}: by what usage is counted stays as it is", config.policies.display());
        return Ok(None);
    }
    Ok(policies_of(config, &usage::KIND)?.get::<UsagePolicy>().map(UsagePolicy::terms))
}

fn tell(migrated: &postgres::Migrated, topics: &[TopicReport], dry_run: bool) {
    for topic in topics.iter().filter(|topic| topic.was_made) {
        println!("made the topic {}", topic.name);
    }
    for topic in topics {
        for mismatch in &topic.mismatches {
            println!("topic {}: {mismatch}", topic.name);
        }
    }
    let done = if dry_run { "would apply" } else { "applied" };
    for step in &migrated.steps {
        println!("{done} {step}");
    }
    if migrated.steps.is_empty() {
        println!("up to date: version {}", migrated.from);
    }
    if let (Some(timescale), false) = (&migrated.timescale, dry_run) {
        let how = if timescale.is_used {
            "keeps raw usage"
        } else {
            "is not used: raw usage stays in partitions (docs/usage.md, \"TimescaleDB\")"
        };
        println!("TimescaleDB {} {how}", timescale.version);
    }
}

/// Makes and checks Kafka's topics, where there is a Kafka.
fn topics(config: &ProxyConfig, dry_run: bool) -> anyhow::Result<Vec<TopicReport>> {
    let (Some(kafka), Some(section)) = (&config.kafka, config.section("events")) else {
        return Ok(Vec::new());
    };
    let kafka = Kafka::new(kafka.clone())?;
    let policies = event_policies(config)?;
    let wanted = events::kafka_topics(section, &policies, &kafka);
    if dry_run {
        return Ok(Vec::new());
    }
    Ok(runtime()?.block_on(ensure_topics(&kafka, &wanted))?)
}

/// The access and the events policy.
pub(super) fn event_policies(config: &ProxyConfig) -> anyhow::Result<Policies> {
    policies_of(config, &events::KIND)
}

/// The access policy, and those of a kind.
pub(super) fn policies_of(config: &ProxyConfig, kind: &'static Kind) -> anyhow::Result<Policies> {
    let actions = primitives::ALL.iter().flat_map(|row| row.actions).copied().collect();
    let loader = PolicyLoader::new(config.policies.clone(), vec![kind], actions)
        .ignoring(primitives::ALL.iter().map(|row| row.policy.name))
        .with_issuers(config.identity.issuers.iter().map(|issuer| issuer.name.clone()));
    loader.load(1).map_err(|report| anyhow::anyhow!("{report}"))
}

fn as_json(topic: &TopicReport) -> serde_json::Value {
    let mismatches: Vec<_> = topic.mismatches.iter().map(ToString::to_string).collect();
    json!({"name": topic.name, "made": topic.was_made, "mismatches": mismatches})
}
