//! `outrigger check`: the configuration, the policies, and each backend, tried. Every problem at once.

use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use futures_util::future::join_all;
use serde_json::Value;

use super::probe::{self, Tried};
use super::{FOUND_PROBLEMS, runtime};
use crate::config::{Document, Findings, Inspection, ProxyConfig, Report, pointer_step};
use crate::policy::{Policies, PolicyLoader};
use crate::primitives::usage::UsagePolicy;
use crate::primitives::{self, cache};

/// How long one backend may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Args)]
pub(super) struct CheckArgs {
    /// The configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The problems as JSON: [{"file","line","column","pointer","message","expected"}]
    #[arg(long)]
    json: bool,
}

/// What was found to be well, a line each, and every problem.
#[derive(Default)]
struct Outcome {
    lines: Vec<String>,
    report: Report,
    /// Of the usage policy.
    time_zone: Option<String>,
}

pub(super) fn run(arguments: &CheckArgs) -> anyhow::Result<ExitCode> {
    let mut inspection = ProxyConfig::inspect(&arguments.config, &primitives::sections());
    let mut outcome = Outcome { report: std::mem::take(&mut inspection.report), ..Outcome::default() };
    if inspection.config.is_some() {
        outcome.lines.push(format!("{}: valid", arguments.config.display()));
    }
    check_policies(&inspection, &mut outcome);
    if let (Some(config), Some(document)) = (&inspection.config, &inspection.document) {
        runtime()?.block_on(try_backends(config, document, &mut outcome));
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&outcome.report.to_json())?);
    } else {
        for line in &outcome.lines {
            println!("{line}");
        }
        if !outcome.report.is_empty() {
            println!("\n{}", outcome.report.to_string().trim_end());
        }
    }
    Ok(if outcome.report.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FOUND_PROBLEMS) })
}

/// The policies are checked also where the configuration is wrong elsewhere.
fn check_policies(inspection: &Inspection, outcome: &mut Outcome) {
    let Some(directory) = inspection.policies.clone() else { return };
    let configured = primitives::ALL.iter().filter(|row| inspection.sections.contains(&row.name));
    let kinds = configured.map(|row| &row.policy).collect();
    let actions = primitives::ALL.iter().flat_map(|row| row.actions).copied().collect();
    let mut loader = PolicyLoader::new(directory.clone(), kinds, actions)
        .ignoring(primitives::ALL.iter().map(|row| row.policy.name));
    let issuers =
        inspection.document.as_ref().and_then(|document| document.value().pointer("/identity/issuers"));
    if let Some(issuers) = issuers.and_then(Value::as_array) {
        let names = issuers.iter().filter_map(|issuer| issuer.get("name")?.as_str().map(str::to_owned));
        loader = loader.with_issuers(names);
    }
    if let Some(config) = &inspection.config {
        loader = loader.with_data_dir(config.data_dir.is_some());
    }
    match loader.check(1) {
        Ok(checked) => {
            if let Some(config) = &inspection.config {
                outcome.lines.extend(shares(config, &checked.policies));
            }
            let usage = checked.policies.get::<UsagePolicy>();
            outcome.time_zone = usage.map(|policy| policy.calendar().zone_name().to_owned());
            let kinds = checked.kinds.join(", ");
            outcome.lines.push(format!("{}: valid: {kinds}", directory.display()));
            if !checked.has_access() {
                let warning = "warning: no document of kind `access`: every call is denied";
                outcome.lines.push(format!("{}: {warning}", directory.display()));
            }
        }
        Err(report) => outcome.report.append(report),
    }
}

/// Warns where one tenant may take what all have together.
fn shares(config: &ProxyConfig, policies: &Policies) -> Vec<String> {
    let (limits, mut warnings) = (&config.limits, Vec::new());
    if limits.one_tenant_bytes() >= limits.all_bytes() {
        warnings.push(format!(
            "limits.tenant_bytes: warning: one tenant may have {} bytes on their way, and all together {}: it can leave \
             the others none",
            limits.one_tenant_bytes(),
            limits.all_bytes()
        ));
    }
    let backend = config.section("cache").and_then(|section| section.get("backend")?.as_str());
    let share = cache::largest_share(policies).filter(|share| *share >= limits.cache_db_bytes);
    if let (Some("embedded"), Some(share)) = (backend, share) {
        warnings.push(format!(
            "limits.cache_db_bytes: warning: `cache.db` holds {} bytes, and the cache's policy lets one tenant keep \
             {share}: it can leave the others none",
            limits.cache_db_bytes
        ));
    }
    warnings
}

/// Tries every issuer's keys, every Redis instance and the database, all at the same time.
async fn try_backends(config: &ProxyConfig, document: &Document, outcome: &mut Outcome) {
    let issuers = config.identity.issuers.iter().enumerate().map(|(index, issuer)| async move {
        let tried = in_time(probe::keys(issuer)).await;
        (format!("identity.{}", issuer.name), format!("/identity/issuers/{index}/jwks"), tried)
    });
    let instances = config.redis.iter().map(|(name, instance)| async move {
        let used_by = users_of(config, name);
        let tried = in_time(probe::redis(name, instance, &used_by)).await;
        (format!("redis.{name}"), format!("/redis{}", pointer_step(name)), tried)
    });
    let time_zone = outcome.time_zone.clone();
    let databases = config.postgres.iter().map(|database| {
        let trial = in_time(probe::postgres(database, time_zone.as_deref()));
        async move { ("postgres".to_owned(), "/postgres".to_owned(), trial.await) }
    });
    let (issuers, instances, databases) =
        tokio::join!(join_all(issuers), join_all(instances), join_all(databases));
    for (subject, at, tried) in issuers.into_iter().chain(instances).chain(databases) {
        if !tried.summary.is_empty() {
            let state = if tried.findings.is_empty() { "up" } else { "see below" };
            outcome.lines.push(format!("{subject}: {state}, {}", tried.summary));
        }
        for warning in &tried.warnings {
            outcome.lines.push(format!("{subject}: warning: {warning}"));
        }
        outcome.report.append(document.report(&below(&at, &tried.findings)));
    }
}

async fn in_time(trial: impl Future<Output = Tried>) -> Tried {
    tokio::time::timeout(PATIENCE, trial)
        .await
        .unwrap_or_else(|_| Tried::failed("no answer in time", "a backend that answers"))
}

/// The findings of an instance, with pointers from the root of the configuration.
fn below(at: &str, findings: &Findings) -> Findings {
    let mut moved = Findings::default();
    for finding in findings.iter() {
        let pointer = format!("{at}{}", finding.pointer);
        moved.add(pointer, finding.message.as_str(), finding.expected.as_str());
    }
    moved
}

/// The primitives whose sections name a Redis instance.
fn users_of(config: &ProxyConfig, instance: &str) -> Vec<&'static primitives::Primitive> {
    let named = |row: &&primitives::Primitive| {
        config.section(row.name).and_then(|section| section.get("redis")?.as_str()) == Some(instance)
    };
    primitives::ALL.iter().copied().filter(|row| named(row)).collect()
}
