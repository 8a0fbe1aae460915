//! Permits of tenants, from tokens that were verified, and events to publish.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderValue;
use uuid::Uuid;

use super::{ACTIONS, Audience, Batch, CONSUME, Data, Event, EventsPolicy, KIND, PUBLISH, READ, Topic};
use crate::config::Identity;
use crate::identity::dev::{ADMIN_SCOPE, DevIdentity, TokenRequest};
use crate::identity::{Gate, IdentityMetrics, Recent, TenantId};
use crate::names::Name;
use crate::policy::{Action, Caller, Permit, Policies, PolicyLoader, PolicySource, TenantChoice};
use crate::tasks::Tasks;
use crate::telemetry::Registry;

const ACCESS: &str = "kind: access\nrules:\n  - name: all\n    match: {scopes: [tenant:admin]}\n    allow:\n      - actions: ['*']\n\
    services:\n  - {subject: every, issuer: dev, act_for: any}\n  - {subject: two, issuer: dev, act_for: {tenants: \
    [00000000-0000-0000-0000-000000000001, 00000000-0000-0000-0000-000000000002]}}\n";

/// Callers of several tenants.
pub(super) struct Callers {
    gate: Gate,
    signer: DevIdentity,
    policies: Arc<Policies>,
    /// The same policies, as a process has them.
    pub(super) source: PolicySource,
    _directory: tempfile::TempDir,
}

impl Callers {
    /// Under an events policy with these topics, as YAML below `topics:`.
    pub(super) fn new(topics: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let signer = DevIdentity::open_or_create(&directory.path().join("identity")).unwrap();
        let identity = Identity::development(&directory.path().join("identity"));
        let metrics = IdentityMetrics::new(&Registry::default()).unwrap();
        let gate = Gate::new(&identity, &metrics, &Tasks::default()).unwrap();
        let policies = directory.path().join("policies");
        std::fs::create_dir(&policies).unwrap();
        std::fs::write(policies.join("access.yaml"), ACCESS).unwrap();
        let events = format!("kind: events\ntopics:\n{topics}");
        std::fs::write(policies.join("events.yaml"), events).unwrap();
        let loader = PolicyLoader::new(policies, vec![&KIND], ACTIONS.to_vec());
        let load = || loader.load(1).unwrap_or_else(|report| panic!("{report}"));
        let (policies, source) = (Arc::new(load()), PolicySource::new(load()));
        Self { gate, signer, policies, source, _directory: directory }
    }

    async fn caller(&self, tenant: Option<u128>, subject: &str) -> Caller {
        let tenant = tenant.map(|tenant| TenantId::from_uuid(Uuid::from_u128(tenant)));
        let (scopes, ttl) = ([ADMIN_SCOPE.to_owned()], Duration::from_secs(600));
        let request = TokenRequest { tenant, subject, scopes: &scopes, roles: &[], tier: "free", ttl };
        let token = self.signer.mint(&request).unwrap();
        let bearer = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let principal = self
            .gate
            .principal(Some(&bearer), &Recent::default(), deadline)
            .await
            .unwrap_or_else(|_| panic!());
        Caller::new(principal, TenantChoice::FromToken, Arc::clone(&self.policies)).unwrap()
    }

    async fn permit(&self, tenant: u128, action: Action, topic: &str) -> Permit {
        let caller = self.caller(Some(tenant), "test").await;
        caller.permit(action, &Name::parse(topic).unwrap()).unwrap()
    }

    /// A service: `every` may act for every tenant, `two` for the first two.
    pub(super) async fn service(&self, subject: &str, action: Action, topic: &str) -> Audience {
        let caller = self.caller(None, subject).await;
        Audience::Fleet(caller.fleet_permit(action, &Name::parse(topic).unwrap()).unwrap().unwrap())
    }

    pub(super) async fn publisher(&self, tenant: u128, topic: &str) -> Permit {
        self.permit(tenant, PUBLISH, topic).await
    }

    pub(super) async fn reader(&self, tenant: u128, topic: &str) -> Audience {
        Audience::Tenant(self.permit(tenant, READ, topic).await)
    }

    pub(super) async fn consumer(&self, tenant: u128, topic: &str) -> Audience {
        Audience::Tenant(self.permit(tenant, CONSUME, topic).await)
    }

    pub(super) fn topic(&self, name: &str) -> Arc<Topic> {
        let policy = self.policies.get::<EventsPolicy>().unwrap();
        Arc::clone(policy.topic(&Name::parse(name).unwrap()).unwrap())
    }

    /// A batch of one tenant's events.
    pub(super) async fn batch(&self, tenant: u128, topic: &str, events: Vec<Event>) -> Batch {
        Batch::new(&self.publisher(tenant, topic).await, self.topic(topic), events)
    }
}

/// An event with this id and key, whose data is its id.
pub(super) fn event(id: &str, key: &str) -> Event {
    Event {
        id: id.into(),
        source: "/test".into(),
        kind: "made".into(),
        key: key.into(),
        id_is_ours: false,
        attributes: Bytes::from(format!("{{\"specversion\":\"1.0\",\"id\":\"{id}\"}}")),
        data: Data::Text(Bytes::from(id.to_owned())),
    }
}
