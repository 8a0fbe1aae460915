//! What is on its way through this process at once, of everyone and of one tenant: bytes of bodies and of replies, and
//! calls. Each route bounds its own body, and nothing else would bound how many there are.
//!
//! A tenant's part is counted beside it, so that one whose callers are many or slow leaves the others theirs. A
//! connection remembers its last tenant's count: a call takes no lock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Problem;
use crate::error::ErrorKind;
use crate::identity::TenantId;
use crate::telemetry::{MetricError, Registry};

/// The bounds.
#[derive(Debug, Clone, Copy)]
pub struct LoadLimits {
    /// Bytes of all bodies, and likewise of all large replies.
    pub bytes: usize,
    /// Of those, one tenant's at the most.
    pub tenant_bytes: usize,
    /// One tenant's calls at once.
    pub tenant_calls: usize,
}

/// What one tenant has on its way.
struct TenantLoad {
    tenant: TenantId,
    calls: AtomicUsize,
    bodies: AtomicUsize,
    replies: AtomicUsize,
}

/// The count of the tenant that a connection's last call was for.
#[derive(Default)]
pub(super) struct LastTenant(ArcSwapOption<TenantLoad>);

/// Which bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bytes {
    Bodies,
    Replies,
}

/// Everything on its way.
pub struct Load {
    limits: LoadLimits,
    bodies: Arc<Semaphore>,
    replies: Arc<Semaphore>,
    tenants: Mutex<Tenants>,
    refusals: Refusals,
}

/// Those with something on its way, or with a connection that remembers them.
#[derive(Default)]
struct Tenants {
    counts: HashMap<TenantId, Weak<TenantLoad>>,
    sweep_at: usize,
}

struct Refusals {
    calls: IntCounter,
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
            tenant: [child("tenant_bodies"), child("tenant_replies")],
            all: [child("bodies"), child("replies")],
        })
    }
}

/// A call under way, counted until this is dropped.
pub(super) struct Counted(Arc<TenantLoad>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Relaxed);
    }
}

/// Bytes on their way, counted until this is dropped.
pub(super) struct Share {
    load: Arc<Load>,
    of_tenant: Option<Arc<TenantLoad>>,
    bytes: Bytes,
    taken: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl Load {
    /// Nothing on its way yet.
    pub fn new(limits: LoadLimits, registry: &Registry) -> Result<Arc<Self>, MetricError> {
        let all = || Arc::new(Semaphore::new(limits.bytes.min(Semaphore::MAX_PERMITS)));
        Ok(Arc::new(Self {
            limits,
            bodies: all(),
            replies: all(),
            tenants: Mutex::default(),
            refusals: Refusals::new(registry)?,
        }))
    }

    /// Counts a call of `tenant` in; 503 where it has too many.
    pub(super) fn call(&self, tenant: TenantId, last: &LastTenant) -> Result<Counted, Problem> {
        let of_tenant = match last.0.load_full().filter(|found| found.tenant == tenant) {
            Some(found) => found,
            None => {
                let found = self.tenants.lock().count_of(tenant);
                last.0.store(Some(Arc::clone(&found)));
                found
            }
        };
        let before = of_tenant.calls.fetch_add(1, Relaxed);
        let place = Counted(of_tenant);
        if before < self.limits.tenant_calls {
            return Ok(place);
        }
        self.refusals.calls.inc();
        Err(Problem::new(
            ErrorKind::Overloaded,
            format!(
                "this tenant has {} calls on their way (`limits.tenant_calls`): send this one again",
                self.limits.tenant_calls
            ),
        ))
    }

    /// A share of nothing yet, of the tenant whose call this is; without one of all alone.
    pub(super) fn share(self: &Arc<Self>, bytes: Bytes, call: Option<&Counted>) -> Share {
        let of_tenant = call.map(|call| Arc::clone(&call.0));
        Share { load: Arc::clone(self), of_tenant, bytes, taken: 0, permit: None }
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
        let (calls, bodies, replies) = Default::default();
        let made = Arc::new(TenantLoad { tenant, calls, bodies, replies });
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
    /// Takes `bytes` more; 503 where the tenant or all together have no room for them.
    pub(super) fn take(&mut self, bytes: usize) -> Result<(), Problem> {
        let (limits, refusals) = (&self.load.limits, &self.load.refusals);
        if let Some(of_tenant) = &self.of_tenant {
            let held = self.bytes.of(of_tenant);
            let before = held.fetch_add(bytes, Relaxed);
            if before.saturating_add(bytes) > limits.tenant_bytes {
                held.fetch_sub(bytes, Relaxed);
                refusals.tenant[self.bytes as usize].inc();
                let most = limits.tenant_bytes;
                return Err(Problem::new(
                    ErrorKind::Overloaded,
                    format!(
                        "this tenant has too many bytes on their way (`limits.tenant_bytes`, {most}): send this call again"
                    ),
                ));
            }
            self.taken += bytes;
        }
        let all = match self.bytes {
            Bytes::Bodies => &self.load.bodies,
            Bytes::Replies => &self.load.replies,
        };
        let permit =
            u32::try_from(bytes).ok().and_then(|count| Arc::clone(all).try_acquire_many_owned(count).ok());
        let Some(permit) = permit else {
            refusals.all[self.bytes as usize].inc();
            return Err(Problem::new(
                ErrorKind::Overloaded,
                "too many bodies are on their way at once: send this call again",
            ));
        };
        match &mut self.permit {
            Some(held) => held.merge(permit),
            None => self.permit = Some(permit),
        }
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(of_tenant) = &self.of_tenant {
            self.bytes.of(of_tenant).fetch_sub(self.taken, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "0190c7a8-3c5e-7f00-8000-0000000000a1";
    const B: &str = "0190c7a8-3c5e-7f00-8000-0000000000b2";

    fn load(bytes: usize, tenant_bytes: usize, tenant_calls: usize) -> Arc<Load> {
        Load::new(LoadLimits { bytes, tenant_bytes, tenant_calls }, &Registry::default()).unwrap()
    }

    fn tenant(text: &str) -> TenantId {
        TenantId::parse(text).unwrap()
    }

    #[test]
    fn shares_are_bounded_together_and_by_tenant_and_given_back() {
        let load = load(10, 6, 100);
        let connection = LastTenant::default();
        let (a, b) = (load.call(tenant(A), &connection).unwrap(), load.call(tenant(B), &connection).unwrap());
        let mut first = load.share(Bytes::Bodies, Some(&a));
        assert!(first.take(4).is_ok());
        assert!(first.take(2).is_ok());
        let mut second = load.share(Bytes::Bodies, Some(&a));
        assert_eq!(second.take(1).unwrap_err().kind(), ErrorKind::Overloaded);
        assert!(load.share(Bytes::Replies, Some(&a)).take(6).is_ok(), "replies are counted apart");
        let mut others = load.share(Bytes::Bodies, Some(&b));
        assert!(others.take(5).is_err(), "of all only four are left");
        assert!(others.take(1).is_ok(), "what was refused is not counted");
        drop((first, second, others));
        let mut again = load.share(Bytes::Bodies, Some(&b));
        assert!(again.take(6).is_ok());
        assert!(load.share(Bytes::Bodies, None).take(4).is_ok(), "without a tenant all alone count");
    }

    #[test]
    fn a_tenant_has_so_many_calls_and_others_have_theirs() {
        let load = load(10, 10, 2);
        let connections = [LastTenant::default(), LastTenant::default()];
        let mut held: Vec<_> =
            connections.iter().map(|connection| load.call(tenant(A), connection).unwrap()).collect();
        assert_eq!(load.call(tenant(A), &connections[0]).err().unwrap().kind(), ErrorKind::Overloaded);
        assert!(load.call(tenant(B), &connections[0]).is_ok());
        held.pop();
        assert!(load.call(tenant(A), &connections[0]).is_ok());
    }

    #[test]
    fn who_has_nothing_on_its_way_is_forgotten() {
        let load = load(10, 10, 2);
        for _ in 0..1000 {
            let of_one = load
                .call(TenantId::parse(&uuid::Uuid::new_v4().to_string()).unwrap(), &LastTenant::default());
            assert!(of_one.is_ok());
        }
        assert!(load.tenants.lock().counts.len() <= 64);
    }
}
