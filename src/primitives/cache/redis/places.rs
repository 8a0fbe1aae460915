//! What a tenant may have on its way to Redis at once: the few connections to a node, and its queue of removals, are all
//! tenants'.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use crate::primitives::cache::CacheError;
use crate::primitives::cache::key::Scope;
use crate::primitives::cache::pending::{Pending, Place};
use crate::primitives::cache::policy::Namespace;

/// What a read counts at the most, so that a tenant has 32 of them under way: how large a value is, is known too late.
const READ_BYTES: usize = 127 * 1024;

#[derive(Default)]
pub(super) struct Places {
    pub(super) writes: Arc<Pending>,
    removals: Arc<Pending>,
    reads: Arc<Pending>,
}

impl Shared {
    /// A place among the tenant's removals, and what is left of the budget then: half of it at the least, since one whose
    /// time is over leaves its place, and what it sent still waits.
    pub(super) async fn enter_removal(
        &self,
        scope: &Scope,
        budget: Duration,
    ) -> Result<(Place, Duration), CacheError> {
        let end = Instant::now() + budget;
        let (place, _) = enter(&self.places.removals, scope, 0, budget / 2).await?;
        Ok((place, end.saturating_duration_since(Instant::now())))
    }

    /// The same among its reads.
    pub(super) async fn enter_read(
        &self,
        scope: &Scope,
        rules: &Namespace,
        budget: Duration,
    ) -> Result<(Place, Duration), CacheError> {
        enter(&self.places.reads, scope, rules.max_value_bytes.min(READ_BYTES), budget).await
    }
}

async fn enter(
    pending: &Arc<Pending>,
    scope: &Scope,
    bytes: usize,
    budget: Duration,
) -> Result<(Place, Duration), CacheError> {
    let end = Instant::now() + budget;
    let place = pending.enter(scope.tenant(), bytes, budget).await?;
    Ok((place, end.saturating_duration_since(Instant::now())))
}
