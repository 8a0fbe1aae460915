//! Policies kept current: the directory is watched, what is valid is swapped in, the last good one stays otherwise.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use parking_lot::Mutex;
use prometheus::{IntCounterVec, IntGauge};
use tokio::sync::{Notify, mpsc};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::loader::Snapshot;
use super::{PolicyLoader, PolicySource};
use crate::config::Report;
use crate::tasks::Tasks;
use crate::telemetry::{MetricError, Registry};

/// A change is taken once the directory was the same for so long: editors write in several steps.
const QUIET: Duration = Duration::from_millis(100);
/// A directory that never is quiet is taken after so many looks.
const MAX_LOOKS: usize = 20;
/// How often the directory is read although nothing was notified: a network file system notifies nobody, and a
/// directory that was itself replaced is no longer watched.
const POLL: Duration = Duration::from_secs(2);

/// Keeps the policies current.
pub struct Reloader {
    loader: PolicyLoader,
    source: PolicySource,
    metrics: Metrics,
    state: Mutex<State>,
    asked: Notify,
}

struct State {
    /// What the policies in force were made of.
    in_force: Arc<Snapshot>,
    /// What was looked at last.
    seen: Arc<Snapshot>,
    /// The report that was logged last, while it lasts.
    refused: Option<Report>,
}

struct Metrics {
    generation: IntGauge,
    reloads: IntCounterVec,
    successful: IntGauge,
    last_success: IntGauge,
}

/// How a reload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Loaded,
    Unchanged,
    Rejected,
}

impl Reloader {
    /// Loads the policies once into `source`, which fails where they are wrong, and watches them from then on.
    pub fn start(
        loader: PolicyLoader,
        source: PolicySource,
        metrics: &Registry,
        tasks: &Tasks,
    ) -> Result<Arc<Self>, Report> {
        let directory = loader.directory().display().to_string();
        let metrics = Metrics::new(metrics).map_err(|error| {
            Report::of_file(directory.as_str(), format!("cannot be watched: {error}"), "")
        })?;
        let (changed, changes) = mpsc::channel(1);
        let watcher = watch(&loader, changed)
            .inspect_err(|error| tracing::warn!(directory, %error, "policies are polled, since they cannot be watched"))
            .ok();
        let snapshot = Arc::new(loader.read());
        let generation = source.current().generation() + 1;
        source.replace(loader.load_snapshot(&snapshot, generation)?);
        metrics.generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        metrics.ended(Outcome::Loaded);
        let state = Mutex::new(State { in_force: Arc::clone(&snapshot), seen: snapshot, refused: None });
        let reloader = Arc::new(Self { loader, source, metrics, state, asked: Notify::new() });
        let follower = Arc::clone(&reloader).follow(watcher, changes, tasks.stopping().clone());
        tasks.spawn("policy reload", follower);
        Ok(reloader)
    }

    /// Looks at the policies at once, without waiting for them to be quiet.
    pub fn reload(&self) {
        self.asked.notify_one();
    }

    async fn follow(
        self: Arc<Self>,
        watcher: Option<RecommendedWatcher>,
        mut changes: mpsc::Receiver<()>,
        stopping: CancellationToken,
    ) {
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let asked = tokio::select! {
                () = stopping.cancelled() => break,
                () = self.asked.notified() => true,
                Some(()) = changes.recv() => false,
                _ = poll.tick() => false,
            };
            if !self.look(asked).await {
                break;
            }
        }
        drop(watcher);
    }

    /// Takes what the directory holds, where it changed; `false` once the runtime stops.
    async fn look(self: &Arc<Self>, asked: bool) -> bool {
        let Some(mut snapshot) = self.read().await else { return false };
        if !asked {
            if snapshot == *self.state.lock().seen {
                return true;
            }
            for _ in 0..MAX_LOOKS {
                tokio::time::sleep(QUIET).await;
                let Some(next) = self.read().await else { return false };
                if next == snapshot {
                    break;
                }
                snapshot = next;
            }
        }
        let this = Arc::clone(self);
        match tokio::task::spawn_blocking(move || this.apply(snapshot, asked)).await {
            Ok(()) => true,
            Err(error) => {
                self.metrics.ended(Outcome::Rejected);
                tracing::error!(%error, "a defect: policies could not be read; the last good ones stay in force");
                !error.is_cancelled()
            }
        }
    }

    async fn read(self: &Arc<Self>) -> Option<Snapshot> {
        let this = Arc::clone(self);
        tokio::task::spawn_blocking(move || this.loader.read()).await.ok()
    }

    fn apply(&self, snapshot: Snapshot, asked: bool) {
        let mut state = self.state.lock();
        let snapshot = Arc::new(snapshot);
        if !asked && state.seen == snapshot {
            return;
        }
        state.seen = Arc::clone(&snapshot);
        if state.in_force == snapshot {
            state.refused = None;
            self.metrics.ended(Outcome::Unchanged);
            return;
        }
        let generation = self.source.current().generation() + 1;
        match self.loader.load_snapshot(&snapshot, generation) {
            Ok(policies) => {
                self.source.replace(policies);
                state.in_force = snapshot;
                state.refused = None;
                self.metrics.generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
                self.metrics.ended(Outcome::Loaded);
                tracing::info!(generation, "policies loaded");
            }
            Err(report) => {
                self.metrics.ended(Outcome::Rejected);
                if state.refused.as_ref() != Some(&report) {
                    tracing::error!("policies refused; the last good ones stay in force:\n{report}");
                }
                state.refused = Some(report);
            }
        }
    }
}

/// Watches the directory. Reading it is no change: only what is written, renamed or removed counts.
fn watch(loader: &PolicyLoader, changed: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let is_change = event.is_ok_and(|event| {
            !matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write))
        });
        // A full queue holds a notice already; a closed one has no reader to tell.
        if is_change && changed.try_send(()).is_err() {
            tracing::trace!("a notice of changed policies waits already");
        }
    })?;
    watcher.watch(loader.directory(), RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

impl Metrics {
    fn new(registry: &Registry) -> Result<Self, MetricError> {
        Ok(Self {
            generation: registry
                .gauge("outrigger_policy_generation", "The generation of the policies in force.")?,
            reloads: registry.counters(
                "outrigger_policy_reloads_total",
                "Reloads of policies, by how they ended.",
                &["outcome"],
            )?,
            successful: registry.gauge(
                "outrigger_policy_last_reload_successful",
                "Whether the policy directory as it was last looked at is in force.",
            )?,
            last_success: registry.gauge(
                "outrigger_policy_last_reload_success_timestamp_seconds",
                "When policies were last found valid, in seconds since 1970.",
            )?,
        })
    }

    fn ended(&self, outcome: Outcome) {
        let (label, good) = match outcome {
            Outcome::Loaded => ("loaded", true),
            Outcome::Unchanged => ("unchanged", true),
            Outcome::Rejected => ("rejected", false),
        };
        self.reloads.with_label_values(&[label]).inc();
        self.successful.set(i64::from(good));
        if good {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.last_success.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        }
    }
}
