//! Whether this process's policy says what the store has: told on the health board and in the log, for who is on call.
//!
//! It is told here, and held where something is counted or read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::terms::{self, Kept};
use super::{Calendar, UsagePolicy};
use crate::policy::{Policies, PolicySource};
use crate::store::{Store, StoreError};
use crate::tasks::Tasks;
use crate::telemetry::{BackendHealth, BackendState};

/// Between two looks at whether the policies are others, and at the store where it differs, or does not answer.
const EVERY: Duration = Duration::from_secs(2);
/// Between two looks at the store where it did not differ: `outrigger migrate`, or who counts first, may have changed what it has.
const AGAIN: Duration = Duration::from_secs(30);

/// Tells it.
pub(super) struct Standing {
    health: BackendHealth,
    asked: Arc<Notify>,
    /// The zone that the store had when it was looked at last.
    in_force: Arc<Mutex<Option<String>>>,
}

impl Standing {
    pub(super) fn start(
        store: &Store,
        policies: &PolicySource,
        health: BackendHealth,
        tasks: &Tasks,
    ) -> Self {
        let (asked, in_force) = (Arc::new(Notify::new()), Arc::default());
        let looks = Looks {
            store: store.clone(),
            policies: policies.clone(),
            health: health.clone(),
            in_force: Arc::clone(&in_force),
        };
        let (stopping, again) = (tasks.stopping().clone(), Arc::clone(&asked));
        tasks.spawn("usage's terms", async move {
            let (mut told_of, mut told_at) = (None, Instant::now());
            loop {
                let generation = looks.policies.current().generation();
                if told_of != Some(generation) || told_at.elapsed() >= AGAIN {
                    told_of = looks.look().await.then_some(generation);
                    told_at = Instant::now();
                }
                tokio::select! {
                    () = stopping.cancelled() => return,
                    () = again.notified() => told_of = None,
                    () = tokio::time::sleep(EVERY) => {}
                }
            }
        });
        Self { health, asked, in_force }
    }

    /// A call was refused for it.
    pub(super) fn differs(&self) {
        if self.health.state() != BackendState::Down {
            self.asked.notify_one();
        }
    }

    /// The store's zone, where that is known to be another one.
    pub(super) fn other_zone(&self, own: &str) -> Option<String> {
        self.in_force.lock().clone().filter(|in_force| in_force != own)
    }
}

/// What is looked at, and where it is told.
struct Looks {
    store: Store,
    policies: PolicySource,
    health: BackendHealth,
    in_force: Arc<Mutex<Option<String>>>,
}

impl Looks {
    /// Whether it stays as it was told while the policies do.
    async fn look(&self) -> bool {
        let policy =
            |policies: &Policies| policies.get::<UsagePolicy>().map(|policy| Arc::clone(policy.calendar()));
        let calendar = policy(&self.policies.current());
        let kept = match self.put_and_look().await {
            Ok(kept) => kept,
            Err(error) => {
                tracing::debug!(%error, "the store has not said yet by which time zone usage is counted");
                return false;
            }
        };
        let (state, advice) = of(calendar.as_deref(), &kept, matches!(self.store, Store::Postgres(_)));
        *self.in_force.lock() = kept.map(|(zone, _)| zone);
        if state == BackendState::Down && self.health.state() != state {
            tracing::error!(
                advice,
                "no usage is counted by this process: its policy has another time zone than the store"
            );
        }
        self.health.set(state, advice);
        state == BackendState::Up
    }
}

impl Looks {
    async fn put_and_look(&self) -> Result<Kept, StoreError> {
        terms::put(&self.store, &self.policies).await?;
        terms::look(&self.store).await
    }
}

/// What to say of a policy beside what is kept, in a fleet or not.
fn of(calendar: Option<&Calendar>, kept: &Kept, is_fleet: bool) -> (BackendState, String) {
    let (Some(calendar), Some((zone, closes))) = (calendar, kept) else {
        return (BackendState::Up, String::new());
    };
    let own = calendar.zone_name();
    if own != zone {
        let advice = format!(
            "this process's usage policy has `time_zone: {own}`, and the usage in the store is counted in days of `{zone}`: calls that count \
             usage, or read it by days, are answered 503 here, and nothing is counted wrongly; put `time_zone: {zone}` into the policy (it \
             is loaded by itself). Another zone can be chosen only before there is usage: `outrigger migrate` puts it into force"
        );
        return (BackendState::Down, advice);
    }
    if is_fleet && calendar.close_after_ms() != *closes {
        let shown =
            |closes: Option<u64>| closes.map_or("never".to_owned(), |ms| format!("{ms} ms after their end"));
        let advice = format!(
            "months close {}, and the usage policy says {}: all sidecars count by what is in force; `outrigger migrate` changes it",
            shown(*closes),
            shown(calendar.close_after_ms())
        );
        return (BackendState::Degraded, advice);
    }
    (BackendState::Up, String::new())
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;

    #[test]
    fn a_policy_that_says_something_else_is_told_with_what_would_be_right() {
        let calendar = |zone: &str, closes| Calendar::new(TimeZone::get(zone).unwrap(), closes);
        let kept = Some(("Europe/Berlin".to_owned(), Some(5)));
        let berlin = calendar("Europe/Berlin", Some(5));
        for (calendar, kept, is_fleet, state, words) in [
            (Some(&berlin), &kept, true, BackendState::Up, ""),
            (None, &kept, true, BackendState::Up, ""),
            (Some(&berlin), &None, true, BackendState::Up, ""),
            (
                Some(&calendar("UTC", Some(5))),
                &kept,
                true,
                BackendState::Down,
                "put `time_zone: Europe/Berlin` into",
            ),
            (Some(&calendar("UTC", Some(5))), &kept, false, BackendState::Down, "has `time_zone: UTC`"),
            (
                Some(&calendar("Europe/Berlin", None)),
                &kept,
                true,
                BackendState::Degraded,
                "close 5 ms after their end, and the usage policy says never: all",
            ),
            (Some(&calendar("Europe/Berlin", None)), &kept, false, BackendState::Up, ""),
        ] {
            let (found, advice) = of(calendar, kept, is_fleet);
            assert!(found == state && advice.contains(words), "{found:?} {advice}");
        }
    }
}
