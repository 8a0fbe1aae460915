//! `outrigger outbox release` and `discard`: orders that the relays carry out, waited for.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, sleep};

use super::{FOUND_PROBLEMS, as_relay};
use crate::primitives::events::relay::{self, OrderDone, OrderState};
use crate::store::Store;

const ASK_EVERY: Duration = Duration::from_millis(200);

#[derive(Args)]
pub(in super::super) struct ReleaseArgs {
    /// The configuration, with `postgres.relay`
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The key of this parked event, by its position as `outbox list` prints it
    #[arg(long, value_name = "POSITION", required_unless_present = "all", conflicts_with = "all")]
    position: Option<i64>,
    /// Every parked key
    #[arg(long)]
    all: bool,
    /// With --all: those of this topic
    #[arg(long, value_name = "NAME", requires = "all")]
    topic: Option<String>,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Args)]
pub(in super::super) struct DiscardArgs {
    /// The configuration, with `postgres.relay`
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The parked event, by its position as `outbox list` prints it
    #[arg(long, value_name = "POSITION")]
    position: i64,
    /// Why: kept with the record of it
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: String,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Args)]
struct Wait {
    /// How long to wait for the relays to do it, in milliseconds; the orders stand after that
    #[arg(long, default_value_t = 60_000)]
    wait_ms: u64,
    /// As JSON: [{"order","topic","tenant","key","sent","outcome","detail"}]
    #[arg(long)]
    json: bool,
}

pub(super) fn release(arguments: &ReleaseArgs) -> anyhow::Result<ExitCode> {
    let told = as_relay(&arguments.config, async |store: &Store| {
        let numbers = relay::release(store, arguments.topic.clone(), arguments.position).await?;
        arguments.wait.done(store, numbers).await
    })?;
    Ok(told.map_or(ExitCode::from(FOUND_PROBLEMS), |states| arguments.wait.tell(&states)))
}

pub(super) fn discard(arguments: &DiscardArgs) -> anyhow::Result<ExitCode> {
    let told = as_relay(&arguments.config, async |store: &Store| {
        let number = relay::discard(store, arguments.position, arguments.reason.clone()).await?;
        arguments.wait.done(store, vec![number]).await
    })?;
    Ok(told.map_or(ExitCode::from(FOUND_PROBLEMS), |states| arguments.wait.tell(&states)))
}

impl Wait {
    /// What came of the orders, once that of each is known or the time is over.
    async fn done(&self, store: &Store, numbers: Vec<i64>) -> anyhow::Result<Vec<OrderState>> {
        let deadline = Instant::now() + Duration::from_millis(self.wait_ms);
        loop {
            let states = relay::orders(store, numbers.clone()).await?;
            if states.iter().all(|state| state.outcome.is_some()) || Instant::now() >= deadline {
                return Ok(states);
            }
            sleep(ASK_EVERY).await;
        }
    }

    /// Says it; 1 where a key is not as it was ordered.
    fn tell(&self, states: &[OrderState]) -> ExitCode {
        if self.json {
            println!("{:#}", serde_json::json!(states));
        } else if states.is_empty() {
            println!("nothing is parked");
        } else {
            states.iter().for_each(|state| println!("{}", line(state)));
        }
        let is_well = |state: &OrderState| match state.outcome {
            Some(OrderDone::Released | OrderDone::Discarded) => true,
            Some(OrderDone::Refused) | None => false,
        };
        if states.iter().all(is_well) { ExitCode::SUCCESS } else { ExitCode::from(FOUND_PROBLEMS) }
    }
}

fn line(state: &OrderState) -> String {
    let OrderState { order, topic, tenant, key, sent, outcome, detail } = state;
    let what = match outcome {
        Some(OrderDone::Released) => format!("released, {sent} events sent"),
        Some(OrderDone::Discarded) => "one event given up; the key's others stay parked".to_owned(),
        Some(OrderDone::Refused) => {
            format!(
                "{sent} events sent, then refused again: {}",
                detail.as_deref().unwrap_or("no reason was kept")
            )
        }
        None => format!("not done in time, {sent} events sent: the order stands until a relay does it"),
    };
    if key.is_empty() {
        return format!("order {order}: tenant {tenant}, all that is parked in a shard: {what}");
    }
    format!("order {order}: {topic} tenant {tenant} key {key:?}: {what}")
}
