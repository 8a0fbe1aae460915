//! Who is told when there is something to send: one task for each subscription's endpoint, which sleeps until then.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::endpoint::Endpoint;
use super::places::Places;
use super::{Deliveries, PushMetrics, Subscription};
use crate::names::Name;
use crate::pools::upstream::{SetupError, Upstreams};
use crate::tasks::Tasks;

/// After a look that failed, at least.
const AFTER_FAILURE: Duration = Duration::from_secs(2);

/// How often, how long and how many.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// How often [`Deliveries::pending`] is asked, once for all subscriptions: what another process accepted waits for this
    /// at the most. An idle subscription costs nothing else.
    pub look: Duration,
    /// The same after a look that found something.
    pub look_again: Duration,
    /// The requests that go on at once, in each of the two pools.
    pub places: usize,
    /// How long before secrets are read again.
    pub secrets: Duration,
    /// A lease is two of the subscription's timeouts and this long: what a process that died had is sent by another
    /// after that.
    pub lease_grace: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            look: Duration::from_secs(2),
            look_again: Duration::from_secs(2),
            places: 512,
            secrets: Duration::from_secs(5),
            lease_grace: Duration::from_secs(10),
        }
    }
}

/// What every endpoint's task has.
pub(super) struct Shared {
    pub(super) deliveries: Arc<dyn Deliveries>,
    pub(super) places: Places,
    pub(super) metrics: PushMetrics,
    pub(super) timing: Timing,
}

/// Where an endpoint's task is told of tenants that may have something.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    stirred: Mutex<HashSet<Uuid>>,
    pub(super) told: Notify,
    /// Whether its circuit is open: a pull that waited for a place is not made then.
    pub(super) rests: AtomicBool,
}

impl Inbox {
    fn stir(&self, tenant: Uuid) {
        self.stirred.lock().insert(tenant);
        self.told.notify_one();
    }

    pub(super) fn take(&self) -> HashSet<Uuid> {
        std::mem::take(&mut *self.stirred.lock())
    }
}

/// An endpoint whose task runs.
#[derive(Clone)]
struct Running {
    subscription: Arc<Subscription>,
    inbox: Arc<Inbox>,
    /// Told once, when policy has it no more.
    stop: CancellationToken,
}

/// The running endpoints.
#[derive(Default)]
struct Endpoints {
    by_name: BTreeMap<Name, Running>,
    by_topic: HashMap<Name, Vec<Running>>,
}

/// Sends the events of subscriptions. Clones share it.
#[derive(Clone)]
pub struct Dispatcher {
    shared: Arc<Shared>,
    upstreams: Upstreams,
    endpoints: Arc<ArcSwap<Endpoints>>,
    /// Held while the endpoints change.
    changing: Arc<Mutex<()>>,
    tasks: Tasks,
}

impl Dispatcher {
    /// Without subscriptions yet. It stops with `tasks`: what is being sent is waited for and settled, and what is cut
    /// off then is sent again when its lease has ended.
    pub fn start(
        deliveries: Arc<dyn Deliveries>,
        metrics: PushMetrics,
        timing: Timing,
        tasks: &Tasks,
    ) -> Result<Self, SetupError> {
        let places = Places::new(timing.places);
        let dispatcher = Self {
            shared: Arc::new(Shared { deliveries, places, metrics, timing }),
            upstreams: Upstreams::new()?,
            endpoints: Arc::default(),
            changing: Arc::default(),
            tasks: tasks.clone(),
        };
        let (looking, stopping) = (dispatcher.clone(), tasks.stopping().clone());
        tasks.spawn("push look", async move {
            let mut pause = looking.shared.timing.look;
            while stopping.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
                pause = looking.look().await;
            }
        });
        Ok(dispatcher)
    }

    /// Puts these subscriptions in force. One that is as before goes on undisturbed. One whose authorities cannot be
    /// read does not start; the others do, and the first such error is returned.
    pub fn set(&self, subscriptions: &[Arc<Subscription>]) -> Result<(), SetupError> {
        let changing = self.changing.lock();
        let before = self.endpoints.load_full();
        let mut next = Endpoints::default();
        let mut result = Ok(());
        for subscription in subscriptions {
            let kept = before.by_name.get(&subscription.name).filter(|old| old.subscription == *subscription);
            let running = match kept {
                Some(running) => running.clone(),
                None => match self.run(subscription) {
                    Ok(running) => running,
                    Err(error) => {
                        result = result.and(Err(error));
                        continue;
                    }
                },
            };
            next.by_topic.entry(subscription.topic.clone()).or_default().push(running.clone());
            next.by_name.insert(subscription.name.clone(), running);
        }
        for (name, old) in &before.by_name {
            if next.by_name.get(name).is_none_or(|new| !Arc::ptr_eq(&new.inbox, &old.inbox)) {
                old.stop.cancel();
            }
        }
        self.endpoints.store(Arc::new(next));
        drop(changing);
        result
    }

    /// Says that events of a tenant were accepted in a topic. It costs next to nothing where no subscription is for it.
    pub fn arrival(&self, topic: &Name, tenant: Uuid) {
        let endpoints = self.endpoints.load();
        for running in endpoints.by_topic.get(topic).into_iter().flatten() {
            if running.subscription.tenants.includes(tenant) {
                running.inbox.stir(tenant);
            }
        }
    }

    /// Asks once which lines have something, and tells their endpoints. How long to wait before the next time.
    async fn look(&self) -> Duration {
        let Timing { look, look_again, .. } = self.shared.timing;
        let endpoints = self.endpoints.load_full();
        if endpoints.by_name.is_empty() {
            return look;
        }
        // Those whose circuit is open are told too: their endpoint keeps it in mind, and nobody has to catch up.
        let subscriptions: Vec<_> =
            endpoints.by_name.values().map(|running| Arc::clone(&running.subscription)).collect();
        match self.shared.deliveries.pending(&subscriptions).await {
            Ok(pending) => {
                let pause = match (pending.more, pending.lines.is_empty()) {
                    (true, _) => Duration::ZERO,
                    (false, false) => look_again.min(look),
                    (false, true) => look,
                };
                for line in pending.lines {
                    if let Some(running) = endpoints.by_name.get(&line.subscription.name) {
                        running.inbox.stir(line.tenant);
                    }
                }
                pause
            }
            Err(error) => {
                tracing::warn!(%error, "cannot look for events to push");
                look.max(AFTER_FAILURE)
            }
        }
    }

    fn run(&self, subscription: &Arc<Subscription>) -> Result<Running, SetupError> {
        let upstream = self.upstreams.target(
            subscription.reach,
            subscription.ca_file.as_deref(),
            subscription.concurrency,
        )?;
        let running = Running {
            subscription: Arc::clone(subscription),
            inbox: Arc::default(),
            stop: self.tasks.stopping().child_token(),
        };
        let endpoint = Endpoint::new(
            Arc::clone(&self.shared),
            Arc::clone(subscription),
            upstream,
            Arc::clone(&running.inbox),
        );
        let stop = running.stop.clone();
        self.tasks.spawn("push endpoint", async move { endpoint.run(&stop).await });
        Ok(running)
    }
}
