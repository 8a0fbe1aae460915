//! STUB
use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;

use super::Principal;
use crate::config;
use crate::error::ErrorKind;
use crate::tasks::Tasks;
use crate::telemetry::{MetricError, Registry};

/// What identity counts.
pub struct IdentityMetrics;

impl IdentityMetrics {
    /// STUB
    pub fn new(_: &Registry) -> Result<Self, MetricError> {
        Ok(Self)
    }
}

/// Why the gate cannot be built.
#[derive(Debug, thiserror::Error)]
#[error("stub")]
pub struct StartError;

/// Why a caller is not let in; the text is for the client.
#[derive(Debug, Clone, thiserror::Error)]
#[error("stub")]
pub struct AuthError;

impl AuthError {
    /// What kind of error it is to the caller.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Unauthenticated
    }

    /// `WWW-Authenticate` (RFC 6750, 3): bare `Bearer` without a credential, with `error="invalid_token"` and a
    /// description otherwise.
    #[must_use]
    pub fn challenge(&self) -> String {
        "Bearer".to_owned()
    }
}

/// Verifies callers.
pub struct Gate;

impl Gate {
    /// STUB
    pub fn new(_: &config::Identity, _: &IdentityMetrics, _: &Tasks) -> Result<Self, StartError> {
        Ok(Self)
    }

    /// The principal of a request's one `Authorization` header.
    pub async fn principal(&self, _: &HeaderMap, _: Instant) -> Result<Arc<Principal>, AuthError> {
        Err(AuthError)
    }

    /// Whether every issuer's keys are there; what to do where not.
    pub fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}
