//! What operators see: metrics, the health of backends, logs.

mod health;
mod metrics;

pub use health::{BackendHealth, BackendReport, BackendState, HealthBoard};
pub use metrics::{MetricError, Registry};
