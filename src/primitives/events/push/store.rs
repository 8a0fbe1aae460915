//! Deliveries in the store: each line is a consumer group of its tenant's.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use uuid::Uuid;

use super::look::{Looks, Steps, newest_event};
use super::{Attempt, Deliveries, Leased, Line, Pending, Pulled, Settled, Subscription, Verdict};
use crate::names::Name;
use crate::policy::PolicySource;
use crate::primitives::events::audience::Subscriber;
use crate::primitives::events::dead_letters::{GivenUp, Undertaker};
use crate::primitives::events::groups::{DelayTime, LeaseTime, MaxDeliveries};
use crate::primitives::events::read::readable;
use crate::primitives::events::{EventsPolicy, Group, GroupError, Position, Settle, Topic, postgres, sqlite};
use crate::store::{Reach, Store, StoreError, Tx};

/// Topics that policy takes away while something of them is sent.
#[derive(Debug, thiserror::Error)]
#[error("policy has the topic `{0}` no more")]
struct NoTopic(Name);

/// An attempt as it is kept.
#[derive(Debug, Clone)]
pub(in super::super) struct AttemptRow {
    pub(in super::super) subscription: Box<str>,
    pub(in super::super) event_id: Box<str>,
    pub(in super::super) message_id: Box<str>,
    pub(in super::super) attempt: i32,
    pub(in super::super) at_ms: i64,
    pub(in super::super) outcome: &'static str,
    pub(in super::super) status: Option<i16>,
    pub(in super::super) duration_ms: i32,
    pub(in super::super) next_at_ms: Option<i64>,
}

/// The store, as the dispatcher sees it.
pub(in super::super) struct StoreDeliveries {
    store: Store,
    policies: PolicySource,
    undertaker: Option<Arc<Undertaker>>,
    looks: Looks,
    /// Where each subscription began.
    began: Mutex<HashMap<Name, Position>>,
}

impl StoreDeliveries {
    pub(in super::super) fn new(
        store: Store,
        policies: PolicySource,
        undertaker: Option<Arc<Undertaker>>,
    ) -> Self {
        Self::in_steps(store, policies, undertaker, Steps::default())
    }

    pub(super) fn in_steps(
        store: Store,
        policies: PolicySource,
        undertaker: Option<Arc<Undertaker>>,
        steps: Steps,
    ) -> Self {
        let looks = Looks::new(store.clone(), steps);
        Self { store, policies, undertaker, looks, began: Mutex::default() }
    }

    /// The tenants that have events of a topic.
    pub(super) async fn tenants(&self, topic: &Name) -> Result<BTreeSet<Uuid>, StoreError> {
        self.looks.tenants(topic).await
    }

    pub(super) async fn group(&self, line: &Line) -> Result<Group, GroupError> {
        let subscription = &line.subscription;
        let topic = self.topic(&subscription.topic)?;
        let begins = self.begins(subscription).await?;
        let subscriber = Subscriber { tenant: line.tenant, topic: subscription.topic.clone() };
        let name = subscription.group.clone();
        Ok(Group::of_subscription(subscriber, topic, name, subscription.max_attempts, begins)?)
    }

    fn gave_up(&self, group: &Group, given_up: GivenUp) {
        if let Some(undertaker) = &self.undertaker {
            undertaker.gave_up(group, given_up);
        }
    }

    fn topic(&self, name: &Name) -> Result<Arc<Topic>, GroupError> {
        let policies = self.policies.current();
        let policy = policies.get::<EventsPolicy>();
        let found =
            policy.and_then(|policy| policy.topic(name).or_else(|| policy.topic_of_dead_letters(name)));
        let missing = || GroupError::Store(StoreError::Corrupt(NoTopic(name.clone()).to_string()));
        found.cloned().ok_or_else(missing)
    }

    /// Where the subscription began, in whichever process it was seen first.
    async fn begins(&self, subscription: &Subscription) -> Result<Position, GroupError> {
        if let Some(known) = self.began.lock().get(&subscription.name) {
            return Ok(*known);
        }
        let name = subscription.name.clone();
        let began: Result<Position, StoreError> = self
            .store
            .run(Reach::everyone(), 0, move |tx| {
                let name = name.clone();
                Box::pin(async move {
                    let readable = readable(tx).await?;
                    let here = newest_event(tx, readable).await?;
                    match tx {
                        Tx::Postgres(tx) => postgres::begin_subscription(tx, name.as_str(), here).await,
                        Tx::Sqlite(tx) => sqlite::begin_subscription(tx, name.as_str(), here),
                    }
                })
            })
            .await;
        let began = began?;
        self.began.lock().insert(subscription.name.clone(), began);
        Ok(began)
    }
}

#[async_trait]
impl Deliveries for StoreDeliveries {
    async fn pending(&self, subscriptions: &[Arc<Subscription>]) -> Result<Pending, GroupError> {
        for subscription in subscriptions {
            // Before any event that it should have.
            self.begins(subscription).await?;
        }
        Ok(self.looks.look(subscriptions).await?)
    }

    async fn pull(&self, line: &Line, max: usize, lease_ms: u64) -> Result<Pulled, GroupError> {
        let (max, lease) = (MaxDeliveries::new(max as u64)?, LeaseTime::new(lease_ms)?);
        let group = self.group(line).await?;
        let pulled = group.pull(&self.store, max, lease).await?;
        self.gave_up(&group, pulled.given_up);
        let leased = pulled.deliveries.into_iter().map(|one| Leased {
            receipt: one.lease.receipt.to_string().into(),
            attempt: u32::from(one.lease.attempt),
            event: one.event,
        });
        Ok(Pulled { leased: leased.collect(), due_in_ms: pulled.due_in_ms })
    }

    async fn extend(&self, line: &Line, receipts: &[Box<str>], lease_ms: u64) -> Result<bool, GroupError> {
        let extend = Settle::Extend(LeaseTime::new(lease_ms)?);
        let group = self.group(line).await?;
        let (outcome, given_up) = group.settle(&self.store, receipts.into(), extend).await?;
        self.gave_up(&group, given_up);
        Ok(outcome.stale.is_empty())
    }

    async fn settle(&self, line: &Line, settled: &[Settled]) -> Result<(), GroupError> {
        let group = self.group(line).await?;
        let mut each = Vec::with_capacity(settled.len());
        for one in settled {
            let what = match one.verdict {
                Verdict::Done => Settle::Ack,
                Verdict::Again { delay_ms } => Settle::Nack(DelayTime::new(delay_ms)?),
            };
            each.push((one.receipt.clone(), what));
        }
        let name = line.subscription.name.as_str();
        let attempts = settled.iter().filter_map(|one| one.attempt.as_ref()).map(|one| row(name, one));
        let given_up = group.settle_each(&self.store, each.into(), attempts.collect()).await?;
        self.gave_up(&group, given_up);
        Ok(())
    }
}

fn row(subscription: &str, attempt: &Attempt) -> AttemptRow {
    let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    AttemptRow {
        subscription: subscription.into(),
        event_id: attempt.event_id.clone(),
        message_id: attempt.message_id.clone(),
        attempt: i32::try_from(attempt.attempt).unwrap_or(i32::MAX),
        at_ms: signed(attempt.at_ms),
        outcome: attempt.outcome.label(),
        status: attempt.status.and_then(|status| i16::try_from(status).ok()),
        duration_ms: i32::try_from(attempt.duration_ms).unwrap_or(i32::MAX),
        next_at_ms: attempt.next_at_ms.map(signed),
    }
}
