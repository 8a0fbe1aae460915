//! What one relay of the fleet does for all: it says to publishers what Kafka takes, to operators how far behind groups and
//! topics are, and forgets orders that were done long ago.
//!
//! Whoever has the lease says it, so that nothing is counted twice. Labels are names of policy, and one word for all groups
//! that consumers named.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::IntGaugeVec;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;

use super::super::{kafka, number};
use super::ordered::ask;
use super::orders;
use crate::leases::{Lease, Leases, Owner};
use crate::policy::PolicySource;
use crate::pools::kafka::{Kafka, largest_batches};
use crate::primitives::events::push::GROUP_PREFIX;
use crate::primitives::events::{EventsPolicy, Topic};
use crate::store::postgres::{Parameter, PgError};
use crate::store::{Store, StoreError};
use crate::tasks::Tasks;
use crate::telemetry::{MetricError, Registry};

const LEASE_NAME: &str = "relay/report";
const LEASE: Duration = Duration::from_secs(45);
/// Between two rounds.
const ROUND: Duration = Duration::from_secs(15);
/// How often the brokers are asked what they take.
const ASK_KAFKA: Duration = Duration::from_secs(60);
/// How often old orders are looked for.
const FORGET_ORDERS: Duration = Duration::from_secs(600);
/// The label of every group that consumers named: their names have no bound.
const CONSUMERS: &str = "consumers";
/// What stands for the groups of services among the names of others.
const SERVICES_NAME: &str = "~";
/// The label of every group of a service.
const SERVICES: &str = "services";

const TELL: &str = "INSERT INTO event_topic_limits (topic, kafka_topic, max_message_bytes, read_at) \
     SELECT topic, kafka_topic, max_bytes, now() FROM unnest($1::text[], $2::text[], $3::bigint[]) \
         AS told (topic, kafka_topic, max_bytes) \
     ON CONFLICT (topic) DO UPDATE SET kafka_topic = excluded.kafka_topic, \
         max_message_bytes = excluded.max_message_bytes, read_at = excluded.read_at";
/// One look into the index for each group; at most so many groups.
const GROUPS: &str = "SELECT topic, name, count(*), floor(extract(epoch FROM min(accepted_at)))::bigint \
     FROM (SELECT tenant_id, topic, name, position FROM event_groups WHERE name NOT LIKE '~%' LIMIT 20000) kept \
     CROSS JOIN LATERAL ( \
         SELECT accepted_at FROM events WHERE events.tenant_id = kept.tenant_id AND events.topic = kept.topic \
             AND events.id > kept.position ORDER BY id LIMIT 1) unseen \
     WHERE accepted_at < now() - interval '10 s' GROUP BY topic, name";
/// A service's groups look at everyone's events, in the order of the log, and have a name like no tenant's. What comes first behind
/// one is looked for among its next positions alone.
const SERVICES_GROUPS: &str = "SELECT topic, count(*), floor(extract(epoch FROM min(accepted_at)))::bigint \
     FROM (SELECT topic, position FROM event_groups WHERE name LIKE '~%' LIMIT 200) kept \
     CROSS JOIN LATERAL ( \
         SELECT accepted_at FROM events WHERE events.id > kept.position AND events.id <= kept.position + 10000 \
             AND events.topic = kept.topic ORDER BY id LIMIT 1) unseen \
     WHERE accepted_at < now() - interval '10 s' GROUP BY topic";
/// Relays say every 5 s how far they are; what is younger may be there already. What is looked through begins behind the shard that is
/// the least far, and where that stands still it hides how far the others are behind it: each shard's own gauges say that.
const TOPICS: &str = "SELECT topic, count(*), floor(extract(epoch FROM min(accepted_at)))::bigint \
     FROM events LEFT JOIN event_relays ON shard = lane % $1 \
     WHERE id >= $2 AND id < $3 AND id > coalesce(position, 0) AND accepted_at < now() - interval '10 s' GROUP BY topic";
/// The first event that a relay may not have delivered.
const FIRST: &str = "SELECT (SELECT id FROM events WHERE id > least ORDER BY id LIMIT 1) \
     FROM (SELECT coalesce(min(position), 0) AS least FROM event_relays) relays";
/// Positions that are looked through for what is not delivered.
const LOOKED_THROUGH: i64 = 250_000;

/// Gauges of the whole fleet.
pub(in super::super::super) struct FleetMetrics {
    groups_behind: IntGaugeVec,
    oldest_unseen: IntGaugeVec,
    undelivered: IntGaugeVec,
    oldest_undelivered: IntGaugeVec,
}

impl FleetMetrics {
    /// Registers them; once per registry.
    pub(in super::super::super) fn new(registry: &Registry) -> Result<Self, MetricError> {
        let of_groups = &["topic", "group"];
        Ok(Self {
            groups_behind: registry.gauges(
                "outrigger_events_groups_behind_count",
                "Groups that have not looked at an event of 10 s ago. Said by one relay of the fleet.",
                of_groups,
            )?,
            oldest_unseen: registry.gauges(
                "outrigger_events_groups_oldest_unseen_timestamp_seconds",
                "When the oldest event was accepted that a group has not looked at, in seconds since 1970; 0 where there is none. Said by one relay of the fleet.",
                of_groups,
            )?,
            undelivered: registry.gauges(
                "outrigger_events_topic_undelivered_count",
                "Events of 10 s ago or before that are not in Kafka, of 250,000 in the log at the most. Said by one relay of the fleet.",
                &["topic"],
            )?,
            oldest_undelivered: registry.gauges(
                "outrigger_events_topic_oldest_undelivered_timestamp_seconds",
                "When the oldest of these was accepted, in seconds since 1970; 0 where there is none. Said by one relay of the fleet.",
                &["topic"],
            )?,
        })
    }

    /// Another relay says it.
    fn clear(&self) {
        for gauges in [&self.groups_behind, &self.oldest_unseen, &self.undelivered, &self.oldest_undelivered]
        {
            gauges.reset();
        }
    }
}

/// The work of the relay that has the lease.
pub(in super::super::super) struct Report {
    log: Store,
    kafka: Arc<Kafka>,
    policies: PolicySource,
    metrics: FleetMetrics,
    shards: u16,
    asked_kafka: Option<Instant>,
    forgot_orders: Option<Instant>,
    /// The labels that are shown: one that policy no longer has goes.
    shown: BTreeSet<(String, String)>,
}

/// A count and the oldest, in seconds since 1970.
type Behind = (i64, i64);

impl Report {
    /// Starts it, until the process stops.
    pub(in super::super::super) fn start(
        log: Store,
        kafka: Arc<Kafka>,
        policies: PolicySource,
        metrics: FleetMetrics,
        shards: u16,
        tasks: &Tasks,
    ) {
        let leases = Leases::new(log.clone(), Owner::of_this_process());
        let (asked_kafka, forgot_orders, shown) = (None, None, BTreeSet::new());
        let report = Self { log, kafka, policies, metrics, shards, asked_kafka, forgot_orders, shown };
        let stopping = tasks.stopping().clone();
        tasks.spawn("relay report", async move { report.run(&leases, &stopping).await });
    }

    async fn run(mut self, leases: &Leases, stopping: &CancellationToken) {
        let mut held = None;
        loop {
            match leases.take(LEASE_NAME, LEASE).await {
                Ok(lease) => {
                    held = lease;
                    match &held {
                        Some(lease) => {
                            self.say().await;
                            self.forget_orders(lease).await;
                        }
                        None => self.metrics.clear(),
                    }
                }
                Err(error) => tracing::debug!(%error, "the lease of what relays say for all is not known"),
            }
            tokio::select! {
                () = stopping.cancelled() => break,
                () = tokio::time::sleep(ROUND) => {}
            }
        }
        if let Some(lease) = held
            && let Err(error) = leases.release(lease).await
        {
            tracing::debug!(%error, "a lease could not be given back: it runs out");
        }
    }

    async fn say(&mut self) {
        if self.asked_kafka.is_none_or(|asked| asked.elapsed() >= ASK_KAFKA) {
            match self.tell_limits().await {
                Ok(()) => self.asked_kafka = Some(Instant::now()),
                Err(error) => tracing::warn!(error, "what kafka's topics take is not told to publishers"),
            }
        }
        if let Err(error) = self.look().await {
            tracing::warn!(%error, "how far behind groups and topics are is not known");
        }
    }

    async fn forget_orders(&mut self, lease: &Lease) {
        if self.forgot_orders.is_some_and(|forgot| forgot.elapsed() < FORGET_ORDERS) {
            return;
        }
        while lease.holds() {
            match ask(&self.log, |tx| Box::pin(orders::forget(tx))).await {
                Ok(orders::FORGET_AT_ONCE) => {}
                Ok(_) => {
                    self.forgot_orders = Some(Instant::now());
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "orders for parked keys that were done long ago are not forgotten");
                    return;
                }
            }
        }
    }

    /// Reads what Kafka takes in each topic, and keeps it for publishers.
    async fn tell_limits(&self) -> Result<(), String> {
        let policies = self.policies.current();
        let topics = policies.get::<EventsPolicy>().into_iter().flat_map(EventsPolicy::topics);
        let both = |topic: &'_ Arc<Topic>| {
            [&topic.name, &topic.dead_letters].map(|name| (name.to_string(), topic.lanes.get()))
        };
        let names: Vec<(String, u16)> = topics.flat_map(both).collect();
        let asked: Vec<(&str, u16)> = names.iter().map(|(name, lanes)| (name.as_str(), *lanes)).collect();
        let wanted = kafka::topics(&self.kafka, &asked, self.shards);
        let largest = largest_batches(&self.kafka, &wanted).await.map_err(|error| error.to_string())?;
        let mut told = (Vec::new(), Vec::new(), Vec::new());
        for ((name, _), topic) in names.into_iter().zip(wanted) {
            if let Some(bytes) = largest.get(&topic.name) {
                told.0.push(name);
                told.1.push(topic.name);
                told.2.push(i64::try_from(*bytes).unwrap_or(i64::MAX));
            }
        }
        let told = Arc::new(told);
        let kept = ask(&self.log, move |tx| {
            let told = Arc::clone(&told);
            Box::pin(async move {
                let (topics, named, bytes) = &*told;
                let parameters: [Parameter<'_>; 3] =
                    [(topics, Type::TEXT_ARRAY), (named, Type::TEXT_ARRAY), (bytes, Type::INT8_ARRAY)];
                tx.query(TELL, &parameters).await?;
                Ok(())
            })
        });
        kept.await.map_err(|error| error.to_string())
    }

    /// Sets the gauges.
    async fn look(&mut self) -> Result<(), StoreError> {
        let shards = number(self.shards);
        let (groups, topics) = ask(&self.log, move |tx| {
            Box::pin(async move {
                let groups = tx.query(GROUPS, &[]).await?;
                let groups: Result<Vec<(String, String, i64, i64)>, tokio_postgres::Error> = groups
                    .iter()
                    .map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?)))
                    .collect();
                let services = tx.query(SERVICES_GROUPS, &[]).await?;
                let services = behind(&services).map_err(PgError::of_row)?;
                let first = tx.query(FIRST, &[]).await?;
                let first: Option<i64> =
                    first.first().ok_or(PgError::Ended)?.try_get(0).map_err(PgError::of_row)?;
                let first = first.unwrap_or(i64::MAX - LOOKED_THROUGH);
                let parameters: [Parameter<'_>; 3] =
                    [(&shards, Type::INT2), (&first, Type::INT8), (&(first + LOOKED_THROUGH), Type::INT8)];
                let topics = tx.query(TOPICS, &parameters).await?;
                let topics = behind(&topics).map_err(PgError::of_row)?;
                let mut groups = groups.map_err(PgError::of_row)?;
                let of_services = |(topic, count, oldest)| (topic, SERVICES_NAME.to_owned(), count, oldest);
                groups.extend(services.into_iter().map(of_services));
                Ok((groups, topics))
            })
        })
        .await?;
        self.show(groups, topics);
        Ok(())
    }

    fn show(&mut self, groups: Vec<(String, String, i64, i64)>, topics: Vec<(String, i64, i64)>) {
        let policies = self.policies.current();
        let Some(policy) = policies.get::<EventsPolicy>() else { return self.metrics.clear() };
        let mut by_group: BTreeMap<(&str, &str), Behind> = BTreeMap::new();
        let mut by_topic: BTreeMap<&str, Behind> = BTreeMap::new();
        for topic in policy.topics() {
            for name in [topic.name.as_str(), topic.dead_letters.as_str()] {
                by_topic.insert(name, (0, 0));
                by_group.insert((name, CONSUMERS), (0, 0));
                by_group.insert((name, SERVICES), (0, 0));
            }
        }
        for subscription in policy.subscriptions() {
            by_group.insert((subscription.topic.as_str(), subscription.group.as_str()), (0, 0));
        }
        for (topic, name, count, oldest) in &groups {
            let label = match name.as_str() {
                SERVICES_NAME => SERVICES,
                name if name.starts_with(GROUP_PREFIX) => name,
                _ => CONSUMERS,
            };
            // What policy no longer names is nobody's to catch up with.
            if let Some(behind) = by_group.get_mut(&(topic.as_str(), label)) {
                add(behind, *count, *oldest);
            }
        }
        for (topic, count, oldest) in &topics {
            if let Some(behind) = by_topic.get_mut(topic.as_str()) {
                add(behind, *count, *oldest);
            }
        }
        let shown =
            by_group.keys().map(|(topic, group)| ((*topic).to_owned(), (*group).to_owned())).collect();
        if self.shown != shown {
            self.metrics.clear();
            self.shown = shown;
        }
        for (labels, (count, oldest)) in by_group {
            self.metrics.groups_behind.with_label_values(&[labels.0, labels.1]).set(count);
            self.metrics.oldest_unseen.with_label_values(&[labels.0, labels.1]).set(oldest);
        }
        for (topic, (count, oldest)) in by_topic {
            self.metrics.undelivered.with_label_values(&[topic]).set(count);
            self.metrics.oldest_undelivered.with_label_values(&[topic]).set(oldest);
        }
    }
}

/// A topic, how many, and the oldest in seconds since 1970.
fn behind(rows: &[tokio_postgres::Row]) -> Result<Vec<(String, i64, i64)>, tokio_postgres::Error> {
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))).collect()
}

fn add((count, oldest): &mut Behind, more: i64, accepted: i64) {
    *count += more;
    *oldest = if *oldest == 0 { accepted } else { accepted.min(*oldest) };
}
