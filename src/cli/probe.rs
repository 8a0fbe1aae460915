//! How `outrigger check` tries a backend: one function for each kind.

use crate::config::{Findings, Issuer, PostgresConfig, RedisInstance};
use crate::pools::redis::{Eviction, inspect};
use crate::primitives::Primitive;
use crate::store::postgres;

/// What was seen of a backend.
pub(super) struct Tried {
    /// What there is, in a line; empty where nothing answered.
    pub(super) summary: String,
    /// What is wrong, with pointers below the backend's place in the configuration.
    pub(super) findings: Findings,
    /// What would be better, and is no failure.
    pub(super) warnings: Vec<String>,
}

impl Tried {
    /// A backend with which nothing is wrong.
    fn well(summary: String) -> Self {
        Self { summary, findings: Findings::default(), warnings: Vec::new() }
    }

    /// A backend of which nothing was seen.
    pub(super) fn failed(problem: impl Into<String>, expected: &str) -> Self {
        let mut findings = Findings::default();
        findings.add("", problem, expected);
        Self { findings, ..Self::well(String::new()) }
    }
}

/// Tries the Redis instance `name` for the primitives that use it.
pub(super) async fn redis(name: &str, instance: &RedisInstance, used_by: &[&Primitive]) -> Tried {
    let eviction = match used_by {
        [] => Eviction::Indifferent,
        all if all.iter().any(|primitive| primitive.must_not_be_evicted) => Eviction::Forbidden,
        _ => Eviction::Welcome,
    };
    let mut families: Vec<_> =
        used_by.iter().flat_map(|primitive| primitive.redis_families).copied().collect();
    families.sort_unstable();
    families.dedup();
    let found = inspect(name, instance, &families, eviction).await;
    let mut findings = Findings::default();
    for problem in found.problems {
        findings.add("", problem.message, problem.expected);
    }
    Tried { summary: found.summary, findings, warnings: found.warnings }
}

/// Reads an issuer's key set once.
pub(super) async fn keys(issuer: &Issuer) -> Tried {
    match crate::identity::probe(issuer).await {
        Ok((count, refused)) => {
            let keys = if count == 1 { "1 key".to_owned() } else { format!("{count} keys") };
            let warnings = refused.iter().map(|key| format!("refused: {key}")).collect();
            Tried { warnings, ..Tried::well(keys) }
        }
        Err(problem) => Tried::failed(problem, "a key set (JWKS) that can be read"),
    }
}

/// Tries the database as the application's role, for a usage policy with this time zone, where there is one.
pub(super) async fn postgres(database: &PostgresConfig, time_zone: Option<&str>) -> Tried {
    match postgres::inspect(database).await {
        Ok(found) => {
            let mut findings = Findings::default();
            if let (Some(own), Some(kept)) = (time_zone, &found.usage_time_zone)
                && own != kept
            {
                let problem = format!(
                    "usage is counted in days and months of `{kept}`, and the usage policy has `time_zone: {own}`"
                );
                let right = format!(
                    "`time_zone: {kept}`; another one, before there is usage, is put into force by `outrigger migrate`"
                );
                findings.add("", problem, right);
            }
            if let Some(problem) = found.problem {
                findings.add(
                    "",
                    problem,
                    "a migrated database, reached as a role that row-level security holds",
                );
            }
            Tried { summary: found.summary, findings, warnings: found.warnings }
        }
        Err(problem) => {
            Tried::failed(problem, "a PostgreSQL server that takes writes, and lets `postgres.app` in")
        }
    }
}
