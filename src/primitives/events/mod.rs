//! Events: a log of what happened, a tenant's own, in the order of its keys.
//!
//! - An event that was accepted is durable, and is read by whoever reads its topic in that tenant.
//! - Events of a key are read in the order in which they were accepted; those of one batch in its own.
//! - An id counts once within a tenant, topic and source, for as long as the topic's `dedupe_ms`.
//! - A consumer group gets each event at least once, and those of a key in order ([`groups`]).
//!
//! What an event is ([`cloudevents`]), what is done with it ([`append`], [`page`], [`Group`]) and how it is answered (`api`)
//! know nothing of each other's technology; `postgres` and `sqlite` have the statements.

mod api;
mod append;
mod arrivals;
mod audience;
#[cfg(test)]
mod bench;
mod broker_limits;
pub mod cloudevents;
mod config;
#[cfg(test)]
mod conformance;
mod consumers;
#[cfg(test)]
mod crowd;
mod cursor;
mod dead_letters;
mod event;
mod fingerprint;
pub mod groups;
mod housekeeping;
mod lane;
mod limits;
mod metrics;
mod policy;
mod postgres;
mod publish;
pub mod push;
mod read;
pub mod relay;
mod sqlite;
#[cfg(test)]
mod steps;
mod turns;

pub use append::{Appended, Batch, append, append_all, is_dead_letters};
pub use audience::Audience;
pub use consumers::{Deliveries, Delivery, Group, GroupError, Settle};
pub use cursor::{Cursor, CursorError, CursorKey, ReadFrom, ReadFromError};
pub use dead_letters::GivenUp;
pub use event::{Data, Event, Logged, Position};
pub use fingerprint::{DedupeKey, dedupe_key};
pub use lane::lane;
pub use limits::RateDocument;
pub use policy::{
    DEAD_LETTERS, EventsDocument, EventsPolicy, Groups, GroupsDocument, KIND, Topic, TopicDocument,
};
pub use publish::Publisher;
pub use read::{Page, Scan, page, place};

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::http::Route;
use crate::leases::{Leases, Owner};
use crate::policy::{Action, Policies};
use crate::pools::kafka::{Kafka, TopicWanted};
use crate::primitives::write_rates::Rates;
use crate::primitives::{BuildError, Primitive, Resources};
use crate::telemetry::{MetricError, Registry};

/// The registry row.
pub const PRIMITIVE: Primitive = Primitive {
    name: "events",
    actions: ACTIONS,
    config_schema: schemars::SchemaGenerator::subschema_for::<config::EventsConfig>,
    policy: KIND,
    redis_families: &[],
    must_not_be_evicted: false,
    migrations: &[],
    needs_store: true,
    build,
};

/// Appending events to a topic.
pub const PUBLISH: Action = Action::new("events", "publish");
/// Reading a topic from any place.
pub const READ: Action = Action::new("events", "read");
/// Pulling from a topic as one of a group, and settling what was pulled.
pub const CONSUME: Action = Action::new("events", "consume");
/// Every action.
pub const ACTIONS: &[Action] = &[PUBLISH, READ, CONSUME];

/// The topics that Kafka needs for a section and the policies: what `outrigger migrate` makes and checks.
#[must_use]
pub fn kafka_topics(section: &Value, policies: &Policies, kafka: &Kafka) -> Vec<TopicWanted> {
    let shards = config::EventsConfig::read(section.clone()).map_or(1, |config| config.relay_shards);
    let topics = policies.get::<EventsPolicy>().into_iter().flat_map(EventsPolicy::topics);
    let named = |topic: &'_ Arc<Topic>| {
        [topic.name.to_string(), topic.dead_letters.to_string()].map(|name| (name, topic.lanes.get()))
    };
    let names: Vec<(String, u16)> = topics.flat_map(named).collect();
    let names: Vec<(&str, u16)> = names.iter().map(|(name, lanes)| (name.as_str(), *lanes)).collect();
    relay::topics(kafka, &names, shards)
}

/// In how many parts relays share the log, as a section that fits its schema says.
#[must_use]
pub fn relay_shards(section: &Value) -> u16 {
    config::EventsConfig::read(section.clone()).map_or(1, |config| config.relay_shards)
}

/// Says in the metrics how many shards relays are to carry, where there is a Kafka. Sidecars say it too: that no relay has
/// one of them must show where no relay runs.
pub fn announce_shards(section: &Value, registry: &Registry) -> Result<(), MetricError> {
    // A section that does not fit is `build`'s to report.
    let Ok(config) = config::EventsConfig::read(section.clone()) else { return Ok(()) };
    let help = "Shards of the log (`events.relay_shards`), each to be relayed by one process.";
    registry.gauge("outrigger_events_shards_count", help)?.set(i64::from(config.relay_shards));
    Ok(())
}

/// For how many days events are kept, as a section that fits its schema says.
#[must_use]
pub fn retention_days(section: &Value) -> Option<u32> {
    config::EventsConfig::read(section.clone()).ok().map(|config| config.retention_days)
}

fn build(section: Value, resources: &Resources) -> Result<Vec<Route>, BuildError> {
    let config = config::EventsConfig::read(section)?;
    let (store, tasks) = (resources.store()?, resources.tasks.clone());
    let metrics = Arc::new(metrics::EventsMetrics::new(&resources.metrics)?);
    let arrivals = arrivals::Arrivals::new(store.clone(), config.tenant_pulls, tasks.clone());
    let pushed = push::PushMetrics::new(&resources.metrics)?;
    let (policies, roles) = (resources.policies.clone(), resources.roles.clone());
    let given_up = metrics::GivenUpMetrics::new(&resources.metrics)?;
    let undertaker = dead_letters::Undertaker::new(store.clone(), given_up, tasks.clone());
    let deliveries =
        push::StoreDeliveries::new(store.clone(), policies.clone(), Some(Arc::clone(&undertaker)));
    let dispatcher = push::start(deliveries, policies, roles, pushed, &tasks)
        .map_err(|error| BuildError::Section { pointer: "", message: error.to_string() })?;
    let arrivals_told = (Arc::clone(&arrivals), dispatcher);
    let publisher = Publisher::new(store.clone(), arrivals_told, Arc::clone(&metrics), tasks.clone());
    let leases = Leases::new(store.clone(), Owner::of_this_process());
    housekeeping::start(store.clone(), leases, config.retention_days, &resources.metrics, &tasks)?;
    if let Some(parts) = &resources.relay {
        let metrics = relay::RelayMetrics::new(&resources.metrics)?;
        let (log, kafka) = (parts.log.clone(), Arc::clone(&parts.kafka));
        let fleet = relay::FleetMetrics::new(&resources.metrics)?;
        let policies = resources.policies.clone();
        relay::Report::start(log.clone(), Arc::clone(&kafka), policies, fleet, config.relay_shards, &tasks);
        relay::Relay::start(log, kafka, metrics, config.relay_shards, &tasks);
    }
    let heartbeat = Duration::from_millis(config.heartbeat_ms);
    let broker_limits = broker_limits::BrokerLimits::start(store.clone(), &tasks);
    let turns = turns::Turns::new(store.clone(), tasks);
    Ok(api::routes(api::Api {
        store,
        publisher,
        rates: Rates::new(),
        arrivals,
        turns,
        undertaker,
        broker_limits,
        metrics,
        heartbeat,
    }))
}
