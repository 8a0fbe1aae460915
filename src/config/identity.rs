//! `identity:` in `proxy.yaml`: whose tokens are accepted.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Whose tokens are accepted.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Each issuer is bound to its own keys and its own names of claims.
    #[schemars(length(min = 1))]
    pub issuers: Vec<Issuer>,
    /// With it, a tenant claim that is no UUID is mapped to its UUIDv5 in this namespace. The issuer must control
    /// these strings, and not leave them to its users: whoever chooses one chooses the tenant, since a string of the
    /// form of a canonical UUID is taken as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_namespace: Option<Uuid>,
    /// How far clocks may differ, for `exp` and `nbf`, in seconds.
    #[serde(default = "default_clock_skew_s")]
    #[schemars(range(max = 300))]
    pub clock_skew_s: u64,
    /// Verified tokens remembered at the most.
    #[serde(default = "default_token_cache_entries")]
    #[schemars(range(min = 16, max = 1_000_000))]
    pub token_cache_entries: usize,
}

/// An issuer of tokens.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// What access rules call it.
    #[schemars(regex(pattern = "^[a-z][a-z0-9_.-]{0,63}$"))]
    pub name: String,
    /// The `iss` claim, exactly.
    #[schemars(length(min = 1))]
    pub issuer: String,
    /// The audience that a token must be for.
    #[schemars(length(min = 1))]
    pub audience: String,
    /// Its keys.
    pub jwks: KeySource,
    /// What it calls its claims.
    #[serde(default)]
    pub claims: ClaimNames,
}

/// Where an issuer's key set is: a file, or a URL.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, deny_unknown_fields)]
pub enum KeySource {
    /// On this machine.
    File {
        /// A JWKS file, read again when it changes.
        file: PathBuf,
        /// Whether its symmetric keys (`oct`) verify tokens, by HS256. Whoever can read such a key can make tokens.
        #[serde(default)]
        hs256: bool,
    },
    /// At a server. Symmetric keys of it are refused.
    Url {
        /// A JWKS URL, `https`, or `http` on loopback.
        url: String,
        /// The certificate authority of its server, PEM; without it the public ones.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ca_file: Option<PathBuf>,
    },
}

impl KeySource {
    /// A file without symmetric keys.
    #[must_use]
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::File { file: path.into(), hs256: false }
    }

    /// A URL whose server has a certificate of a public authority.
    #[must_use]
    pub fn url(url: impl Into<String>) -> Self {
        Self::Url { url: url.into(), ca_file: None }
    }

    /// Whether symmetric keys may verify tokens.
    #[must_use]
    pub fn may_be_symmetric(&self) -> bool {
        matches!(self, Self::File { hs256: true, .. })
    }
}

/// The names of an issuer's claims. A nested claim is written as an RFC 6901
/// pointer: `/kubernetes.io/namespace`.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClaimNames {
    /// The tenant.
    pub tenant: String,
    /// The subject.
    pub subject: String,
    /// Scopes: a text with spaces, or an array of texts.
    pub scopes: String,
    /// Roles: an array of texts, or a text with spaces.
    pub roles: String,
    /// The tenant's tier.
    pub tier: String,
}

impl Default for ClaimNames {
    fn default() -> Self {
        Self {
            tenant: "tenant_id".to_owned(),
            subject: "sub".to_owned(),
            scopes: "scope".to_owned(),
            roles: "roles".to_owned(),
            tier: "tier".to_owned(),
        }
    }
}

fn default_clock_skew_s() -> u64 {
    30
}

fn default_token_cache_entries() -> usize {
    10_000
}

/// The development issuer's `iss`, as `outrigger token mint` writes it.
pub const DEVELOPMENT_ISSUER: &str = "outrigger-dev";
/// The development issuer's `aud`.
pub const DEVELOPMENT_AUDIENCE: &str = "outrigger";

impl Identity {
    /// The one issuer of `outrigger dev`: `outrigger token mint` with its key in `directory`.
    #[must_use]
    pub fn development(directory: &Path) -> Self {
        Self {
            issuers: vec![Issuer {
                name: "dev".to_owned(),
                issuer: DEVELOPMENT_ISSUER.to_owned(),
                audience: DEVELOPMENT_AUDIENCE.to_owned(),
                jwks: KeySource::file(directory.join("jwks.json")),
                claims: ClaimNames::default(),
            }],
            tenant_namespace: None,
            clock_skew_s: default_clock_skew_s(),
            token_cache_entries: default_token_cache_entries(),
        }
    }

    pub(super) fn resolve(&mut self, base: &Path) {
        for issuer in &mut self.issuers {
            match &mut issuer.jwks {
                KeySource::File { file: path, .. } | KeySource::Url { ca_file: Some(path), .. } => {
                    *path = base.join(&*path);
                }
                KeySource::Url { ca_file: None, .. } => {}
            }
        }
    }
}
