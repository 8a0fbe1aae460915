//! What Kafka takes in each topic, as a relay has read it: an event that is larger is refused at once, since the brokers
//! would refuse it later, when nobody can be told.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;

use super::cloudevents::BrokerBound;
use super::postgres;
use crate::names::Name;
use crate::store::{Reach, Store, StoreError, Tx};
use crate::tasks::Tasks;

/// How often it is looked up. An event that comes before a change is seen is parked as it was before.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Of one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BrokerLimit {
    /// Its name in Kafka.
    pub(super) kafka_topic: String,
    /// Its `max.message.bytes`.
    pub(super) max_message_bytes: usize,
}

impl BrokerLimit {
    pub(super) fn bound(&self) -> BrokerBound<'_> {
        BrokerBound { kafka_topic: &self.kafka_topic, max_message_bytes: self.max_message_bytes }
    }
}

/// Those that are in force. A topic that no relay spoke of within a day has none: it is not relayed.
#[derive(Default)]
pub(super) struct BrokerLimits(RwLock<HashMap<String, Arc<BrokerLimit>>>);

impl BrokerLimits {
    /// Begins to look them up, where the store is one that is relayed.
    pub(super) fn start(store: Store, tasks: &Tasks) -> Arc<Self> {
        let limits = Arc::new(Self::default());
        if matches!(store, Store::Sqlite(_)) {
            return limits;
        }
        let (kept, stopping) = (Arc::clone(&limits), tasks.stopping().clone());
        tasks.spawn("broker limits", async move {
            loop {
                match read(&store).await {
                    Ok(found) => *kept.0.write() = found,
                    // What was known stays in force.
                    Err(error) => tracing::debug!(%error, "what the brokers take is not known anew"),
                }
                tokio::select! {
                    () = stopping.cancelled() => return,
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                }
            }
        });
        limits
    }

    /// That of a topic.
    pub(super) fn of(&self, topic: &Name) -> Option<Arc<BrokerLimit>> {
        self.0.read().get(topic.as_str()).cloned()
    }
}

async fn read(store: &Store) -> Result<HashMap<String, Arc<BrokerLimit>>, StoreError> {
    store
        .run(Reach::nobody(), 0, |tx| {
            Box::pin(async move {
                match tx {
                    Tx::Postgres(tx) => postgres::broker_limits(tx).await,
                    Tx::Sqlite(_) => Ok(HashMap::new()),
                }
            })
        })
        .await
}
