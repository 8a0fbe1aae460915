//! One subscription's endpoint: what is pulled, sent and settled for it, in one task that sleeps while there is nothing.

mod turn;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::agenda::Agenda;
use super::circuit::{Circuit, State};
use super::dispatcher::{Inbox, Shared};
use super::metrics::Counted;
use super::places::{PROMPT, Place};
use super::send::{Sent, event_id, send};
use super::signature::{Signer, SignerError};
use super::tenants::Tenants;
use super::{Attempt, Leased, Line, Outcome, Pulled, Settled, Subscription, Verdict};
use crate::clock::{monotonic_ms, since_1970_ms};
use crate::pools::upstream::Upstream;
use crate::primitives::events::GroupError;
use crate::primitives::events::groups::{MAX_DELAY_MS, MAX_LEASE_MS, MIN_LEASE_MS};

/// The waits before a settlement that failed is tried again; then its events are sent again when their leases end.
const SETTLE_WAITS: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(5)];
/// The wait after a pull that failed, doubled up to the second, in milliseconds.
const PULL_WAITS_MS: (u64, u64) = (1_000, 30_000);

/// What ended.
enum Step {
    Read(Result<Signer, SignerError>),
    /// None where the endpoint rests by now, so that nothing was pulled.
    Pulled {
        tenant: Uuid,
        wanted: usize,
        places: Vec<Place>,
        result: Option<Result<Pulled, GroupError>>,
    },
    /// Nothing was sent where the lease could not be kept.
    Attempted {
        chain: Chain,
        sent: Option<(Leased, Sent)>,
    },
    Settled {
        tenant: Uuid,
    },
}

/// Events of one key, sent one after another.
struct Chain {
    tenant: Uuid,
    events: VecDeque<Leased>,
    leased_until: Instant,
    place: Place,
}

/// The endpoint.
pub(super) struct Endpoint {
    shared: Arc<Shared>,
    subscription: Arc<Subscription>,
    upstream: Upstream,
    inbox: Arc<Inbox>,
    circuit: Circuit,
    tenants: Tenants,
    /// Whether the last event that it answered took no longer than [`PROMPT`].
    is_prompt: bool,
    agenda: Agenda,
    unsettled: BTreeMap<Uuid, Vec<Settled>>,
    settling: HashSet<Uuid>,
    signer: Option<Arc<Signer>>,
    /// When the secrets are read again.
    read_again_ms: u64,
    is_reading: bool,
    failed_pulls: u32,
    /// While nothing is sent since attempts failed, and until when.
    open: Option<(Counted, u64)>,
    steps: FuturesUnordered<BoxFuture<'static, Step>>,
}

impl Endpoint {
    pub(super) fn new(
        shared: Arc<Shared>,
        subscription: Arc<Subscription>,
        upstream: Upstream,
        inbox: Arc<Inbox>,
    ) -> Self {
        Self {
            shared,
            subscription,
            upstream,
            inbox,
            circuit: Circuit::default(),
            tenants: Tenants::default(),
            is_prompt: true,
            agenda: Agenda::default(),
            unsettled: BTreeMap::new(),
            settling: HashSet::new(),
            signer: None,
            read_again_ms: 0,
            is_reading: false,
            failed_pulls: 0,
            open: None,
            steps: FuturesUnordered::new(),
        }
    }

    /// Works until it is told to stop, and what was begun is settled.
    pub(super) async fn run(mut self, stop: &CancellationToken) {
        loop {
            let stopping = stop.is_cancelled();
            let now_ms = monotonic_ms();
            for tenant in self.inbox.take() {
                self.agenda.now(tenant);
            }
            self.agenda.wake(now_ms);
            self.settle();
            if !stopping {
                self.fill(now_ms);
            }
            if stopping && self.steps.is_empty() {
                return;
            }
            let wake =
                self.wake_ms(now_ms).map(|at_ms| Duration::from_millis(at_ms.saturating_sub(now_ms).max(1)));
            tokio::select! {
                Some(step) = self.steps.next() => {
                    self.took(step);
                    // What ended by now is settled together.
                    while let Some(Some(step)) = self.steps.next().now_or_never() {
                        self.took(step);
                    }
                }
                () = self.inbox.told.notified(), if !stopping => {}
                () = stop.cancelled(), if !stopping => {}
                () = after(wake), if !stopping => {}
            }
        }
    }

    /// Whether the secrets were read lately; else they are read first.
    fn has_signer(&mut self, now_ms: u64) -> bool {
        if now_ms >= self.read_again_ms && !self.is_reading {
            self.is_reading = true;
            let sources = self.subscription.secrets.clone();
            let reading = tokio::task::spawn_blocking(move || Signer::read(&sources));
            let failed = |error| {
                let path = "the secrets".into();
                Err(crate::config::SecretError::File { path, source: std::io::Error::other(error) }.into())
            };
            self.steps.push(Box::pin(async move { Step::Read(reading.await.unwrap_or_else(failed)) }));
        }
        !self.is_reading && self.signer.is_some()
    }

    fn pull(&self, tenant: Uuid, wanted: usize) {
        let (shared, inbox) = (Arc::clone(&self.shared), Arc::clone(&self.inbox));
        let is_prompt = self.tenants.is_slow(tenant).map_or(self.is_prompt, |is_slow| !is_slow);
        let (line, lease_ms) = (self.line(tenant), self.lease_ms());
        self.steps.push(Box::pin(async move {
            let places = shared.places.take(is_prompt, wanted).await;
            let result = match places.len() {
                0 => None,
                _ if inbox.rests.load(Ordering::Relaxed) => None,
                max => Some(shared.deliveries.pull(&line, max, lease_ms).await),
            };
            Step::Pulled { tenant, wanted, places, result }
        }));
    }

    fn line(&self, tenant: Uuid) -> Line {
        Line { subscription: Arc::clone(&self.subscription), tenant }
    }

    fn lease_ms(&self) -> u64 {
        let grace_ms = u64::try_from(self.shared.timing.lease_grace.as_millis()).unwrap_or(u64::MAX);
        (self.subscription.timeout_ms * 2).saturating_add(grace_ms).clamp(MIN_LEASE_MS, MAX_LEASE_MS)
    }

    fn took(&mut self, step: Step) {
        let now_ms = monotonic_ms();
        match step {
            Step::Read(result) => self.read(now_ms, result),
            Step::Pulled { tenant, wanted, places, result } => {
                self.tenants.give(tenant, wanted);
                match result {
                    None => self.agenda.now(tenant),
                    Some(Ok(pulled)) => {
                        self.failed_pulls = 0;
                        self.pulled(now_ms, tenant, places, pulled);
                    }
                    Some(Err(error)) => {
                        let (first_ms, most_ms) = PULL_WAITS_MS;
                        let wait_ms = (first_ms << self.failed_pulls.min(10)).min(most_ms);
                        self.failed_pulls = self.failed_pulls.saturating_add(1);
                        tracing::warn!(subscription = %self.subscription.name, %error, wait_ms, "cannot pull events to push");
                        self.agenda.later(tenant, now_ms + wait_ms);
                    }
                }
            }
            Step::Attempted { chain, sent: Some((leased, sent)) } => {
                self.attempted(now_ms, chain, &leased, sent)
            }
            Step::Attempted { chain, sent: None } => {
                self.tenants.give(chain.tenant, 1);
                self.agenda.now(chain.tenant);
            }
            Step::Settled { tenant } => {
                self.settling.remove(&tenant);
                // What waited behind it may be sent now, or is held back until a time that a pull tells.
                self.agenda.now(tenant);
            }
        }
    }

    fn read(&mut self, now_ms: u64, result: Result<Signer, SignerError>) {
        self.is_reading = false;
        let period = u64::try_from(self.shared.timing.secrets.as_millis()).unwrap_or(u64::MAX);
        self.read_again_ms = now_ms.saturating_add(period);
        match result {
            Ok(signer) => self.signer = Some(Arc::new(signer)),
            Err(error) => {
                let has_earlier = self.signer.is_some();
                tracing::warn!(subscription = %self.subscription.name, %error, has_earlier, "cannot read what pushed events are signed with");
            }
        }
    }

    /// Sends what was pulled: each key's events one after another, keys side by side.
    fn pulled(&mut self, now_ms: u64, tenant: Uuid, mut places: Vec<Place>, pulled: Pulled) {
        if pulled.leased.is_empty() {
            if let Some(due_in_ms) = pulled.due_in_ms {
                self.agenda.later(tenant, now_ms.saturating_add(due_in_ms.max(1)));
            }
            return;
        }
        if pulled.leased.len() >= places.len() {
            self.agenda.now(tenant);
        }
        let leased_until = Instant::now() + Duration::from_millis(self.lease_ms());
        let mut keys: BTreeMap<Box<str>, VecDeque<Leased>> = BTreeMap::new();
        for leased in pulled.leased {
            let types = &self.subscription.types;
            if types.is_empty() || types.iter().any(|kind| **kind == *leased.event.kind) {
                keys.entry(leased.event.key.clone()).or_default().push_back(leased);
            } else {
                let done = Settled { receipt: leased.receipt, verdict: Verdict::Done, attempt: None };
                self.unsettled.entry(tenant).or_default().push(done);
            }
        }
        for events in keys.into_values() {
            // A pull brings no more events than it was given places.
            let Some(place) = places.pop() else { return };
            self.tenants.take(tenant, 1);
            self.attempt(Chain { tenant, events, leased_until, place });
        }
    }

    /// Sends the first event of a chain.
    fn attempt(&self, mut chain: Chain) {
        let Some(signer) = self.signer.clone() else { return };
        let (shared, upstream) = (Arc::clone(&self.shared), self.upstream.clone());
        let (line, lease_ms) = (self.line(chain.tenant), self.lease_ms());
        self.steps.push(Box::pin(async move {
            let _counted = Counted::new(&shared.metrics.in_flight);
            let timeout = Duration::from_millis(line.subscription.timeout_ms);
            if Instant::now() + timeout > chain.leased_until
                && !extend(&shared, &line, &mut chain, lease_ms).await
            {
                return Step::Attempted { chain, sent: None };
            }
            let Some(leased) = chain.events.pop_front() else {
                return Step::Attempted { chain, sent: None };
            };
            let sent = {
                let sending = send(&upstream, &line.subscription, &signer, &leased);
                tokio::pin!(sending);
                match tokio::time::timeout(PROMPT, &mut sending).await {
                    Ok(sent) => sent,
                    Err(_) => {
                        shared.places.demote(&mut chain.place);
                        sending.await
                    }
                }
            };
            Step::Attempted { chain, sent: Some((leased, sent)) }
        }));
    }

    fn attempted(&mut self, now_ms: u64, chain: Chain, leased: &Leased, sent: Sent) {
        self.shared.metrics.attempted(sent.outcome, sent.duration);
        let (tenant, is_slow) = (chain.tenant, sent.duration > PROMPT);
        if matches!(sent.outcome, Outcome::Delivered | Outcome::Rejected) {
            // It is there: what another tenant's events ran into is theirs.
            self.is_prompt = !is_slow;
            self.circuit.succeeded();
            self.tenants.succeeded(tenant, now_ms, is_slow);
        }
        let verdict = if sent.outcome == Outcome::Delivered {
            let accepted_ms = u64::try_from(leased.event.accepted_ms).unwrap_or(0);
            self.shared.metrics.delivered(Duration::from_millis(since_1970_ms().saturating_sub(accepted_ms)));
            Verdict::Done
        } else {
            if sent.outcome != Outcome::Rejected {
                let chance = fastrand::f64();
                let is_first = self.tenants.failed(tenant, now_ms, sent.pause_ms, is_slow, chance);
                // One tenant's failures keep nobody else's events waiting: they count once, until an event of it is taken. A
                // trial counts in any case, since nobody was left who would tell more.
                if is_first || self.circuit.state(now_ms) == State::HalfOpen {
                    self.circuit.failed(now_ms, fastrand::f64());
                }
            }
            let wait_ms = self.subscription.backoff.wait_ms(leased.attempt, fastrand::f64());
            Verdict::Again { delay_ms: wait_ms.max(sent.pause_ms.unwrap_or(0)).min(MAX_DELAY_MS) }
        };
        self.tell(&sent, verdict);
        let attempt = Some(self.listed(leased, sent, verdict));
        let settled = Settled { receipt: leased.receipt.clone(), verdict, attempt };
        self.unsettled.entry(tenant).or_default().push(settled);
        // After a failure the group voids what follows of the key.
        if verdict == Verdict::Done && !chain.events.is_empty() {
            self.attempt(chain);
        } else {
            self.tenants.give(tenant, 1);
        }
    }

    /// Says in the log what an operator has to see to.
    fn tell(&self, sent: &Sent, verdict: Verdict) {
        let name = &self.subscription.name;
        match sent.outcome {
            Outcome::Gone => {
                tracing::warn!(subscription = %name, "the endpoint says that it is gone: this tenant's events rest for an hour")
            }
            Outcome::AddressRefused => {
                tracing::warn!(subscription = %name, "the endpoint's name has no address that may be reached");
            }
            outcome if verdict != Verdict::Done => {
                tracing::debug!(subscription = %name, outcome = outcome.label(), "an event is sent again later");
            }
            _ => {}
        }
    }

    fn listed(&self, leased: &Leased, sent: Sent, verdict: Verdict) -> Attempt {
        let is_last = leased.attempt >= self.subscription.max_attempts;
        let next_at_ms = match verdict {
            Verdict::Again { delay_ms } if !is_last => Some(since_1970_ms().saturating_add(delay_ms)),
            Verdict::Again { .. } | Verdict::Done => None,
        };
        Attempt {
            event_id: event_id(&leased.event),
            message_id: sent.message_id,
            attempt: leased.attempt,
            at_ms: sent.at_ms,
            outcome: sent.outcome,
            status: sent.status,
            duration_ms: u64::try_from(sent.duration.as_millis()).unwrap_or(u64::MAX),
            next_at_ms,
        }
    }

    /// Settles what ended, for each tenant all of it at once, and one call at a time.
    fn settle(&mut self) {
        let idle: Vec<Uuid> =
            self.unsettled.keys().filter(|tenant| !self.settling.contains(tenant)).copied().collect();
        for tenant in idle {
            let Some(settled) = self.unsettled.remove(&tenant) else { continue };
            self.settling.insert(tenant);
            let (shared, line) = (Arc::clone(&self.shared), self.line(tenant));
            self.steps.push(Box::pin(async move {
                settle(&shared, &line, &settled).await;
                Step::Settled { tenant }
            }));
        }
    }
}

/// Keeps the leases of a chain's events; whether all of them are good.
async fn extend(shared: &Shared, line: &Line, chain: &mut Chain, lease_ms: u64) -> bool {
    let receipts: Vec<_> = chain.events.iter().map(|leased| leased.receipt.clone()).collect();
    match shared.deliveries.extend(line, &receipts, lease_ms).await {
        Ok(all) => {
            chain.leased_until = Instant::now() + Duration::from_millis(lease_ms);
            all
        }
        Err(error) => {
            tracing::warn!(subscription = %line.subscription.name, %error, "cannot keep the leases of events to push");
            false
        }
    }
}

async fn settle(shared: &Shared, line: &Line, settled: &[Settled]) {
    for wait in SETTLE_WAITS.into_iter().map(Some).chain([None]) {
        let Err(error) = shared.deliveries.settle(line, settled).await else { return };
        let count = settled.len();
        tracing::warn!(subscription = %line.subscription.name, %error, count, "cannot settle pushed events");
        if let Some(wait) = wait {
            tokio::time::sleep(wait).await;
        }
    }
}

/// Never, where there is nothing to wait for.
async fn after(wake: Option<Duration>) {
    match wake {
        Some(wake) => tokio::time::sleep(wake).await,
        None => std::future::pending().await,
    }
}
