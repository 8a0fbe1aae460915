//! Rate limits: how many requests a tenant may make, in a burst and sustained.
//!
//! A check names buckets, each a limit and a key of the permit's tenant. All of a call's buckets have enough
//! and are taken from, or none is. Admitted in any time `t`, for each bucket and whatever the number of
//! sidecars: at most `burst + rate x t`, to the token, but for answers that say `degraded`.
//!
//! What a check means ([`policy`], [`ask`]), how it is counted ([`crate::fairness::gcra`]) and how it is answered (`api`) know
//! nothing of where tokens come from; a [`TokenSource`] knows nothing of HTTP. A source that leases tokens in
//! advance fits between them.

mod api;
mod ask;
mod breaker;
mod config;
#[cfg(test)]
mod conformance;
mod embedded;
mod fallback;
mod memory;
mod metrics;
mod policy;
mod redis;
mod wire;

pub use crate::fairness::gcra::{Quota, QuotaError, Standing, Tat};
pub use ask::{Ask, Asks, Bucket};
pub use policy::{Limit, OnBackendFailure, RateLimits, Rule};

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde_json::Value;
use smallvec::SmallVec;

use crate::error::ErrorKind;
use crate::http::Route;
use crate::policy::{Action, Denied, Kind};
use crate::primitives::{BuildError, Primitive, Resources};

/// The registry row.
pub const PRIMITIVE: Primitive = Primitive {
    name: "ratelimit",
    actions: ACTIONS,
    config_schema: schemars::SchemaGenerator::subschema_for::<config::RateLimitConfig>,
    policy: Kind {
        name: "ratelimits",
        schema: schemars::SchemaGenerator::subschema_for::<policy::RateLimitsDocument>,
        load: policy::load,
    },
    redis_families: &["tenant:", "outrigger:"],
    must_not_be_evicted: true,
    migrations: embedded::MIGRATIONS,
    needs_store: false,
    build,
};

/// Looking at a limit and taking from it.
pub const CHECK: Action = Action::new("ratelimit", "check");
/// Every action.
pub const ACTIONS: &[Action] = &[CHECK];

/// Where tokens come from.
pub trait TokenSource: Send + Sync {
    /// Takes every ask's cost from its bucket, or nothing where one of them has not enough; a cost of 0 looks
    /// and always passes. Never fails: a source whose backend does not answer decides by the rules'
    /// `on_backend_failure`, and says so.
    fn take<'a>(&'a self, asks: &'a Asks) -> Taking<'a>;
}

/// An answer, or the wait for one: a source in memory answers at once, without a future.
pub enum Taking<'a> {
    /// The answer.
    Now(Outcome),
    /// The answer, when the backend has given it.
    Later(Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>),
}

impl Taking<'_> {
    /// The answer.
    pub async fn outcome(self) -> Outcome {
        match self {
            Self::Now(outcome) => outcome,
            Self::Later(answer) => answer.await,
        }
    }
}

/// What a source says to a call's asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Whether every ask passed, and so was taken.
    pub allowed: bool,
    /// Who decided.
    pub source: Source,
    /// Each ask's bucket, in their order.
    pub standings: SmallVec<[Standing; 1]>,
    /// How many asks were answered by a bucket that new keys share, since the tenant has too many.
    pub overflowed: usize,
}

/// Who decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The backend.
    Backend,
    /// The backend, which may have lost the last tokens taken when a replica became its primary.
    Recovering,
    /// This process alone, with its share of the limits.
    Local,
    /// Nobody: `on_backend_failure: open`.
    Open,
    /// Nobody: `on_backend_failure: closed`.
    Closed,
}

impl Source {
    /// Whether the limits may not have been held exactly.
    #[must_use]
    pub fn is_degraded(self) -> bool {
        match self {
            Self::Backend => false,
            Self::Recovering | Self::Local | Self::Open | Self::Closed => true,
        }
    }
}

/// Why a check is not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RateLimitError {
    /// Policy does not let the caller check this limit.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// No policy names this limit.
    #[error("no policy names this limit; `policies/ratelimits.yaml` is where limits are")]
    UnknownLimit,
    /// A check could never pass.
    #[error("at most {burst}, the limit's burst, in all checks of this limit and key")]
    OverBurst {
        /// The largest cost that can.
        burst: u64,
    },
    /// A defect: one call's permits are for two tenants.
    #[error("a call is for one tenant")]
    TwoTenants,
}

impl RateLimitError {
    /// What kind of error it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Denied(_) => ErrorKind::Forbidden,
            Self::UnknownLimit => ErrorKind::NotFound,
            Self::OverBurst { .. } => ErrorKind::Invalid,
            Self::TwoTenants => ErrorKind::Internal,
        }
    }
}

fn build(section: Value, resources: &Resources) -> Result<Vec<Route>, BuildError> {
    let config = config::RateLimitConfig::read(section)?;
    let metrics = metrics::RateLimitMetrics::new(&resources.metrics)?;
    let source: Arc<dyn TokenSource> = match &config.backend {
        config::Backend::Embedded => {
            embedded::Embedded::start(&config, resources.cache_db()?, &resources.tasks)
        }
        config::Backend::Redis => {
            let pool = resources.redis(config.redis_name()?)?;
            redis::RedisSource::start(&config, pool, &metrics, &resources.tasks)
        }
    };
    Ok(api::routes(source, metrics))
}
