//! `push:` in the events policy: the subscriptions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;

use http::Uri;
use schemars::JsonSchema;
use serde::Deserialize;
use uuid::Uuid;

use super::Backoff;
use crate::config::{Findings, SecretSource, pointer_step};
use crate::names::{MAX_NAME_BYTES, Name};
use crate::pools::upstream::{Reach, literal};

/// What the name of a subscription's consumer group begins with. Callers' groups may not.
pub(in crate::primitives::events) const GROUP_PREFIX: &str = "push.";

/// A subscription: events of a topic are sent to an endpoint.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SubscriptionDocument {
    /// The topic, or that of its dead letters.
    pub topic: String,
    /// Only events of these types; of every type where it is left out.
    #[serde(default)]
    #[schemars(length(max = 100))]
    pub types: Vec<String>,
    /// Where they are sent.
    pub target: TargetDocument,
    /// Whose events are sent: `any` tenant's, or those of the tenants that are listed.
    pub tenants: TenantsDocument,
    /// What requests are signed with, each the base64 of 24 to 64 bytes behind `whsec_`. Every one of them signs, the
    /// first one first, so that receivers can go from one to the next. Files are read again within seconds.
    #[schemars(length(min = 1, max = 3))]
    pub secrets: Vec<SecretSource>,
    /// How long the endpoint has to answer, connecting included, in milliseconds.
    #[serde(default = "default_timeout_ms")]
    #[schemars(range(min = 100, max = 60_000))]
    pub timeout_ms: u64,
    /// How many requests it gets at once. The events of a key are sent one after another in any case.
    #[serde(default = "default_concurrency")]
    #[schemars(range(min = 1, max = 64))]
    pub concurrency: NonZeroU16,
    /// How often an event is sent before it goes to the dead letters.
    #[serde(default = "default_max_attempts")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_attempts: u32,
    /// The waits between attempts.
    #[serde(default)]
    pub backoff: BackoffDocument,
    /// Whether its host may have a private, loopback or link-local address, and be spoken to without TLS. Addresses of
    /// a cloud's metadata are refused in any case.
    #[serde(default)]
    pub allow_private: bool,
    /// The certificate authority of its server, PEM; without it the public ones.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
}

/// Where events are sent: a URL, or the application beside this process.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged, deny_unknown_fields)]
pub enum TargetDocument {
    /// Another server.
    Url {
        /// An `https` URL, or `http` with `allow_private`.
        url: String,
    },
    /// The application whose sidecar this is, over plain HTTP on 127.0.0.1.
    App {
        /// Where it listens.
        app: AppDocument,
    },
}

/// Where the application listens.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AppDocument {
    /// Its port on 127.0.0.1.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: NonZeroU16,
    /// The path, from `/`.
    pub path: String,
}

/// Whose events are sent.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum TenantsDocument {
    /// Every tenant's.
    Any(AnyTenant),
    /// Those of these tenants.
    These(#[schemars(length(min = 1, max = 10_000))] Vec<Uuid>),
}

/// The word for every tenant.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AnyTenant {
    /// Every tenant.
    Any,
}

/// The waits between attempts of an event: anything up to `first_ms`, doubled with each failure up to `max_ms`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BackoffDocument {
    /// The longest wait after the first failure, in milliseconds.
    #[serde(default = "default_first_ms")]
    #[schemars(range(min = 100, max = 3_600_000))]
    pub first_ms: u64,
    /// The longest wait of all, in milliseconds; 12 hours at the most.
    #[serde(default = "default_max_ms")]
    #[schemars(range(min = 1000, max = 43_200_000))]
    pub max_ms: u64,
}

impl Default for BackoffDocument {
    fn default() -> Self {
        Self { first_ms: default_first_ms(), max_ms: default_max_ms() }
    }
}

fn default_timeout_ms() -> u64 {
    15_000
}

fn default_concurrency() -> NonZeroU16 {
    NonZeroU16::MIN.saturating_add(3)
}

/// With the waits below, for 15 hours on average and 30 at the most.
fn default_max_attempts() -> u32 {
    16
}

fn default_first_ms() -> u64 {
    5_000
}

fn default_max_ms() -> u64 {
    21_600_000
}

/// A subscription in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// Its name.
    pub name: Name,
    /// The consumer group that it is for each of its tenants.
    pub group: Name,
    /// The topic.
    pub topic: Name,
    /// Only events of these types; of every type where it is empty.
    pub types: Vec<String>,
    /// Where they are sent.
    pub url: Uri,
    /// Which addresses its host may have.
    pub reach: Reach,
    /// The authorities of its server; the public ones where there are none.
    pub ca_file: Option<PathBuf>,
    /// Whose events are sent.
    pub tenants: Tenants,
    /// What requests are signed with.
    pub secrets: Vec<SecretSource>,
    /// How long the endpoint has to answer, in milliseconds.
    pub timeout_ms: u64,
    /// How many requests it gets at once.
    pub concurrency: usize,
    /// How often an event is sent.
    pub max_attempts: u32,
    /// The waits between attempts.
    pub backoff: Backoff,
}

/// Whose events a subscription sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tenants {
    /// Every tenant's.
    Any,
    /// Those of these.
    These(BTreeSet<Uuid>),
}

impl Tenants {
    /// Whether a tenant is among them.
    #[must_use]
    pub fn includes(&self, tenant: Uuid) -> bool {
        match self {
            Self::Any => true,
            Self::These(these) => these.contains(&tenant),
        }
    }
}

/// The subscriptions of a document that fits its schema, by name; what is wrong beyond the schema goes to `findings`.
pub(in crate::primitives::events) fn subscriptions(
    documents: &BTreeMap<String, SubscriptionDocument>,
    is_topic: impl Fn(&Name) -> bool,
    findings: &mut Findings,
) -> Vec<Arc<Subscription>> {
    let subscription = |(text, document): (&String, &SubscriptionDocument)| {
        let mut wrong = Wrong { pointer: format!("/push{}", pointer_step(text)), findings };
        document.in_force(text, &is_topic, &mut wrong).map(Arc::new)
    };
    documents.iter().filter_map(subscription).collect()
}

/// Findings about one subscription.
struct Wrong<'f> {
    pointer: String,
    findings: &'f mut Findings,
}

impl Wrong<'_> {
    fn add(&mut self, field: &str, message: impl Into<String>, expected: impl Into<String>) {
        self.findings.add(format!("{}{field}", self.pointer), message, expected);
    }
}

impl SubscriptionDocument {
    fn in_force(
        &self,
        text: &str,
        is_topic: &impl Fn(&Name) -> bool,
        wrong: &mut Wrong<'_>,
    ) -> Option<Subscription> {
        let names = Name::parse(text).ok().zip(Name::parse(&format!("{GROUP_PREFIX}{text}")).ok());
        if names.is_none() {
            let most = MAX_NAME_BYTES - GROUP_PREFIX.len();
            let expected =
                format!("1 to {most} characters of a-z, 0-9, `_`, `.` and `-`, the first of them a letter");
            wrong.add("", "this is not a subscription's name", expected);
        }
        let topic = Name::parse(&self.topic).ok().filter(is_topic);
        if topic.is_none() {
            let message = format!("no topic is called `{}`", self.topic);
            wrong.add("/topic", message, "one of `topics:` of this document, or its dead letters, NAME.dlq");
        }
        let target = self.target(wrong);
        self.look_at_lists(wrong);
        if self.backoff.max_ms < self.backoff.first_ms {
            wrong.add(
                "/backoff/max_ms",
                "it is less than `first_ms`",
                format!("{} or more", self.backoff.first_ms),
            );
        }
        let ((name, group), topic, (url, reach)) = (names?, topic?, target?);
        Some(Subscription {
            name,
            group,
            topic,
            types: self.types.clone(),
            url,
            reach,
            ca_file: self.ca_file.clone(),
            tenants: match &self.tenants {
                TenantsDocument::Any(AnyTenant::Any) => Tenants::Any,
                TenantsDocument::These(these) => Tenants::These(these.iter().copied().collect()),
            },
            secrets: self.secrets.clone(),
            timeout_ms: self.timeout_ms,
            concurrency: usize::from(self.concurrency.get()),
            max_attempts: self.max_attempts,
            backoff: Backoff { first_ms: self.backoff.first_ms, max_ms: self.backoff.max_ms },
        })
    }

    /// Secrets, authorities, types and tenants.
    fn look_at_lists(&self, wrong: &mut Wrong<'_>) {
        for (index, secret) in self.secrets.iter().enumerate() {
            let field = format!("/secrets/{index}");
            if self.secrets.iter().take(index).any(|earlier| earlier == secret) {
                wrong.add(&field, "the same secret a second time", "each once");
            }
            if matches!(secret, SecretSource::File(path) if !path.is_absolute()) {
                wrong.add(
                    &field,
                    "a policy is not of a folder, so a relative path says nothing",
                    "an absolute path",
                );
            }
        }
        if self.ca_file.as_ref().is_some_and(|path| !path.is_absolute()) {
            wrong.add(
                "/ca_file",
                "a policy is not of a folder, so a relative path says nothing",
                "an absolute path",
            );
        }
        for (index, kind) in self.types.iter().enumerate() {
            let twice = self.types.iter().take(index).any(|earlier| earlier == kind);
            if kind.is_empty() || twice {
                wrong.add(
                    &format!("/types/{index}"),
                    "an empty type, or one a second time",
                    "each type once",
                );
            }
        }
        if let TenantsDocument::These(these) = &self.tenants {
            let mut seen = BTreeSet::new();
            for (index, tenant) in these.iter().enumerate() {
                if !seen.insert(tenant) {
                    wrong.add(&format!("/tenants/{index}"), "the same tenant a second time", "each once");
                }
            }
        }
    }

    /// The URL, and which addresses its host may have.
    fn target(&self, wrong: &mut Wrong<'_>) -> Option<(Uri, Reach)> {
        match &self.target {
            TargetDocument::Url { url } => {
                let reach = if self.allow_private { Reach::Private } else { Reach::Public };
                let uri = self.external(url, reach);
                let told = |(message, expected)| wrong.add("/target/url", message, expected);
                uri.map_err(told).ok().map(|uri| (uri, reach))
            }
            TargetDocument::App { app } => {
                let url = format!("http://{}:{}{}", Ipv4Addr::LOCALHOST, app.port, app.path);
                let uri = url.parse().ok().filter(|_| app.path.starts_with('/') && !app.path.contains('#'));
                if uri.is_none() {
                    wrong.add("/target/app/path", "this is not a path", "a path such as `/events`");
                }
                if self.allow_private || self.ca_file.is_some() {
                    let message = "`allow_private` and `ca_file` are for URLs";
                    wrong.add("/target/app", message, "leave them out: the application is on this machine");
                }
                uri.map(|uri| (uri, Reach::Loopback))
            }
        }
    }

    /// A URL of another server, or what is wrong with it and what would be right.
    fn external(&self, url: &str, reach: Reach) -> Result<Uri, (&'static str, &'static str)> {
        const EXPECTED: &str = "an absolute URL such as `https://example.com/events`";
        let uri: Uri = url.parse().map_err(|_| ("this is not a URL", EXPECTED))?;
        let (Some(authority), Some(host)) = (uri.authority(), uri.host().filter(|host| !host.is_empty()))
        else {
            return Err(("the URL names no host", EXPECTED));
        };
        if authority.as_str().contains('@') {
            return Err((
                "a user in a URL is a credential that is not kept secret",
                "leave it out: requests are signed",
            ));
        }
        if url.contains('#') {
            return Err(("a fragment is never sent", "leave out what follows `#`"));
        }
        match uri.scheme_str() {
            Some("https") => {}
            Some("http") if self.allow_private && self.ca_file.is_none() => {}
            Some("http") => {
                let expected =
                    "`https`; or `http` with `allow_private: true` and no `ca_file`, or `target: {app: …}`";
                return Err(("events would be sent without encryption", expected));
            }
            _ => return Err(("only HTTP is spoken", EXPECTED)),
        }
        if literal(host).is_some_and(|address| !reach.allows(address)) {
            return Err((
                "requests to this address are refused",
                "a public address, or `allow_private: true` for a private one; never a cloud's metadata",
            ));
        }
        Ok(uri)
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
