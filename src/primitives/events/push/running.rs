//! The subscriptions of the policies in force, kept running.

use std::sync::Arc;
use std::time::Duration;

use super::{Dispatcher, PushMetrics, StoreDeliveries, Subscription, Timing};
use crate::config::Role;
use crate::policy::PolicySource;
use crate::pools::upstream::{Reach, SetupError};
use crate::primitives::events::EventsPolicy;
use crate::tasks::Tasks;

/// How often the policies are looked at.
const EVERY: Duration = Duration::from_millis(500);
/// How often processes of the role `push`, which are few and accept nothing themselves, look for what came. Sidecars, which
/// are many and are told what they accept, look as [`Timing::default`] says.
const LOOK_OF_PUSH: Duration = Duration::from_millis(200);
/// The same while events of its topics come.
const LOOK_AGAIN_OF_PUSH: Duration = Duration::from_millis(50);

/// Starts a dispatcher, and keeps it at what policy says: an application's own port is its sidecar's, a URL is for
/// processes of the role `push`.
pub(in super::super) fn start(
    deliveries: StoreDeliveries,
    policies: PolicySource,
    roles: Vec<Role>,
    metrics: PushMetrics,
    tasks: &Tasks,
) -> Result<Dispatcher, SetupError> {
    let mut timing = Timing::default();
    if roles.contains(&Role::Push) {
        (timing.look, timing.look_again) = (LOOK_OF_PUSH, LOOK_AGAIN_OF_PUSH);
    }
    let dispatcher = Dispatcher::start(Arc::new(deliveries), metrics, timing, tasks)?;
    let (kept, stopping) = (dispatcher.clone(), tasks.stopping().clone());
    tasks.spawn("push subscriptions", async move {
        let mut generation = None;
        loop {
            let current = policies.current().generation();
            if generation != Some(current) {
                generation = Some(current);
                if let Err(error) = kept.set(&ours(&policies, &roles)) {
                    tracing::error!(%error, "a subscription cannot be sent to");
                }
            }
            if stopping.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_none() {
                return;
            }
        }
    });
    Ok(dispatcher)
}

fn ours(policies: &PolicySource, roles: &[Role]) -> Vec<Arc<Subscription>> {
    let policies = policies.current();
    let all = policies.get::<EventsPolicy>().map_or(&[][..], EventsPolicy::subscriptions);
    let is_ours = |subscription: &&Arc<Subscription>| {
        let role = if subscription.reach == Reach::Loopback { Role::Api } else { Role::Push };
        roles.contains(&role)
    };
    all.iter().filter(is_ours).cloned().collect()
}
