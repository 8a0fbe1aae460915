//! `outrigger outbox attempts`: what was tried for a subscription.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{FOUND_PROBLEMS, as_relay};
use crate::primitives::events::push::{self, AttemptFilter, ListedAttempt};
use crate::store::Store;

#[derive(Args)]
pub(in super::super) struct AttemptsArgs {
    /// The configuration, with `postgres.relay`
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The subscription, as `push:` of the events policy names it, or named it
    #[arg(long, value_name = "NAME")]
    subscription: String,
    /// Of this tenant alone
    #[arg(long, value_name = "UUID")]
    tenant: Option<uuid::Uuid>,
    /// Those alone that did not deliver
    #[arg(long)]
    failed: bool,
    /// How many at the most, the newest first
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// As JSON: [{"tenant","at_ms","event_id","message_id","attempt","outcome","status","duration_ms","next_at_ms"}]
    #[arg(long)]
    json: bool,
}

pub(super) fn attempts(arguments: &AttemptsArgs) -> anyhow::Result<ExitCode> {
    let filter = AttemptFilter {
        subscription: arguments.subscription.clone(),
        tenant: arguments.tenant,
        failed: arguments.failed,
        limit: arguments.limit,
    };
    let listed = as_relay(&arguments.config, async |store: &Store| Ok(push::attempts(store, filter).await?))?;
    let Some(attempts) = listed else { return Ok(ExitCode::from(FOUND_PROBLEMS)) };
    if arguments.json {
        println!("{:#}", serde_json::json!(attempts));
        return Ok(ExitCode::SUCCESS);
    }
    for attempt in &attempts {
        println!("{}", line(attempt)?);
    }
    if attempts.is_empty() {
        println!("nothing was tried for {:?} within the days that events are kept", arguments.subscription);
    }
    Ok(ExitCode::SUCCESS)
}

fn line(one: &ListedAttempt) -> anyhow::Result<String> {
    let time = jiff::Timestamp::from_millisecond;
    let status = one.status.map_or("-".to_owned(), |status| status.to_string());
    let next = match (one.outcome.as_str(), one.next_at_ms) {
        ("delivered", _) => "done".to_owned(),
        (_, Some(next_ms)) => format!("next at {}", time(next_ms)?),
        (_, None) => "that was the last".to_owned(),
    };
    Ok(format!(
        "{} tenant {} event {:?} attempt {}: {} (status {status}) after {} ms, {next}",
        time(one.at_ms)?,
        one.tenant,
        one.event_id,
        one.attempt,
        one.outcome,
        one.duration_ms,
    ))
}
