//! The gate that every caller passes: from an `Authorization` header to a principal.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use http::HeaderValue;

use super::Principal;
use super::cache::{Digest, TokenCache};
use super::claims::{self, Rules, Verified, View};
use super::fetch::SourceError;
use super::jwks::{KeyStore, Timing};
use super::jws::{self, HEADER_CHECKS, MAX_TOKEN_BYTES, Parsed};
use super::keys::{Key, KeySet};
use super::metrics::IdentityMetrics;
use super::recent::Recent;
use super::refusal::Refusal;
use crate::clock;
use crate::config;
use crate::error::ErrorKind;
use crate::tasks::Tasks;

/// Why the gate cannot be built: the configuration is wrong in a way that its schema cannot see.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Nobody could be verified.
    #[error("`identity.issuers` is empty: name at least one issuer")]
    NoIssuer,
    /// A token's `iss` must pick one issuer, and a name one line of metrics.
    #[error("two issuers have the {what} `{value}`: each needs its own")]
    Doubled {
        /// `name` or `issuer`.
        what: &'static str,
        /// The value that two have.
        value: String,
    },
    /// An issuer's keys cannot be read from where the configuration says.
    #[error("issuer `{issuer}`: {reason}")]
    Source {
        /// Its name.
        issuer: String,
        /// What is wrong and what would be right.
        reason: String,
    },
}

/// Why a caller is not let in; the text is for the client and holds no part of a token.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.text())]
pub struct AuthError(pub(super) Refusal);

impl AuthError {
    /// What kind of error it is to the caller.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind()
    }

    /// `WWW-Authenticate` (RFC 6750, 3): bare `Bearer` without a credential, with `error="invalid_token"` and a
    /// description otherwise.
    #[must_use]
    pub fn challenge(&self) -> String {
        if self.0.has_token() {
            format!("Bearer error=\"invalid_token\", error_description=\"{}\"", self.0.text())
        } else {
            "Bearer".to_owned()
        }
    }
}

impl fmt::Debug for AuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuthError({})", self.0.label())
    }
}

/// Verifies callers.
pub struct Gate {
    issuers: Vec<Issuer>,
    cache: Arc<TokenCache>,
    metrics: IdentityMetrics,
}

struct Issuer {
    rules: Rules,
    keys: Arc<KeyStore>,
}

impl Gate {
    /// A gate for the configured issuers. Key files that are there are read now; the rest comes in the background.
    pub fn new(
        identity: &config::Identity,
        metrics: &IdentityMetrics,
        tasks: &Tasks,
    ) -> Result<Self, StartError> {
        Self::with_timing(identity, metrics, tasks, Timing::of)
    }

    pub(super) fn with_timing(
        identity: &config::Identity,
        metrics: &IdentityMetrics,
        tasks: &Tasks,
        timing: impl Fn(&config::KeySource) -> Timing,
    ) -> Result<Self, StartError> {
        if identity.issuers.is_empty() {
            return Err(StartError::NoIssuer);
        }
        each_once("name", identity.issuers.iter().map(|issuer| &issuer.name))?;
        each_once("issuer", identity.issuers.iter().map(|issuer| &issuer.issuer))?;
        let cache = Arc::new(TokenCache::new(identity.token_cache_entries));
        let mut issuers = Vec::with_capacity(identity.issuers.len());
        for issuer in &identity.issuers {
            let keys = KeyStore::new(issuer, timing(&issuer.jwks), Arc::clone(&cache), metrics);
            let keys = Arc::new(keys.map_err(|error| source_error(issuer, &error))?);
            let rules = Rules::new(issuer, identity.tenant_namespace, identity.clock_skew_s);
            issuers.push(Issuer { rules, keys });
        }
        for issuer in &issuers {
            issuer.keys.start(tasks);
        }
        Ok(Self { issuers, cache, metrics: metrics.clone() })
    }

    /// The principal of a request's one `Authorization` header, if its token was verified before; `recent` is its
    /// connection's.
    pub fn known(
        &self,
        authorization: Option<&HeaderValue>,
        recent: &Recent,
    ) -> Result<Option<Arc<Principal>>, AuthError> {
        let token = bearer(authorization).map_err(|refusal| self.refuse(refusal))?;
        let now_ms = i64::try_from(clock::since_1970_ms()).unwrap_or(i64::MAX);
        if let Some(principal) = recent.get(token, now_ms, self.cache.generation()) {
            self.metrics.cached();
            return Ok(Some(principal));
        }
        let digest = Digest::of(token);
        let Some((entry, principal)) = self.cache.get(&digest, now_ms) else { return Ok(None) };
        self.metrics.cached();
        recent.note(token, digest, entry);
        Ok(Some(principal))
    }

    /// The same, verified where it was not. It waits only for keys, until `deadline` at the most.
    pub async fn principal(
        &self,
        authorization: Option<&HeaderValue>,
        recent: &Recent,
        deadline: Instant,
    ) -> Result<Arc<Principal>, AuthError> {
        if let Some(principal) = self.known(authorization, recent)? {
            return Ok(principal);
        }
        let token = bearer(authorization).map_err(|refusal| self.refuse(refusal))?;
        let verified = self.verify(token, Digest::of(token), deadline).await;
        verified.map_err(|refusal| self.refuse(refusal))
    }

    async fn verify(
        &self,
        token: &[u8],
        digest: Digest,
        deadline: Instant,
    ) -> Result<Arc<Principal>, Refusal> {
        let parsed = jws::parse(token68(token)?)?;
        for check in HEADER_CHECKS {
            (check.run)(&parsed.header)?;
        }
        let iss = claims::issuer(&parsed.claims)?;
        let issuer = self.issuers.iter().find(|issuer| issuer.rules.issuer == iss);
        let issuer = issuer.ok_or(Refusal::UnknownIssuer)?;
        let (keys, generation) = issuer.keys.having(jws::key_id(&parsed.header)?, deadline).await?;
        let verified = verify_with(&parsed, &keys, &issuer.rules, now_ms())?;
        self.metrics.verified();
        Ok(self.cache.insert(digest, verified, generation).into_principal())
    }

    fn refuse(&self, refusal: Refusal) -> AuthError {
        self.metrics.refused(refusal);
        tracing::debug!(reason = refusal.label(), "a token was refused");
        AuthError(refusal)
    }

    /// Whether every issuer's keys are there; what to do where not.
    pub fn ready(&self) -> Result<(), String> {
        let missing: Vec<String> =
            self.issuers.iter().filter_map(|issuer| issuer.keys.ready().err()).collect();
        if missing.is_empty() { Ok(()) } else { Err(missing.join("; ")) }
    }
}

/// Everything that needs a key: the algorithm, the signature, then the claims.
fn verify_with(parsed: &Parsed<'_>, keys: &KeySet, rules: &Rules, now_ms: i64) -> Result<Verified, Refusal> {
    let key = keys.find(jws::key_id(&parsed.header)?)?;
    check_algorithm(parsed, key)?;
    key.verify(parsed)?;
    View { claims: &parsed.claims, rules, now_ms }.verify()
}

/// The token's `alg` is the key's one algorithm, so that no key is used in a way it was not made for.
pub(super) fn check_algorithm(parsed: &Parsed<'_>, key: &Key) -> Result<(), Refusal> {
    let named = jws::algorithm(&parsed.header)?;
    if named == key.algorithm_name() { Ok(()) } else { Err(Refusal::Algorithm) }
}

pub(super) fn source_error(issuer: &config::Issuer, error: &SourceError) -> StartError {
    StartError::Source { issuer: issuer.name.clone(), reason: error.to_string() }
}

pub(super) fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

fn each_once<'v>(what: &'static str, values: impl Iterator<Item = &'v String>) -> Result<(), StartError> {
    let mut seen = HashSet::new();
    for value in values {
        if !seen.insert(value) {
            return Err(StartError::Doubled { what, value: value.clone() });
        }
    }
    Ok(())
}

/// What follows the scheme in `Authorization: Bearer <token>` (RFC 6750, 2.1; the scheme in any case, RFC 9110,
/// 11.1). Two such headers are refused before.
fn bearer(authorization: Option<&HeaderValue>) -> Result<&[u8], Refusal> {
    let value = authorization.ok_or(Refusal::NoToken)?.as_bytes();
    let (scheme, rest) = value.split_at_checked(b"Bearer ".len()).ok_or(Refusal::Scheme)?;
    if !scheme.eq_ignore_ascii_case(b"Bearer ") {
        return Err(Refusal::Scheme);
    }
    // RFC 6750 wants one space, RFC 9110 allows several; a tab is neither.
    let spaces = rest.iter().take_while(|byte| **byte == b' ').count();
    let token = rest.get(spaces..).unwrap_or_default();
    if token.len() > MAX_TOKEN_BYTES { Err(Refusal::TooLong) } else { Ok(token) }
}

/// A token in the characters that the scheme allows (`token68`, RFC 9110, 11.2). Asked of a token that is not in
/// the cache: one that is there has passed.
fn token68(token: &[u8]) -> Result<&str, Refusal> {
    let allowed =
        |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~' | b'+' | b'/' | b'=');
    let text = std::str::from_utf8(token).ok().filter(|text| !text.is_empty());
    text.filter(|_| token.iter().all(allowed)).ok_or(Refusal::Scheme)
}
