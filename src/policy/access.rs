//! The access policy: which principals may do which actions on which names. Pure: no clock, no I/O.

use schemars::JsonSchema;
use serde::Deserialize;
use uuid::Uuid;

use super::Action;
use crate::identity::{Principal, TenantId};

/// The `access` policy document. What no rule allows is denied.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AccessDocument {
    /// Each rule allows; none denies. Their order does not matter.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// Workloads without a tenant of their own that may name one in `Outrigger-Tenant`.
    #[serde(default)]
    pub services: Vec<Service>,
}

/// Who may do what.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What the rule is called in explanations.
    pub name: String,
    /// Which principals it is about. Every field given must match.
    #[serde(rename = "match")]
    pub matches: RuleMatch,
    /// What they may do.
    pub allow: Vec<Grant>,
}

/// Which principals a rule is about; an empty field matches everyone, and one field at least is given.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleMatch {
    /// The token has one of these scopes.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// The token has one of these roles.
    #[serde(default)]
    pub roles: Vec<String>,
    /// The token's subject is one of these, exactly.
    #[serde(default)]
    pub subjects: Vec<String>,
    /// The token comes from one of these issuers, by their name in `proxy.yaml`.
    #[serde(default)]
    pub issuers: Vec<String>,
}

/// Actions on names.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// `primitive:verb`, `primitive:*` or `*`.
    pub actions: Vec<String>,
    /// Exact names, prefixes ending in `*`, or `*`.
    #[serde(default = "every_name")]
    pub names: Vec<String>,
}

fn every_name() -> Vec<String> {
    vec!["*".to_owned()]
}

/// A workload that acts for tenants.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// The token's subject, exactly.
    pub subject: String,
    /// The issuer's name in `proxy.yaml`.
    pub issuer: String,
    /// The tenants it may name.
    pub act_for: ActFor,
}

/// The tenants that a service may act for.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActFor {
    /// Every tenant.
    Any,
    /// These tenants.
    Tenants(Vec<Uuid>),
}

/// The access policy, ready to be asked.
#[derive(Debug, Clone, Default)]
pub struct Access {
    document: AccessDocument,
}

impl Access {
    /// The policy of a validated document.
    #[must_use]
    pub fn new(document: AccessDocument) -> Self {
        Self { document }
    }

    /// Whether some rule lets `principal` do `action` on `name`.
    #[must_use]
    pub fn allows(&self, principal: &Principal, action: Action, name: &str) -> bool {
        self.grants(principal).any(|grant| grant.covers_action(action) && grant.covers_name(name))
    }

    /// Whether some rule lets `principal` do `action` on any name at all: what can be known before the
    /// body is read.
    #[must_use]
    pub fn allows_somewhere(&self, principal: &Principal, action: Action) -> bool {
        self.grants(principal).any(|grant| grant.covers_action(action) && !grant.names.is_empty())
    }

    /// Whether `principal`, a service token, may act for `tenant`.
    #[must_use]
    pub fn may_act_for(&self, principal: &Principal, tenant: TenantId) -> bool {
        principal.tenant().is_none()
            && self.document.services.iter().any(|service| {
                service.subject == **principal.subject()
                    && service.issuer == principal.issuer()
                    && match &service.act_for {
                        ActFor::Any => true,
                        ActFor::Tenants(tenants) => tenants.contains(tenant.as_uuid()),
                    }
            })
    }

    fn grants<'a>(&'a self, principal: &'a Principal) -> impl Iterator<Item = &'a Grant> {
        self.document.rules.iter().filter(|rule| rule.matches.covers(principal)).flat_map(|rule| &rule.allow)
    }
}

impl RuleMatch {
    /// Whether a rule with nothing to match was written: it would be about everyone.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.scopes.is_empty() && self.roles.is_empty() && self.subjects.is_empty() && self.issuers.is_empty()
    }

    fn covers(&self, principal: &Principal) -> bool {
        fn any_of(wanted: &[String], held: &[Box<str>]) -> bool {
            wanted.is_empty() || held.iter().any(|have| wanted.iter().any(|want| **want == **have))
        }
        fn one_of(wanted: &[String], held: &str) -> bool {
            wanted.is_empty() || wanted.iter().any(|want| want == held)
        }
        any_of(&self.scopes, principal.scopes())
            && any_of(&self.roles, principal.roles())
            && one_of(&self.subjects, principal.subject())
            && one_of(&self.issuers, principal.issuer())
    }
}

impl Grant {
    fn covers_action(&self, action: Action) -> bool {
        self.actions.iter().any(|pattern| {
            pattern == "*"
                || pattern.split_once(':').is_some_and(|(primitive, verb)| {
                    primitive == action.primitive && (verb == "*" || verb == action.verb)
                })
        })
    }

    fn covers_name(&self, name: &str) -> bool {
        self.names.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => pattern == name,
        })
    }
}
