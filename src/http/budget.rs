//! What is on its way through this process at once, of everyone and of one tenant: bytes of bodies and of replies, and
//! calls that wait. Each route bounds its own body, and nothing else would bound how many there are.
//!
//! A tenant's part is counted beside it, so that one whose callers are many or slow leaves the others theirs; the more the
//! others have, the less that is ([`Part`]). Most
//! calls are answered at once with little in hand: they are not counted, and only look at their tenant's count, which
//! their connection remembers. They take no lock and change nothing that another connection's calls change.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec};

use super::open_streams::OpenStreams;
use super::{ConnectionState, Problem};
use crate::error::ErrorKind;
use crate::fairness::{NoRoom, Part};
use crate::identity::TenantId;
use crate::telemetry::{MetricError, Registry};

/// The bounds.
#[derive(Debug, Clone, Copy)]
pub struct LoadLimits {
    /// Bytes of all bodies, and likewise of all large replies.
    pub bytes: usize,
    /// Of those, one tenant's that is alone.
    pub tenant_bytes: usize,
    /// One tenant's calls at once.
    pub tenant_calls: usize,
    /// Streamed replies at once.
    pub streams: usize,
    /// Of those, one tenant's that is alone.
    pub tenant_streams: usize,
}

/// What one tenant has on its way.
pub(super) struct TenantLoad {
    tenant: TenantId,
    calls: AtomicUsize,
    bodies: AtomicUsize,
    replies: AtomicUsize,
    pub(super) streams: AtomicUsize,
}

/// What a connection remembers: whose counts these are, and the count of the tenant that its last call was for.
#[derive(Default)]
pub(super) struct ConnectionLoad {
    load: OnceLock<Arc<Load>>,
    last: ArcSwapOption<TenantLoad>,
}

/// Which bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bytes {
    Bodies,
    Replies,
}

/// Everything on its way.
pub struct Load {
    pub(super) limits: LoadLimits,
    /// Bytes of all; the lock is that of the tenants' counts too.
    bodies: Mutex<usize>,
    replies: Mutex<usize>,
    tenants: Mutex<Tenants>,
    pub(super) streams: OpenStreams,
    pub(super) refusals: Refusals,
}

/// Those with something on its way, or with a connection that remembers them.
#[derive(Default)]
struct Tenants {
    counts: HashMap<TenantId, Weak<TenantLoad>>,
    sweep_at: usize,
}

pub(super) struct Refusals {
    calls: IntCounter,
    pub(super) streams: IntCounter,
    pub(super) tenant_streams: IntCounter,
    tenant: [IntCounter; 2],
    all: [IntCounter; 2],
}

impl Refusals {
    fn new(registry: &Registry) -> Result<Self, MetricError> {
        let family: IntCounterVec = registry.counters(
            "outrigger_http_overloads_total",
            "Calls refused because too much was on its way: of their tenant, or of all.",
            &["bound"],
        )?;
        let child = |bound| family.with_label_values(&[bound]);
        Ok(Self {
            calls: child("tenant_calls"),
            streams: child("streams"),
            tenant_streams: child("tenant_streams"),
            tenant: [child("tenant_bodies"), child("tenant_replies")],
            all: [child("bodies"), child("replies")],
        })
    }
}

/// A call that waits, counted until this is dropped.
pub(super) struct Counted(Arc<TenantLoad>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Relaxed);
    }
}

/// Bytes on their way, counted until this is dropped.
pub(super) struct Share {
    connection: Arc<ConnectionState>,
    tenant: TenantId,
    bytes: Bytes,
    taken: Option<Taken>,
}

/// What a share has taken.
struct Taken {
    load: Arc<Load>,
    of_tenant: Arc<TenantLoad>,
    bytes: Bytes,
    count: usize,
}

impl Load {
    /// Nothing on its way yet.
    pub fn new(limits: LoadLimits, registry: &Registry) -> Result<Arc<Self>, MetricError> {
        Ok(Arc::new(Self {
            limits,
            bodies: Mutex::default(),
            replies: Mutex::default(),
            tenants: Mutex::default(),
            streams: OpenStreams::new(registry)?,
            refusals: Refusals::new(registry)?,
        }))
    }

    fn all(&self, bytes: Bytes) -> &Mutex<usize> {
        match bytes {
            Bytes::Bodies => &self.bodies,
            Bytes::Replies => &self.replies,
        }
    }

    /// 503, for a call that needed bytes which there was no room for.
    fn refuse(&self, bytes: Bytes, over: NoRoom) -> Problem {
        let (counters, detail) = match over {
            NoRoom::OfTenant => (
                &self.refusals.tenant,
                Cow::from(format!(
                    "this tenant has too many bytes on their way (`limits.tenant_bytes`, {}): send this call again",
                    self.limits.tenant_bytes
                )),
            ),
            NoRoom::OfAll => {
                (&self.refusals.all, "too many bodies are on their way at once: send this call again".into())
            }
        };
        counters[bytes as usize].inc();
        Problem::new(ErrorKind::Overloaded, detail)
    }
}

impl ConnectionLoad {
    /// 503 where `tenant` has as many calls waiting as it may.
    pub(super) fn admit(&self, load: &Arc<Load>, tenant: TenantId) -> Result<(), Problem> {
        let load = self.load.get_or_init(|| Arc::clone(load));
        let most = load.limits.tenant_calls;
        let waiting = match &*self.last.load() {
            Some(last) if last.tenant == tenant => last.calls.load(Relaxed),
            Some(_) | None => self.of(load, tenant).calls.load(Relaxed),
        };
        if waiting < most {
            return Ok(());
        }
        load.refusals.calls.inc();
        Err(Problem::new(
            ErrorKind::Overloaded,
            format!("this tenant has {most} calls on their way (`limits.tenant_calls`): send this one again"),
        ))
    }

    /// Counts a call of `tenant` that waits. It was admitted, as a few others may have been at the same time.
    pub(super) fn count(&self, tenant: TenantId) -> Option<Counted> {
        let of_tenant = self.of(self.load.get()?, tenant);
        of_tenant.calls.fetch_add(1, Relaxed);
        Some(Counted(of_tenant))
    }

    pub(super) fn of(&self, load: &Load, tenant: TenantId) -> Arc<TenantLoad> {
        if let Some(found) = self.last.load_full().filter(|found| found.tenant == tenant) {
            return found;
        }
        let found = load.tenants.lock().count_of(tenant);
        self.last.store(Some(Arc::clone(&found)));
        found
    }
}

impl Tenants {
    fn count_of(&mut self, tenant: TenantId) -> Arc<TenantLoad> {
        if let Some(found) = self.counts.get(&tenant).and_then(Weak::upgrade) {
            return found;
        }
        if self.counts.len() >= self.sweep_at {
            self.counts.retain(|_, count| count.strong_count() > 0);
            self.sweep_at = (2 * self.counts.len()).max(64);
        }
        let (calls, bodies, replies, streams) = Default::default();
        let made = Arc::new(TenantLoad { tenant, calls, bodies, replies, streams });
        self.counts.insert(tenant, Arc::downgrade(&made));
        made
    }
}

impl Bytes {
    fn of(self, tenant: &TenantLoad) -> &AtomicUsize {
        match self {
            Self::Bodies => &tenant.bodies,
            Self::Replies => &tenant.replies,
        }
    }
}

impl Share {
    /// A share of nothing yet, of `tenant`'s.
    pub(super) fn new(
        load: &Arc<Load>,
        connection: &Arc<ConnectionState>,
        tenant: TenantId,
        bytes: Bytes,
    ) -> Self {
        connection.load.load.get_or_init(|| Arc::clone(load));
        Self { connection: Arc::clone(connection), tenant, bytes, taken: None }
    }

    /// Whose call it is.
    pub(super) fn connection(&self) -> &ConnectionState {
        &self.connection
    }

    /// Takes `more` bytes; 503 where the tenant or all together have no room for them.
    pub(super) fn take(&mut self, more: usize) -> Result<(), Problem> {
        let bytes = self.bytes;
        let Some(taken) = self.taken() else {
            return Err(Problem::new(ErrorKind::Internal, "a defect: nobody counts what is on its way"));
        };
        taken.take(more).map_err(|over| taken.load.refuse(bytes, over))
    }

    /// Takes `more` bytes, where there is room for them now: for what can wait, and is no call to refuse.
    pub(super) fn has_taken(&mut self, more: usize) -> bool {
        self.taken().is_some_and(|taken| taken.take(more).is_ok())
    }

    fn taken(&mut self) -> Option<&mut Taken> {
        let known = &self.connection.load;
        let load = known.load.get()?;
        let (tenant, bytes) = (self.tenant, self.bytes);
        Some(self.taken.get_or_insert_with(|| Taken {
            load: Arc::clone(load),
            of_tenant: known.of(load, tenant),
            bytes,
            count: 0,
        }))
    }
}

impl Taken {
    /// Takes `more` bytes, where the tenant and all together have room for them.
    fn take(&mut self, more: usize) -> Result<(), NoRoom> {
        let limits = &self.load.limits;
        let held = self.bytes.of(&self.of_tenant);
        let mut all = self.load.all(self.bytes).lock();
        let before = held.load(Relaxed);
        if before.saturating_add(more) > limits.tenant_bytes {
            return Err(NoRoom::OfTenant);
        }
        // A tenant's only one goes up to the tenant's bound, whatever others have.
        let own = if before == self.count { 0 } else { before };
        let part = Part::new(limits.bytes as u64, limits.tenant_bytes as u64);
        part.has_room(own as u64, *all as u64, more as u64)?;
        held.store(before + more, Relaxed);
        *all += more;
        self.count += more;
        Ok(())
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut all = self.load.all(self.bytes).lock();
        self.bytes.of(&self.of_tenant).fetch_sub(self.count, Relaxed);
        *all -= self.count;
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    const A: &str = "0190c7a8-3c5e-7f00-8000-0000000000a1";
    const B: &str = "0190c7a8-3c5e-7f00-8000-0000000000b2";

    fn load(bytes: usize, tenant_bytes: usize, tenant_calls: usize) -> Arc<Load> {
        let (streams, tenant_streams) = (3, 2);
        let limits = LoadLimits { bytes, tenant_bytes, tenant_calls, streams, tenant_streams };
        Load::new(limits, &Registry::default()).unwrap()
    }

    fn tenant(text: &str) -> TenantId {
        TenantId::parse(text).unwrap()
    }

    #[test]
    fn shares_are_bounded_together_and_by_tenant_and_given_back() {
        let load = load(10, 6, 100);
        let connection = ConnectionState::new(&CancellationToken::new());
        let share = |tenant, bytes| Share::new(&load, &connection, tenant, bytes);
        let (a, b) = (tenant(A), tenant(B));
        let mut first = share(a, Bytes::Bodies);
        assert!(first.take(4).is_ok());
        assert!(first.take(2).is_ok());
        let mut second = share(a, Bytes::Bodies);
        assert_eq!(second.take(1).unwrap_err().kind(), ErrorKind::Overloaded);
        assert!(share(a, Bytes::Replies).take(6).is_ok(), "replies are counted apart");
        let mut others = share(b, Bytes::Bodies);
        assert!(others.take(5).is_err(), "of all only four are left");
        assert!(others.take(1).is_ok(), "what was refused is not counted");
        drop((first, second, others));
        let mut again = share(b, Bytes::Bodies);
        assert!(again.take(6).is_ok());
    }

    #[test]
    fn a_tenant_has_so_many_waiting_calls_and_others_have_theirs() {
        let load = load(10, 10, 2);
        let connections = [ConnectionLoad::default(), ConnectionLoad::default()];
        let admit = |at: usize, text| connections[at].admit(&load, tenant(text));
        let mut held = Vec::new();
        for (at, connection) in connections.iter().enumerate() {
            assert!(admit(at, A).is_ok());
            held.push(connection.count(tenant(A)).unwrap());
        }
        assert_eq!(admit(0, A).unwrap_err().kind(), ErrorKind::Overloaded);
        assert!(admit(0, B).is_ok());
        held.pop();
        assert!(admit(0, A).is_ok());
    }

    #[test]
    fn who_has_nothing_on_its_way_is_forgotten() {
        let load = load(10, 10, 2);
        for _ in 0..1000 {
            let one = TenantId::parse(&uuid::Uuid::new_v4().to_string()).unwrap();
            assert!(ConnectionLoad::default().admit(&load, one).is_ok());
        }
        assert!(load.tenants.lock().counts.len() <= 64);
    }
}
