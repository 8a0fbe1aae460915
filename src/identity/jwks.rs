//! One issuer's keys, kept current: read again on a schedule and, shared by whoever waits, on an unknown `kid`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::cache::{Digest, Generation, TokenCache};
use super::fetch::{self, FetchError, Source, SourceError};
use super::keys::{KeySet, KeySetError};
use super::metrics::IdentityMetrics;
use super::refusal::Refusal;
use crate::config::{Issuer, KeySource};
use crate::tasks::Tasks;

/// Unknown key ids that are remembered at the most.
const MAX_UNKNOWN: usize = 256;

/// When keys are read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// Between two readings that succeed.
    pub(super) refresh: Duration,
    /// After the first failure; doubled with each further one, up to `refresh` and 30 s.
    pub(super) retry: Duration,
    /// Between two readings that an unknown `kid` asks for.
    pub(super) cooldown: Duration,
    /// How long a `kid` that a reading did not bring asks for no other.
    pub(super) unknown: Duration,
    /// One reading.
    pub(super) timeout: Duration,
    /// How long keys are used after the last success, while none can be read.
    pub(super) stale: Duration,
}

impl Timing {
    /// A file is on this machine, so that looking again is cheap; a URL is somebody's server.
    pub(super) fn of(source: &KeySource) -> Self {
        let seconds = Duration::from_secs;
        let common = Self {
            refresh: seconds(300),
            retry: seconds(1),
            cooldown: seconds(5),
            unknown: seconds(30),
            timeout: seconds(5),
            stale: seconds(24 * 3600),
        };
        match source {
            KeySource::Url { .. } => common,
            KeySource::File { .. } => Self {
                refresh: seconds(2),
                cooldown: Duration::from_millis(200),
                unknown: seconds(1),
                // No outage takes a file away: somebody did, or is writing it.
                stale: seconds(300),
                ..common
            },
        }
    }
}

/// Why this reading brought no keys.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("it is no usable key set: {0}")]
    Document(#[from] KeySetError),
}

/// An issuer's keys and how they are come by.
pub(super) struct KeyStore {
    issuer: Arc<str>,
    source: Source,
    /// Whether its symmetric keys are taken.
    symmetric: bool,
    timing: Timing,
    keys: ArcSwapOption<KeySet>,
    state: Mutex<State>,
    /// Counts the readings that ended; a waiter sees it change.
    ended: watch::Sender<u64>,
    wake: Notify,
    cache: Arc<TokenCache>,
    metrics: IdentityMetrics,
}

#[derive(Default)]
struct State {
    running: bool,
    /// When the last reading that somebody asked for began.
    asked: Option<Instant>,
    succeeded: Option<Instant>,
    failure: Option<String>,
    document: Option<Digest>,
    unknown: VecDeque<(Box<str>, Instant)>,
}

/// Reads an issuer's key set once.
pub(super) async fn read_once(
    source: &Source,
    timing: &Timing,
    symmetric: bool,
) -> Result<(Digest, KeySet), ReadError> {
    let document = source.read(timing.timeout).await?;
    let keys = KeySet::parse(&document, symmetric)?;
    Ok((Digest::of(&document), keys))
}

impl KeyStore {
    pub(super) fn new(
        issuer: &Issuer,
        timing: Timing,
        cache: Arc<TokenCache>,
        metrics: &IdentityMetrics,
    ) -> Result<Self, SourceError> {
        metrics.last_success.with_label_values(&[&issuer.name]).set(0);
        metrics.usable_keys.with_label_values(&[&issuer.name]).set(0);
        metrics.refused_keys.with_label_values(&[&issuer.name]).set(0);
        let store = Self {
            issuer: Arc::from(issuer.name.as_str()),
            source: Source::new(&issuer.jwks)?,
            symmetric: issuer.jwks.may_be_symmetric(),
            timing,
            keys: ArcSwapOption::empty(),
            state: Mutex::default(),
            ended: watch::Sender::new(0),
            wake: Notify::new(),
            cache,
            metrics: metrics.clone(),
        };
        store.read_file_now();
        Ok(store)
    }

    /// A file that is there is read before the process listens, so that its first call finds keys.
    fn read_file_now(&self) {
        let Source::File(path) = &self.source else { return };
        if let Ok(document) = fetch::read_file(path)
            && let Ok(keys) = KeySet::parse(&document, self.symmetric)
        {
            self.succeed(Digest::of(&document), keys);
        }
    }

    /// Keeps the keys current until the process stops.
    pub(super) fn start(self: &Arc<Self>, tasks: &Tasks) {
        let (store, stopping) = (Arc::clone(self), tasks.stopping().clone());
        tasks.spawn("key set", async move { store.run(&stopping).await });
    }

    async fn run(&self, stopping: &CancellationToken) {
        let mut failures = 0_u32;
        loop {
            self.state.lock().running = true;
            let result = tokio::select! {
                () = stopping.cancelled() => return,
                result = read_once(&self.source, &self.timing, self.symmetric) => result,
            };
            failures = if result.is_ok() { 0 } else { failures.saturating_add(1) };
            match result {
                Ok((document, keys)) => self.succeed(document, keys),
                Err(ReadError::Document(error @ (KeySetError::Empty | KeySetError::NoUsableKey(_)))) => {
                    self.revoke(&error);
                }
                Err(error) => self.fail(&error),
            }
            self.end_reading();
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(self.pause(failures)) => {}
                () = self.wake.notified() => {}
            }
            self.drop_stale();
        }
    }

    fn end_reading(&self) {
        let mut state = self.state.lock();
        state.running = false;
        // Still under the lock: whoever asks for the next reading must not be woken by the end of this one.
        self.ended.send_modify(|count| *count += 1);
    }

    /// Until the next reading, or until the keys become too old if that is sooner.
    fn pause(&self, failures: u32) -> Duration {
        let most = self.timing.refresh.min(Duration::from_secs(30));
        let pause = match failures {
            0 => self.timing.refresh,
            _ => self.timing.retry.saturating_mul(1 << (failures - 1).min(16)).min(most),
        };
        let succeeded = self.state.lock().succeeded.filter(|_| self.keys.load().is_some());
        succeeded.map_or(pause, |at| pause.min(self.timing.stale.saturating_sub(at.elapsed())))
    }

    fn succeed(&self, document: Digest, keys: KeySet) {
        let count = keys.len();
        let changed = {
            let mut state = self.state.lock();
            if state.failure.take().is_some() {
                tracing::info!(issuer = &*self.issuer, "the key set can be read again");
            }
            state.succeeded = Some(Instant::now());
            let changed = state.document != Some(document) || self.keys.load().is_none();
            if changed {
                state.document = Some(document);
                state.unknown.clear();
            }
            changed
        };
        if changed {
            for skipped in keys.symmetric() {
                let source = self.source.describe();
                tracing::warn!(issuer = &*self.issuer, source, "a key is refused: {skipped}");
            }
            let refused = i64::try_from(keys.symmetric().count()).unwrap_or(i64::MAX);
            self.metrics.refused_keys.with_label_values(&[&*self.issuer]).set(refused);
            self.keys.store(Some(Arc::new(keys)));
            self.cache.flush();
            tracing::info!(issuer = &*self.issuer, keys = count, "key set taken");
        }
        let outcome = if changed { "changed" } else { "unchanged" };
        self.metrics.fetches.with_label_values(&[&*self.issuer, outcome]).inc();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        self.metrics.last_success.with_label_values(&[&*self.issuer]).set(seconds);
        self.metrics.usable_keys.with_label_values(&[&*self.issuer]).set(i64::try_from(count).unwrap_or(0));
    }

    fn fail(&self, error: &ReadError) {
        self.metrics.fetches.with_label_values(&[&*self.issuer, "failed"]).inc();
        let text = error.to_string();
        let mut state = self.state.lock();
        if state.failure.as_ref() != Some(&text) {
            let (issuer, source) = (&*self.issuer, self.source.describe());
            tracing::warn!(
                issuer,
                source,
                error = text,
                "the key set cannot be read; the last good one is used"
            );
            state.failure = Some(text);
        }
    }

    /// A whole set without one key that verifies is the issuer's word that those before are not good any more.
    fn revoke(&self, why: &KeySetError) {
        self.state.lock().failure = Some(why.to_string());
        let dropped = self.drop_keys();
        if dropped {
            let issuer = &*self.issuer;
            tracing::error!(issuer, %why, "the key set has no usable key now: none is used any more");
        }
        let outcome = if dropped { "changed" } else { "unchanged" };
        self.metrics.fetches.with_label_values(&[&*self.issuer, outcome]).inc();
    }

    /// Lets go of keys that were not confirmed for too long.
    fn drop_stale(&self) {
        let succeeded = self.state.lock().succeeded;
        let stale = succeeded.is_some_and(|at| at.elapsed() >= self.timing.stale);
        if stale && self.drop_keys() {
            tracing::error!(issuer = &*self.issuer, "the last good key set is too old and no longer used");
        }
    }

    /// Lets go of the keys and of every token that they verified; `false` where there were none.
    fn drop_keys(&self) -> bool {
        let dropped = self.keys.swap(None).is_some();
        if dropped {
            self.cache.flush();
            self.metrics.usable_keys.with_label_values(&[&*self.issuer]).set(0);
            self.metrics.refused_keys.with_label_values(&[&*self.issuer]).set(0);
        }
        dropped
    }

    /// The keys in force that have this `kid`, and the cache's generation before they were looked up.
    /// Where they do not have it, one reading that all who wait share is asked for, within bounds.
    pub(super) async fn having(
        &self,
        id: Option<&str>,
        deadline: Instant,
    ) -> Result<(Arc<KeySet>, Generation), Refusal> {
        match self.current(id) {
            Err(Refusal::KeysUnavailable | Refusal::UnknownKey) => {}
            other => return other,
        }
        let Some(mut ended) = self.join(id) else {
            return self.current(id).map_err(|refusal| self.soften(refusal));
        };
        match tokio::time::timeout_at(deadline.into(), ended.changed()).await {
            Ok(Ok(())) => self.current(id).map_err(|refusal| {
                self.remember_unknown(id);
                self.soften(refusal)
            }),
            Ok(Err(_)) | Err(_) => Err(Refusal::KeysUnavailable),
        }
    }

    fn current(&self, id: Option<&str>) -> Result<(Arc<KeySet>, Generation), Refusal> {
        let generation = self.cache.generation();
        let keys = self.keys.load_full().ok_or(Refusal::KeysUnavailable)?;
        keys.find(id)?;
        Ok((keys, generation))
    }

    /// Joins the reading that runs, or asks for one; `None` where it is too soon for another.
    fn join(&self, id: Option<&str>) -> Option<watch::Receiver<u64>> {
        let mut state = self.state.lock();
        let known_unknown =
            state.unknown.iter().any(|(held, at)| Some(&**held) == id && at.elapsed() < self.timing.unknown);
        if known_unknown {
            return None;
        }
        if !state.running {
            if state.asked.is_some_and(|at| at.elapsed() < self.timing.cooldown) {
                return None;
            }
            state.asked = Some(Instant::now());
            state.running = true;
            self.wake.notify_one();
        }
        // Under the lock, so that the end of this reading cannot come before the subscription.
        Some(self.ended.subscribe())
    }

    /// Where the last reading failed, a `kid` that is not there might well be in the real set: not the caller's fault.
    fn soften(&self, refusal: Refusal) -> Refusal {
        let failed = self.state.lock().failure.is_some();
        if failed && refusal == Refusal::UnknownKey { Refusal::KeysUnavailable } else { refusal }
    }

    /// Remembers a `kid` that a reading did not bring.
    fn remember_unknown(&self, id: Option<&str>) {
        let mut state = self.state.lock();
        let Some(id) = id.filter(|_| state.failure.is_none()) else { return };
        state.unknown.retain(|(held, at)| &**held != id && at.elapsed() < self.timing.unknown);
        if state.unknown.len() == MAX_UNKNOWN {
            state.unknown.pop_front();
        }
        state.unknown.push_back((Box::from(id), Instant::now()));
    }

    /// Whether there are keys; what to do where not.
    pub(super) fn ready(&self) -> Result<(), String> {
        if self.keys.load().is_some() {
            return Ok(());
        }
        let state = self.state.lock();
        let why = match (&state.failure, state.succeeded) {
            (None, None) => "the first reading has not ended".to_owned(),
            (None, Some(_)) => "the last good ones are too old".to_owned(),
            (Some(failure), _) => failure.clone(),
        };
        let (issuer, source) = (&self.issuer, self.source.describe());
        Err(format!(
            "issuer `{issuer}` has no keys from {source}: {why}; make it readable, or correct `identity.issuers`"
        ))
    }
}
