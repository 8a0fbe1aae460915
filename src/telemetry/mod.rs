//! What operators see: metrics, the health of backends, logs.

mod health;
mod metrics;
mod sharded;

pub use health::{BackendHealth, BackendReport, BackendState, HealthBoard};
pub use metrics::{MetricError, Registry};
pub use sharded::{Counter, Histogram};

/// A time in RFC 3339, UTC, to the millisecond.
#[must_use]
pub fn rfc3339(time: std::time::SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| "unknown".to_owned(), |time| format!("{time:.3}"))
}
