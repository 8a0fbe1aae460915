//! How `outrigger check` tries a backend: one function for each kind.

use crate::config::{Findings, Issuer, RedisInstance};
use crate::pools;
use crate::primitives::Primitive;

/// What was seen of a backend.
pub(super) struct Tried {
    /// What there is, in a line; empty where nothing answered.
    pub(super) summary: String,
    /// What is wrong, with pointers below the backend's place in the configuration.
    pub(super) findings: Findings,
}

impl Tried {
    /// A backend of which nothing was seen.
    pub(super) fn failed(problem: impl Into<String>, expected: &str) -> Self {
        let mut findings = Findings::default();
        findings.add("", problem, expected);
        Self { summary: String::new(), findings }
    }
}

/// Tries the Redis instance `name` for the primitives that use it.
pub(super) async fn redis(name: &str, instance: &RedisInstance, used_by: &[&Primitive]) -> Tried {
    let may_not_evict = used_by.iter().any(|primitive| primitive.must_not_be_evicted);
    let found = pools::redis::inspect(name, instance, may_not_evict).await;
    let mut findings = Findings::default();
    for problem in found.problems {
        findings.add("", problem.message, problem.expected);
    }
    Tried { summary: found.summary, findings }
}

/// Reads an issuer's key set once.
pub(super) async fn keys(issuer: &Issuer) -> Tried {
    match crate::identity::probe(issuer).await {
        Ok(1) => Tried { summary: "1 key".to_owned(), findings: Findings::default() },
        Ok(count) => Tried { summary: format!("{count} keys"), findings: Findings::default() },
        Err(problem) => Tried::failed(problem, "a key set (JWKS) that can be read"),
    }
}
