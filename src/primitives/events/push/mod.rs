//! Push: events that are sent to HTTP endpoints, as a subscription in policy says.
//!
//! A subscription is, for each of its tenants, a consumer group of its topic ([`Subscription::group`]): what is sent
//! once, again, and not any more is the group's to say, behind [`Deliveries`]. The [`Dispatcher`] looks for what may be
//! sent, sends it, and settles it by the answer:
//!
//! | the endpoint | counts as | then |
//! |---|---|---|
//! | answers 2xx | delivered | done |
//! | answers 410 | failure | the tenant's events rest for an hour |
//! | answers 429 or 503 with `Retry-After` | failure | the tenant's events rest for as long, at most an hour |
//! | answers 3xx | failure: redirects are not followed, as Standard Webhooks say | again later |
//! | answers anything else, or not in time, or breaks off, or cannot be reached | failure | again later |
//!
//! # What it promises
//!
//! - At least once: an event is done when its endpoint said so and the group was told. `webhook-id` is the same in
//!   every attempt, so that a receiver can tell.
//! - The events of a key are sent one after another, in their order. A failed one holds back those of its key until it
//!   is delivered or, after `max_attempts`, dead.
//! - Waits between attempts double, with full jitter. Five failures in a row of one tenant's events open that tenant's
//!   circuit, and those of five tenants the endpoint's; while one is open nothing is pulled for it, so that events keep
//!   their attempts. A pause that an answer asks for is the tenant's whose event it was.
//! - A tenant whose events the endpoint fails on, or hangs on, keeps no other's waiting while the endpoint takes theirs.
//! - An endpoint that is slow or down holds only its own places. Requests that go on at once are bounded in two pools:
//!   one for endpoints that answer within a second, one for the others; a request that takes longer moves to the
//!   second. So the slow ones wait for each other, and nobody waits for them.
//! - Nothing of this process's own goes out: the request has the event, the signature and a few fixed headers.

mod agenda;
mod circuit;
mod dispatcher;
mod endpoint;
mod look;
#[cfg(test)]
mod memory;
mod metrics;
mod places;
mod policy;
mod replay;
mod running;
mod send;
pub mod signature;
mod store;
mod tenants;
#[cfg(test)]
mod tests;

pub use super::postgres::{AttemptFilter, ListedAttempt, attempts};
pub use circuit::Backoff;
pub use dispatcher::{Dispatcher, Timing};
pub use metrics::PushMetrics;
pub use policy::{
    AppDocument, BackoffDocument, Subscription, SubscriptionDocument, TargetDocument, Tenants,
    TenantsDocument,
};
pub(super) use policy::{GROUP_PREFIX, subscriptions};
pub use replay::{replay, replay_key};
pub(super) use running::start;
pub(super) use store::{AttemptRow, StoreDeliveries};

use std::sync::Arc;

use async_trait::async_trait;
use uuid::Uuid;

use super::{GroupError, Logged};

/// A tenant's events for a subscription: one consumer group.
#[derive(Debug, Clone)]
pub struct Line {
    /// Where they go.
    pub subscription: Arc<Subscription>,
    /// Whose they are.
    pub tenant: Uuid,
}

/// What a look found.
#[derive(Debug, Default)]
pub struct Pending {
    /// Lines that may have something to send.
    pub lines: Vec<Line>,
    /// Whether there is more to be looked at now.
    pub more: bool,
}

/// An event that is leased for sending.
#[derive(Debug, Clone)]
pub struct Leased {
    /// What settles it.
    pub receipt: Box<str>,
    /// 1, and 1 more for each failure.
    pub attempt: u32,
    /// The event.
    pub event: Logged,
}

/// What a pull brought.
#[derive(Debug, Default)]
pub struct Pulled {
    /// In the order of the log.
    pub leased: Vec<Leased>,
    /// When something that is leased or held back may be sent, in milliseconds from now; none where nothing is.
    pub due_in_ms: Option<u64>,
}

/// What becomes of a leased event.
#[derive(Debug, Clone)]
pub struct Settled {
    /// Which.
    pub receipt: Box<str>,
    /// What becomes of it.
    pub verdict: Verdict,
    /// The attempt to be listed; none where the event was not of the subscription's types, and was not sent.
    pub attempt: Option<Attempt>,
}

/// What becomes of a leased event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is done.
    Done,
    /// It is sent again after this time, or is dead where that was its last attempt.
    Again {
        /// The time, in milliseconds; at most 12 hours.
        delay_ms: u64,
    },
}

/// An attempt, as operators list them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The event's `id`.
    pub event_id: Box<str>,
    /// The `webhook-id` it was sent with.
    pub message_id: Box<str>,
    /// Which attempt it was, from 1.
    pub attempt: u32,
    /// When it began, in milliseconds since 1970.
    pub at_ms: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// The status of the answer, where there was one.
    pub status: Option<u16>,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// When the next one may be, in milliseconds since 1970; none after the last.
    pub next_at_ms: Option<u64>,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// 2xx.
    Delivered,
    /// 3xx, not followed.
    Redirected,
    /// 410.
    Gone,
    /// 429, or 503 with `Retry-After`.
    Throttled,
    /// Another 4xx.
    Rejected,
    /// Another status.
    Failed,
    /// No answer in time.
    TimedOut,
    /// No connection.
    Unreachable,
    /// None of its addresses may be reached.
    AddressRefused,
    /// Its certificate or its TLS.
    Tls,
    /// The connection ended before the answer.
    BrokenOff,
}

impl Outcome {
    /// Every outcome, in the order of declaration.
    pub const ALL: [Self; 11] = [
        Self::Delivered,
        Self::Redirected,
        Self::Gone,
        Self::Throttled,
        Self::Rejected,
        Self::Failed,
        Self::TimedOut,
        Self::Unreachable,
        Self::AddressRefused,
        Self::Tls,
        Self::BrokenOff,
    ];

    /// As metrics and lists name it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Redirected => "redirected",
            Self::Gone => "gone",
            Self::Throttled => "throttled",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::AddressRefused => "address_refused",
            Self::Tls => "tls",
            Self::BrokenOff => "broken_off",
        }
    }
}

/// Where events to be sent are, and how far sending is.
///
/// Each [`Line`] is a consumer group with the subscription's `max_attempts`; every call is one transaction of it.
#[async_trait]
pub trait Deliveries: Send + Sync {
    /// The lines of these subscriptions that may have something to send. For a subscription that was not among those of the
    /// last call (it is the same where it is the same `Arc`), those of all the tenants that have events; then those of whom
    /// something came since. It is asked once a look for all subscriptions together, those whose circuit is open among
    /// them, and the answer is not given again; one too many costs a pull that finds nothing.
    async fn pending(&self, subscriptions: &[Arc<Subscription>]) -> Result<Pending, GroupError>;

    /// Leases up to `max` events of a line for `lease_ms`.
    async fn pull(&self, line: &Line, max: usize, lease_ms: u64) -> Result<Pulled, GroupError>;

    /// Leases the events of these receipts for `lease_ms` from now on; whether every one was still good.
    async fn extend(&self, line: &Line, receipts: &[Box<str>], lease_ms: u64) -> Result<bool, GroupError>;

    /// Settles events of a line and keeps their attempts. A receipt that is stale is left alone: its event is sent
    /// again.
    async fn settle(&self, line: &Line, settled: &[Settled]) -> Result<(), GroupError>;
}
