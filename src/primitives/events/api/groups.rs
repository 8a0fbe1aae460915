//! Consumer groups: `:pull`, `:ack`, `:nack`, `:extend`, `:seek`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Api, readable_topic, wait_until};
use crate::error::ErrorKind;
use crate::http::{Call, Problem, Reply};
use crate::names::Name;
use crate::primitives::events::cloudevents::write_structured;
use crate::primitives::events::groups::{
    DelayTime, LeaseTime, MAX_RECEIPTS, MaxDeliveries, OutOfBounds, Receipts,
};
use crate::primitives::events::push::GROUP_PREFIX;
use crate::primitives::events::{Audience, CONSUME, Deliveries, Group, ReadFrom, Settle, Topic};

/// A receipt is 28 characters; a body has a thousand at the most.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// The longest wait that a caller may ask for.
const MAX_WAIT_MS: u64 = 60_000;
/// The longest time without a look: another sidecar's consumer may give something back.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The same where many wait for one group.
const LONGEST: Duration = Duration::from_secs(30);

/// Asks for deliveries.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PullRequest {
    /// The group's name.
    group: String,
    /// How many at the most; 1 to 1000.
    #[serde(default = "default_max")]
    #[schemars(range(min = 1, max = 1000))]
    max: u64,
    /// How long to wait where there is nothing, in milliseconds; 60000 at the most, and never past the call's time.
    #[serde(default)]
    #[schemars(range(max = 60_000))]
    wait_ms: u64,
    /// How long each is leased, in milliseconds; 1000 to 43200000. Without it as long as the topic's policy says.
    #[serde(default)]
    #[schemars(range(min = 1000, max = 43_200_000_u64))]
    lease_ms: Option<u64>,
}

fn default_max() -> u64 {
    10
}

/// Names deliveries by their receipts.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AckRequest {
    /// The group's name.
    group: String,
    /// Receipts of `:pull`.
    #[schemars(length(min = 1, max = MAX_RECEIPTS))]
    receipts: Vec<Box<str>>,
}

/// Gives deliveries back.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NackRequest {
    /// The group's name.
    group: String,
    /// Receipts of `:pull`.
    #[schemars(length(min = 1, max = MAX_RECEIPTS))]
    receipts: Vec<Box<str>>,
    /// How long they are held back, in milliseconds; 43200000 at the most.
    #[serde(default)]
    #[schemars(range(max = 43_200_000_u64))]
    delay_ms: u64,
}

/// Makes leases end later.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExtendRequest {
    /// The group's name.
    group: String,
    /// Receipts of `:pull`.
    #[schemars(length(min = 1, max = MAX_RECEIPTS))]
    receipts: Vec<Box<str>>,
    /// For how long from now, in milliseconds; 1000 to 43200000. Without it as long as the topic's policy says.
    #[serde(default)]
    #[schemars(range(min = 1000, max = 43_200_000_u64))]
    lease_ms: Option<u64>,
}

/// Moves a group.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SeekRequest {
    /// The group's name.
    group: String,
    /// `earliest`, `latest`, an RFC 3339 time, or the cursor of an event, after which it goes on.
    to: String,
}

/// What became of receipts.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct SettleReply {
    /// How many receipts were good.
    done: usize,
    /// Those that were not: their lease is over, or void, or not of this group.
    stale: Vec<Box<str>>,
}

pub(super) async fn pull(api: &Api, mut call: Box<Call>) -> Result<Reply, Problem> {
    let (audience, topic) = readable_topic(&call, CONSUME)?;
    let request: PullRequest = call.json(MAX_BODY_BYTES).await?;
    if request.wait_ms > MAX_WAIT_MS {
        return Err(wrong("/wait_ms", format!("0 to {MAX_WAIT_MS}")));
    }
    let max = MaxDeliveries::new(request.max)?;
    let lease = LeaseTime::new(request.lease_ms.unwrap_or(topic.groups.lease_ms))?;
    let name = group_name(&request.group)?;
    let group = group(audience.clone(), topic, &request.group)?;
    let (until, at_the_latest) = (wait_until(&call, request.wait_ms), wait_until(&call, MAX_WAIT_MS));
    let mut waiter = None;
    if request.wait_ms > 0 {
        waiter = api.arrivals.pull(&audience, &name);
        if waiter.is_none() {
            return Err(too_many_wait(api));
        }
    }
    loop {
        if let Some(waiter) = &mut waiter {
            waiter.looks();
        }
        let pulled = api.turns.pull(&group, max, lease).await?;
        count(api, &pulled);
        api.undertaker.gave_up(&group, pulled.given_up);
        if pulled.deliveries.len() as u64 >= request.max {
            // There may be more, for another that waits.
            api.arrivals.tell_group(&audience, &name);
        }
        let now = Instant::now();
        if pulled.more && now < at_the_latest && !call.stopping().is_cancelled() {
            // Nothing in a part of the log is no answer yet.
            continue;
        }
        let Some(waiter) = waiter.as_mut().filter(|_| pulled.deliveries.is_empty() && now < until) else {
            return Ok(reply(&pulled));
        };
        // Together they look as often as one would alone.
        let again = (LOOK_AGAIN * u32::try_from(waiter.companions()).unwrap_or(u32::MAX)).min(LONGEST);
        let due = pulled.due_in_ms.map_or(again, Duration::from_millis).min(again);
        tokio::select! {
            () = waiter.arrival() => {}
            () = tokio::time::sleep_until(until.min(now + due).into()) => {}
            // Who drains wants no call to wait for what may never come.
            () = call.stopping().cancelled() => return Ok(reply(&pulled)),
        }
    }
}

fn too_many_wait(api: &Api) -> Problem {
    api.metrics.refused_pulls.inc();
    let most = api.arrivals.most_pulls();
    let detail = format!(
        "this tenant has {most} pulls that wait (`events.tenant_pulls`): pull without `wait_ms`, or come back"
    );
    Problem::new(ErrorKind::Overloaded, detail)
}

fn count(api: &Api, pulled: &Deliveries) {
    api.metrics.pulled(pulled.deliveries.iter().map(|one| one.lease.attempt));
    api.metrics.full_groups.inc_by(u64::from(pulled.full));
    let now_ms = i64::try_from(crate::clock::since_1970_ms()).unwrap_or(i64::MAX);
    for first in pulled.deliveries.iter().filter(|one| one.lease.attempt == 1) {
        // The store's clock may be ahead of this one.
        let age_ms = now_ms.saturating_sub(first.event.accepted_ms).max(0).unsigned_abs();
        api.metrics.delivery_age_seconds.observe(Duration::from_millis(age_ms).as_secs_f64());
    }
}

/// Written by hand: an event's own text goes in as it is.
fn reply(pulled: &Deliveries) -> Reply {
    let mut body = Vec::with_capacity(64 + pulled.deliveries.len() * 512);
    body.extend_from_slice(b"{\"deliveries\":[");
    for (at, one) in pulled.deliveries.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        let head = format!(
            "{comma}{{\"receipt\":\"{}\",\"attempt\":{},\"event\":",
            one.lease.receipt, one.lease.attempt
        );
        body.extend_from_slice(head.as_bytes());
        write_structured(&mut body, &one.event.attributes, &one.event.data, &[]);
        body.push(b'}');
    }
    body.extend_from_slice(b"]}");
    Reply::new(StatusCode::OK).with_body("application/json", body)
}

pub(super) async fn ack(api: &Api, mut call: Box<Call>) -> Result<Reply, Problem> {
    let (audience, topic) = readable_topic(&call, CONSUME)?;
    let request: AckRequest = call.json(MAX_BODY_BYTES).await?;
    let group = group(audience, topic, &request.group)?;
    settle(api, &group, request.receipts, Settle::Ack).await
}

pub(super) async fn nack(api: &Api, mut call: Box<Call>) -> Result<Reply, Problem> {
    let (audience, topic) = readable_topic(&call, CONSUME)?;
    let request: NackRequest = call.json(MAX_BODY_BYTES).await?;
    let (name, group) = (group_name(&request.group)?, group(audience.clone(), topic, &request.group)?);
    let delay = DelayTime::new(request.delay_ms)?;
    let reply = settle(api, &group, request.receipts, Settle::Nack(delay)).await;
    api.arrivals.tell_group(&audience, &name);
    reply
}

pub(super) async fn extend(api: &Api, mut call: Box<Call>) -> Result<Reply, Problem> {
    let (audience, topic) = readable_topic(&call, CONSUME)?;
    let request: ExtendRequest = call.json(MAX_BODY_BYTES).await?;
    let lease = LeaseTime::new(request.lease_ms.unwrap_or(topic.groups.lease_ms))?;
    let group = group(audience, topic, &request.group)?;
    settle(api, &group, request.receipts, Settle::Extend(lease)).await
}

async fn settle(api: &Api, group: &Group, receipts: Vec<Box<str>>, what: Settle) -> Result<Reply, Problem> {
    Receipts::new(&receipts)?;
    let receipts: Arc<[Box<str>]> = receipts.into();
    let (outcome, given_up) = api.turns.settle(group, Arc::clone(&receipts), what).await?;
    api.metrics.settled(what, &outcome);
    api.undertaker.gave_up(group, given_up);
    let stale = outcome.stale.iter().filter_map(|at| receipts.get(*at).cloned()).collect();
    Reply::json(&SettleReply { done: outcome.done, stale })
}

pub(super) async fn seek(api: &Api, mut call: Box<Call>) -> Result<Reply, Problem> {
    let (audience, topic) = readable_topic(&call, CONSUME)?;
    let request: SeekRequest = call.json(MAX_BODY_BYTES).await?;
    let key = api.cursor_key().await?;
    let to = ReadFrom::parse(&request.to, &key, audience.owner(), &audience.cursor_scope())
        .map_err(|error| wrong("/to", error.to_string()))?;
    let name = group_name(&request.group)?;
    let group = group(audience.clone(), topic, &request.group)?;
    api.undertaker.gave_up(&group, group.seek(&api.store, to).await?);
    api.arrivals.tell_group(&audience, &name);
    Ok(Reply::no_content())
}

fn group(audience: Audience, topic: Arc<Topic>, name: &str) -> Result<Group, Problem> {
    Group::new(audience, topic, group_name(name)?).map_err(|error| {
        tracing::error!(%error, "a topic's policy is out of the bounds of consumer groups");
        Problem::new(ErrorKind::Internal, "the topic's policy cannot be used")
    })
}

fn group_name(name: &str) -> Result<Name, Problem> {
    let name = Name::parse(name).map_err(|error| wrong("/group", error.to_string()))?;
    if name.as_str().starts_with(GROUP_PREFIX) {
        let detail = format!("another name: those with `{GROUP_PREFIX}` are the groups of subscriptions");
        return Err(wrong("/group", detail));
    }
    Ok(name)
}

fn wrong(pointer: &'static str, detail: String) -> Problem {
    Problem::new(ErrorKind::Invalid, "a field of the body is wrong").with_field(pointer, detail)
}

impl From<OutOfBounds> for Problem {
    fn from(error: OutOfBounds) -> Self {
        wrong(error.pointer(), error.to_string())
    }
}
