//! What `outrigger token inspect` and `outrigger check` say: every check of a token, and whether keys can be had.

use serde_json::{Map, Value};

use super::claims::{self, CLAIM_CHECKS, Rules, View};
use super::fetch::Source;
use super::gate::{check_algorithm, now_ms, source_error};
use super::jwks::{Timing, read_once};
use super::jws::{self, HEADER_CHECKS, Parsed};
use super::keys::{Key, KeySet};
use super::refusal::Refusal;
use super::{Principal, StartError};
use crate::config;

/// How many keys of an issuer can verify tokens now and which are refused as symmetric; or why none can.
pub async fn probe(issuer: &config::Issuer) -> Result<(usize, Vec<String>), String> {
    let source = Source::new(&issuer.jwks).map_err(|error| error.to_string())?;
    let symmetric = issuer.jwks.may_be_symmetric();
    match read_once(&source, &Timing::of(&issuer.jwks), symmetric).await {
        Ok((_, keys)) => Ok((keys.len(), keys.symmetric().map(ToString::to_string).collect())),
        Err(error) => Err(format!("{}: {error}", source.describe())),
    }
}

/// A check of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What is checked.
    pub name: &'static str,
    /// Whether it passed.
    pub passed: bool,
    /// What was found, or what would be right.
    pub detail: String,
}

/// Every check of a token, and whom it would let in.
#[derive(Debug)]
pub struct Explanation {
    checks: Vec<Check>,
    principal: Option<Principal>,
}

impl Explanation {
    /// Every check, in the order of verification.
    #[must_use]
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// Whom the token would let in; none where a check failed.
    #[must_use]
    pub fn principal(&self) -> Option<&Principal> {
        self.principal.as_ref()
    }
}

/// Explains tokens with key sets that were read once. It decides as [`super::Gate`] does, by the same checks.
pub struct Inspector {
    issuers: Vec<(Rules, Result<KeySet, String>)>,
}

impl Inspector {
    /// Reads every issuer's key set; one that cannot be read fails the check of the key.
    pub async fn load(identity: &config::Identity) -> Result<Self, StartError> {
        let mut issuers = Vec::with_capacity(identity.issuers.len());
        for issuer in &identity.issuers {
            let source = Source::new(&issuer.jwks).map_err(|error| source_error(issuer, &error))?;
            let keys =
                match read_once(&source, &Timing::of(&issuer.jwks), issuer.jwks.may_be_symmetric()).await {
                    Ok((_, keys)) => Ok(keys),
                    Err(error) => Err(format!("{}: {error}", source.describe())),
                };
            issuers.push((Rules::new(issuer, identity.tenant_namespace, identity.clock_skew_s), keys));
        }
        Ok(Self { issuers })
    }

    /// With these documents as the issuers' key sets, in their order; reads nothing.
    #[must_use]
    pub fn with_key_sets(identity: &config::Identity, documents: &[&[u8]]) -> Self {
        let issuers = identity.issuers.iter().zip(documents).map(|(issuer, document)| {
            let keys = KeySet::parse(document, issuer.jwks.may_be_symmetric());
            let keys = keys.map_err(|error| error.to_string());
            (Rules::new(issuer, identity.tenant_namespace, identity.clock_skew_s), keys)
        });
        Self { issuers: issuers.collect() }
    }

    /// Every check of `token` as of now.
    #[must_use]
    pub fn explain(&self, token: &str) -> Explanation {
        let mut report = Report(Vec::new());
        let parsed = match jws::parse(token) {
            Ok(parsed) => parsed,
            Err(refusal) => {
                report.add("form", Err(refusal), String::new());
                return Explanation { checks: report.0, principal: None };
            }
        };
        let form = format!("{} bytes, {} claims", token.len(), parsed.claims.len());
        report.add("form", Ok(()), form);
        for check in HEADER_CHECKS {
            report.add(check.name, (check.run)(&parsed.header), members(&parsed.header, check.members));
        }
        let issuer = claims::issuer(&parsed.claims).and_then(|iss| {
            let mut issuers = self.issuers.iter();
            issuers.find(|(rules, _)| rules.issuer == iss).ok_or(Refusal::UnknownIssuer)
        });
        match issuer {
            Ok((rules, keys)) => {
                report.add("issuer", Ok(()), format!("`{}`, here `{}`", rules.issuer, rules.name));
                let principal = report.with_issuer(&parsed, rules, keys);
                Explanation { checks: report.0, principal }
            }
            Err(refusal) => {
                report.add("issuer", Err(refusal), String::new());
                Explanation { checks: report.0, principal: None }
            }
        }
    }
}

struct Report(Vec<Check>);

impl Report {
    fn add(&mut self, name: &'static str, result: Result<(), Refusal>, found: String) {
        let detail = match result {
            Ok(()) => found,
            Err(refusal) if found.is_empty() => refusal.text().to_owned(),
            Err(refusal) => format!("{}; found {found}", refusal.text()),
        };
        self.0.push(Check { name, passed: result.is_ok(), detail });
    }

    fn with_issuer(
        &mut self,
        parsed: &Parsed<'_>,
        rules: &Rules,
        keys: &Result<KeySet, String>,
    ) -> Option<Principal> {
        match keys {
            Ok(keys) => match jws::key_id(&parsed.header).and_then(|id| keys.find(id)) {
                Ok(key) => self.with_key(parsed, key),
                Err(refusal) => self.add("key", Err(refusal), String::new()),
            },
            Err(reason) => self.0.push(Check { name: "key", passed: false, detail: reason.clone() }),
        }
        let view = View { claims: &parsed.claims, rules, now_ms: now_ms() };
        for check in CLAIM_CHECKS {
            let name = (check.claim)(&rules.names);
            let found = match claims::claim(&parsed.claims, name) {
                Ok(Some(value)) => format!("`{name}`: {}", readable(name, value)),
                Ok(None) | Err(()) => format!("no `{name}`"),
            };
            self.add(check.name, (check.run)(&view), found);
        }
        let passed = self.0.iter().all(|check| check.passed);
        if passed { view.verify().ok().map(|verified| verified.principal) } else { None }
    }

    fn with_key(&mut self, parsed: &Parsed<'_>, key: &Key) {
        self.add("key", Ok(()), members(&parsed.header, &["kid"]));
        self.add("key's algorithm", check_algorithm(parsed, key), key.algorithm_name().to_owned());
        self.add("signature", key.verify(parsed), String::new());
    }
}

fn members(object: &Map<String, Value>, names: &[&str]) -> String {
    let found = names.iter().filter_map(|name| object.get(*name).map(|value| format!("`{name}`: {value}")));
    let found: Vec<String> = found.collect();
    if found.is_empty() { format!("no `{}`", names.join("`, `")) } else { found.join(", ") }
}

/// A claim's value; a time is also given as one.
fn readable(name: &str, value: &Value) -> String {
    let time = matches!(name, "exp" | "nbf" | "iat").then(|| value.as_i64()).flatten();
    match time.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok()) {
        Some(time) => format!("{value} ({time})"),
        None => value.to_string(),
    }
}
