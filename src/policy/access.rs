//! The access policy: which principals may do which actions on which names. Pure: no clock, no I/O.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::Deserialize;
use uuid::Uuid;

use super::Action;
use super::fleet::FleetTenants;
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
        self.lets(&Bearer::of(principal), action, name)
    }

    /// Whether some rule lets `principal` do `action` on any name at all: what can be known before the
    /// body is read.
    #[must_use]
    pub fn allows_somewhere(&self, principal: &Principal, action: Action) -> bool {
        self.lets_somewhere(&Bearer::of(principal), action)
    }

    /// Whether `principal`, a service token, may act for `tenant`.
    #[must_use]
    pub fn may_act_for(&self, principal: &Principal, tenant: TenantId) -> bool {
        self.lets_act_for(&Bearer::of(principal), tenant)
    }

    /// Whether `principal` is a service that may name a tenant at all.
    #[must_use]
    pub fn may_act(&self, principal: &Principal) -> bool {
        self.entries(&Bearer::of(principal)).next().is_some()
    }

    /// The tenants that `principal` may act for; none where it is no such service.
    #[must_use]
    pub(super) fn fleet_of(&self, principal: &Principal) -> Option<FleetTenants> {
        self.fleet(&Bearer::of(principal))
    }

    fn fleet(&self, bearer: &Bearer<'_>) -> Option<FleetTenants> {
        let mut these = BTreeSet::new();
        for service in self.entries(bearer) {
            match &service.act_for {
                ActFor::Any => return Some(FleetTenants::Any),
                ActFor::Tenants(tenants) => these.extend(tenants.iter().copied()),
            }
        }
        (!these.is_empty()).then(|| FleetTenants::These(these.into_iter().collect()))
    }

    fn lets(&self, bearer: &Bearer<'_>, action: Action, name: &str) -> bool {
        self.grants(bearer).any(|grant| grant.covers_action(action) && grant.covers_name(name))
    }

    fn lets_somewhere(&self, bearer: &Bearer<'_>, action: Action) -> bool {
        self.grants(bearer).any(|grant| grant.covers_action(action) && !grant.names.is_empty())
    }

    fn lets_act_for(&self, bearer: &Bearer<'_>, tenant: TenantId) -> bool {
        self.entries(bearer).any(|service| match &service.act_for {
            ActFor::Any => true,
            ActFor::Tenants(tenants) => tenants.contains(tenant.as_uuid()),
        })
    }

    /// The services that a bearer is: none for a tenant's token, whatever its subject.
    fn entries(&self, bearer: &Bearer<'_>) -> impl Iterator<Item = &Service> {
        let services = self.document.services.iter().filter(|_| bearer.tenant.is_none());
        services.filter(|service| service.subject == bearer.subject && service.issuer == bearer.issuer)
    }

    fn grants(&self, bearer: &Bearer<'_>) -> impl Iterator<Item = &Grant> {
        self.document.rules.iter().filter(|rule| rule.matches.covers(bearer)).flat_map(|rule| &rule.allow)
    }
}

/// What of a principal the rules look at. Only a verified token makes a principal, so the tables below need this.
struct Bearer<'a> {
    issuer: &'a str,
    subject: &'a str,
    tenant: Option<TenantId>,
    scopes: &'a [Box<str>],
    roles: &'a [Box<str>],
}

impl<'a> Bearer<'a> {
    fn of(principal: &'a Principal) -> Self {
        Self {
            issuer: principal.issuer(),
            subject: principal.subject(),
            tenant: principal.tenant(),
            scopes: principal.scopes(),
            roles: principal.roles(),
        }
    }
}

impl RuleMatch {
    /// Whether a rule with nothing to match was written: it would be about everyone.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.scopes.is_empty() && self.roles.is_empty() && self.subjects.is_empty() && self.issuers.is_empty()
    }

    fn covers(&self, bearer: &Bearer<'_>) -> bool {
        fn any_of(wanted: &[String], held: &[Box<str>]) -> bool {
            wanted.is_empty() || held.iter().any(|have| wanted.iter().any(|want| **want == **have))
        }
        fn one_of(wanted: &[String], held: &str) -> bool {
            wanted.is_empty() || wanted.iter().any(|want| want == held)
        }
        any_of(&self.scopes, bearer.scopes)
            && any_of(&self.roles, bearer.roles)
            && one_of(&self.subjects, bearer.subject)
            && one_of(&self.issuers, bearer.issuer)
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const READ: Action = Action::new("cache", "read");
    const WRITE: Action = Action::new("cache", "write");
    const CHECK: Action = Action::new("ratelimit", "check");
    const ACME: TenantId = TenantId::from_uuid(uuid::uuid!("0190c7a8-3c5e-7f00-8000-0000000000a1"));
    const GLOBEX: TenantId = TenantId::from_uuid(uuid::uuid!("0190c7a8-3c5e-7f00-8000-0000000000b2"));

    fn access(document: serde_json::Value) -> Access {
        Access::new(serde_json::from_value(document).unwrap())
    }

    /// `issuer subject scope,scope role,role`, `-` for none.
    fn with_bearer<T>(text: &str, tenant: Option<TenantId>, ask: impl FnOnce(&Bearer<'_>) -> T) -> T {
        let mut parts = text.split(' ');
        let mut next = || parts.next().unwrap();
        let list = |text: &str| -> Vec<Box<str>> {
            text.split(',').filter(|item| *item != "-").map(Into::into).collect()
        };
        let (issuer, subject, scopes, roles) = (next(), next(), list(next()), list(next()));
        ask(&Bearer { issuer, subject, tenant, scopes: &scopes, roles: &roles })
    }

    #[test]
    fn what_no_rule_allows_is_denied() {
        let access = access(json!({"rules": [
            {"name": "admin", "match": {"scopes": ["admin"]}, "allow": [{"actions": ["*"]}]},
            {"name": "reader", "match": {"scopes": ["read"]}, "allow": [{"actions": ["cache:read"], "names": ["scoring"]}]},
            {"name": "team", "match": {"roles": ["team"]}, "allow": [
                {"actions": ["cache:*"], "names": ["team.*"]}, {"actions": ["ratelimit:check"]}]},
            {"name": "one job", "match": {"subjects": ["job"], "issuers": ["k8s"]}, "allow": [{"actions": ["cache:write"]}]},
            {"name": "both", "match": {"scopes": ["x", "y"], "roles": ["z"]}, "allow": [{"actions": ["cache:read"]}]},
            {"name": "nothing", "match": {"scopes": ["none"]}, "allow": [{"actions": ["cache:read"], "names": []}]},
        ]}));
        for (bearer, action, name, allowed) in [
            ("dev s - -", READ, "scoring", false),
            ("dev s admin -", READ, "scoring", true),
            ("dev s admin -", CHECK, "anything", true),
            ("dev s other,admin -", WRITE, "x", true),
            ("dev s Admin -", READ, "scoring", false),
            ("dev s administrator -", READ, "scoring", false),
            ("dev s - admin", READ, "scoring", false),
            ("dev admin - -", READ, "scoring", false),
            ("dev s read -", READ, "scoring", true),
            ("dev s read -", READ, "scoring2", false),
            ("dev s read -", READ, "profiles", false),
            ("dev s read -", WRITE, "scoring", false),
            ("dev s read -", CHECK, "scoring", false),
            ("dev s - team", WRITE, "team.a", true),
            ("dev s - team", WRITE, "team.", true),
            ("dev s - team", WRITE, "team", false),
            ("dev s - team", WRITE, "steam.a", false),
            ("dev s - team", CHECK, "api", true),
            ("k8s job - -", WRITE, "x", true),
            ("dev job - -", WRITE, "x", false),
            ("k8s jobs - -", WRITE, "x", false),
            ("dev s x z", READ, "x", true),
            ("dev s y other,z", READ, "x", true),
            ("dev s x -", READ, "x", false),
            ("dev s - z", READ, "x", false),
            ("dev s none -", READ, "x", false),
        ] {
            let decided = with_bearer(bearer, Some(ACME), |bearer| access.lets(bearer, action, name));
            assert_eq!(decided, allowed, "{bearer}: {action} on {name}");
        }
        for (bearer, action, allowed) in [
            ("dev s read -", READ, true),
            ("dev s read -", WRITE, false),
            ("dev s none -", READ, false),
            ("dev s - -", READ, false),
        ] {
            let decided = with_bearer(bearer, Some(ACME), |bearer| access.lets_somewhere(bearer, action));
            assert_eq!(decided, allowed, "{bearer}: {action}");
        }
        assert!(!with_bearer("dev s admin -", None, |bearer| Access::default().lets(bearer, READ, "x")));
    }

    #[test]
    fn only_a_listed_service_without_a_tenant_acts_for_one() {
        let access = access(json!({"services": [
            {"subject": "any", "issuer": "k8s", "act_for": "any"},
            {"subject": "one", "issuer": "k8s", "act_for": {"tenants": [ACME.as_uuid()]}},
            {"subject": "none", "issuer": "k8s", "act_for": {"tenants": []}},
        ]}));
        for (bearer, own, tenant, allowed) in [
            ("k8s any - -", None, GLOBEX, true),
            ("k8s any - -", Some(ACME), GLOBEX, false),
            ("k8s any - -", Some(ACME), ACME, false),
            ("dev any - -", None, GLOBEX, false),
            ("k8s other any any", None, GLOBEX, false),
            ("k8s one - -", None, ACME, true),
            ("k8s one - -", None, GLOBEX, false),
            ("k8s none - -", None, ACME, false),
        ] {
            let decided = with_bearer(bearer, own, |bearer| access.lets_act_for(bearer, tenant));
            assert_eq!(decided, allowed, "{bearer} of {own:?} for {tenant}");
        }
        for (bearer, own, service) in [
            ("k8s any - -", None, true),
            ("k8s one - -", None, true),
            ("k8s any - -", Some(ACME), false),
            ("dev any - -", None, false),
            ("k8s other - -", None, false),
        ] {
            let found = with_bearer(bearer, own, |bearer| access.entries(bearer).count());
            assert_eq!(found == 1, service, "{bearer} of {own:?}");
        }
    }
}
