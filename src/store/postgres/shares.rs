//! A tenant's share of the connections: beyond it a tenant's transactions wait for each other, and the others' are served. The more
//! the others have, the smaller it is ([`Part`]). A tenant that has none goes to the pool at once, and waits there, as everybody does,
//! for the first connection that becomes free.
//!
//! What is nobody's in particular is not counted: publishers of several tenants share a transaction, and what looks at the
//! log for everyone, or at the schema, is this process's own. There are few of these, and they are short; tenants have all connections
//! but one together, unless one of them may have all, so that they are not what these wait for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

use super::classify::PgError;
use crate::fairness::{Lines, Part};

/// Waiting ones of a tenant that are looked through for those that left, at the least.
const LOOK_AT: usize = 64;
const ALL_IN_USE: &str = "tenants' transactions have all that they may have together";

/// Who has how much.
pub(super) struct Shares(Arc<Counted>);

struct Counted {
    /// Of the connections.
    part: Part,
    /// Those that tenants have together.
    connections: Arc<Semaphore>,
    taken: Mutex<Taken>,
}

/// What all have, and who waits.
#[derive(Default)]
struct Taken {
    all: u64,
    tenants: HashMap<Uuid, OfTenant>,
    waiting: Lines<Waiting>,
}

/// What a tenant has.
struct OfTenant {
    own: u64,
    /// How many of its own wait when those that left are looked for next.
    look_at: usize,
}

/// A tenant's transaction that waits for a place.
struct Waiting {
    tenant: Uuid,
    gives: oneshot::Sender<User>,
}

/// A place within the share, or none where nobody counts; given back when it is dropped.
#[derive(Clone)]
pub(super) struct Share {
    _user: Option<Arc<User>>,
}

/// What a transaction takes: a place within its tenant's share, and one in the gauge of those in use.
pub(super) struct Place {
    _share: Share,
    in_use: IntGauge,
}

impl Place {
    pub(super) fn new(share: Share, in_use: &IntGauge) -> Self {
        in_use.inc();
        Self { _share: share, in_use: in_use.clone() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.in_use.dec();
    }
}

/// A tenant's place among those counted; given back when it is dropped.
struct User {
    tenant: Uuid,
    counted: Arc<Counted>,
    /// Once it has it.
    connection: Option<OwnedSemaphorePermit>,
    is_given_back: bool,
}

impl Taken {
    fn add(&mut self, tenant: Uuid) {
        self.all += 1;
        self.tenants.entry(tenant).or_insert(OfTenant { own: 0, look_at: LOOK_AT }).own += 1;
    }

    fn take_away(&mut self, tenant: Uuid) {
        self.all -= 1;
        if let Some(of) = self.tenants.get_mut(&tenant) {
            of.own -= 1;
            if of.own == 0 {
                self.tenants.remove(&tenant);
            }
        }
    }

    /// Lets go of those of a tenant that left while they waited. At least half of what is looked through came since the last look.
    fn forget_left(&mut self, tenant: Uuid) {
        let Some(of) = self.tenants.get_mut(&tenant) else { return };
        if self.waiting.len_of(tenant) >= of.look_at {
            self.waiting.remove_left(tenant, |one| one.gives.is_closed());
            of.look_at = LOOK_AT.max(2 * self.waiting.len_of(tenant));
        }
    }
}

/// Whether a tenant that has this may have one more, beside all.
fn has_room(part: Part, of: Option<&OfTenant>, all: u64) -> bool {
    of.is_none_or(|of| part.has_room(of.own, all, 1).is_ok())
}

impl Counted {
    fn user(self: &Arc<Self>, tenant: Uuid) -> User {
        User { tenant, counted: Arc::clone(self), connection: None, is_given_back: false }
    }

    /// Takes a place back and gives those that wait what there is, in turns. So nobody waits who may go.
    fn give_back(self: &Arc<Self>, taken: &mut Taken, tenant: Uuid) {
        taken.take_away(tenant);
        loop {
            let Taken { all, tenants, waiting } = &mut *taken;
            let may_go = |tenant: &Uuid| has_room(self.part, tenants.get(tenant), *all);
            if !waiting.turn_to(may_go) {
                return;
            }
            // Those of the first may have left, and then it is another's turn.
            let next = waiting.next_if(|one| one.gives.is_closed(), |_, one| may_go(&one.tenant));
            let Some(Waiting { tenant, gives }) = next else { continue };
            taken.add(tenant);
            if let Err(mut left) = gives.send(self.user(tenant)) {
                left.is_given_back = true;
                taken.take_away(tenant);
            }
        }
    }
}

impl Shares {
    /// Of so many connections, of which a tenant that is alone may have so many.
    pub(super) fn new(connections: usize, one: usize) -> Self {
        let part = Part::new(connections as u64, one.max(1) as u64);
        // Where one tenant may have all there is nothing to keep.
        let kept = usize::from(1 < connections && one < connections);
        let connections = Arc::new(Semaphore::new(connections.saturating_sub(kept).max(1)));
        Self(Arc::new(Counted { part, connections, taken: Mutex::default() }))
    }

    /// Of a transaction that is nobody's.
    pub(super) fn nobody() -> Share {
        Share { _user: None }
    }

    /// A place for a transaction of this tenant's, for which it waits for so long.
    pub(super) async fn enter(&self, tenant: Option<Uuid>, patience: Duration) -> Result<Share, PgError> {
        let Some(tenant) = tenant else { return Ok(Self::nobody()) };
        let until = Instant::now() + patience;
        let mut user = match self.take_or_wait(tenant) {
            Ok(user) => user,
            Err(given) => match tokio::time::timeout_at(until, given).await {
                Ok(Ok(user)) => user,
                Ok(Err(_)) | Err(_) => return Err(PgError::ShareTaken),
            },
        };
        let connection = Arc::clone(&self.0.connections).acquire_owned();
        match tokio::time::timeout_at(until, connection).await {
            Ok(Ok(connection)) => user.connection = Some(connection),
            Ok(Err(_)) | Err(_) => return Err(PgError::NoConnection(ALL_IN_USE.to_owned())),
        }
        Ok(Share { _user: Some(Arc::new(user)) })
    }

    /// A place, where there is one now: then none of the tenant's others waits for it.
    fn take_or_wait(&self, tenant: Uuid) -> Result<User, oneshot::Receiver<User>> {
        let Self(counted) = self;
        let mut taken = counted.taken.lock();
        if has_room(counted.part, taken.tenants.get(&tenant), taken.all) {
            taken.add(tenant);
            return Ok(counted.user(tenant));
        }
        taken.forget_left(tenant);
        let (gives, given) = oneshot::channel();
        taken.waiting.push(tenant, 0, Waiting { tenant, gives });
        Err(given)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // Before another one of its tenant's looks for it.
        self.connection = None;
        if !self.is_given_back {
            self.counted.give_back(&mut self.counted.taken.lock(), self.tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const A: Option<Uuid> = Some(Uuid::from_u128(1));
    const B: Option<Uuid> = Some(Uuid::from_u128(2));
    const C: Option<Uuid> = Some(Uuid::from_u128(3));
    const D: Option<Uuid> = Some(Uuid::from_u128(4));
    const SOON: Duration = Duration::from_millis(20);
    const LATER: Duration = Duration::from_secs(20);

    /// All that a tenant may have now.
    async fn fill(shares: &Shares, tenant: Option<Uuid>) -> Vec<Share> {
        let mut held = Vec::new();
        while let Ok(share) = shares.enter(tenant, Duration::ZERO).await {
            held.push(share);
        }
        held
    }

    fn is_empty(shares: &Shares) -> bool {
        let taken = shares.0.taken.lock();
        (taken.all, taken.tenants.len(), taken.waiting.len()) == (0, 0, 0)
    }

    #[tokio::test]
    async fn a_tenant_waits_for_its_own_transactions_alone_and_nothing_is_kept_of_it() {
        let shares = Shares::new(4, 2);
        let (one, two) = (shares.enter(A, SOON).await.unwrap(), shares.enter(A, SOON).await.unwrap());
        assert!(matches!(shares.enter(A, SOON).await, Err(PgError::ShareTaken)));
        let other = shares.enter(B, SOON).await.unwrap();
        let nobody = [shares.enter(None, SOON).await.unwrap(), shares.enter(None, SOON).await.unwrap()];
        let waits = shares.enter(A, LATER);
        let (third, ()) = tokio::join!(waits, async { drop((one, other)) });
        drop((third.unwrap(), two, nobody));
        assert!(is_empty(&shares));
    }

    #[tokio::test]
    async fn who_leaves_while_waiting_takes_nothing_with_it() {
        let shares = Shares::new(1, 1);
        let has = shares.enter(A, SOON).await.unwrap();
        for _ in 0..1000 {
            assert!(tokio::time::timeout(Duration::ZERO, shares.enter(A, LATER)).await.is_err());
        }
        assert!(shares.0.taken.lock().waiting.len() <= 2 * LOOK_AT, "those that left are kept");
        let mut late = shares.enter(A, LATER).boxed();
        assert!((&mut late).now_or_never().is_none());
        drop(has);
        // What was given to it is not lost though it never looks.
        drop(late);
        drop(shares.enter(B, SOON).await.unwrap());
        assert!(is_empty(&shares));
    }

    #[tokio::test]
    async fn however_many_tenants_have_what_they_may_one_more_is_served() {
        let shares = Shares::new(8, 4);
        let (mut a, mut b, mut c) = (fill(&shares, A).await, fill(&shares, B).await, fill(&shares, C).await);
        assert_eq!([a.len(), b.len(), c.len()], [4, 2, 1]);
        // One is left to what is nobody's. A tenant that has none waits for whoever ends first.
        assert!(matches!(shares.enter(D, SOON).await, Err(PgError::NoConnection(_))));
        let mut of_d = shares.enter(D, LATER).boxed();
        let (mut of_a, mut of_c) = (shares.enter(A, LATER).boxed(), shares.enter(C, LATER).boxed());
        let waits = [&mut of_d, &mut of_a, &mut of_c].map(|one| one.now_or_never().is_none());
        assert_eq!(waits, [true; 3]);
        drop(b.pop());
        let d = of_d.now_or_never().unwrap().unwrap();
        drop((a.pop(), b.pop()));
        assert!((&mut of_a).now_or_never().is_none(), "it has what it may");
        c.push(of_c.now_or_never().unwrap().unwrap());
        drop((a, c, d));
        drop(of_a.now_or_never().unwrap().unwrap());
        assert!(is_empty(&shares));
    }
}
