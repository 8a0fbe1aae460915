//! Permits of tenants, from tokens that were verified, and events to publish.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderValue;
use uuid::Uuid;

use super::{ACTIONS, Audience, Batch, CONSUME, Data, Event, EventsPolicy, KIND, PUBLISH, READ, Topic};
use crate::config::Identity;
use crate::identity::dev::DevIdentity;
use crate::identity::{Gate, IdentityMetrics, Recent, TenantId};
use crate::names::Name;
use crate::policy::{Action, Caller, Permit, Policies, PolicyLoader, TenantChoice};
use crate::tasks::Tasks;
use crate::telemetry::Registry;

const ACCESS: &str = "kind: access\nrules:\n  - name: all\n    match: {scopes: [tenant:admin]}\n    allow:\n      - actions: ['*']\n";

/// Callers of several tenants.
pub(super) struct Callers {
    gate: Gate,
    signer: DevIdentity,
    policies: Arc<Policies>,
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
        let policies = Arc::new(loader.load(1).unwrap_or_else(|report| panic!("{report}")));
        Self { gate, signer, policies, _directory: directory }
    }

    async fn permit(&self, tenant: u128, action: Action, topic: &str) -> Permit {
        let tenant = TenantId::from_uuid(Uuid::from_u128(tenant));
        let token = self.signer.mint_admin(tenant, "test", Duration::from_secs(60)).unwrap();
        let bearer = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let principal = self
            .gate
            .principal(Some(&bearer), &Recent::default(), deadline)
            .await
            .unwrap_or_else(|_| panic!());
        let caller = Caller::new(principal, TenantChoice::FromToken, Arc::clone(&self.policies)).unwrap();
        caller.permit(action, &Name::parse(topic).unwrap()).unwrap()
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
