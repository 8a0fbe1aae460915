//! Who reads: a tenant its own events, or a service those of its tenants.

use std::sync::Arc;

use uuid::Uuid;

use crate::names::Name;
use crate::policy::{FleetPermit, FleetTenants, Permit};
use crate::store::Reach;

/// A reader or a consumer, permitted.
#[derive(Debug, Clone)]
pub enum Audience {
    /// A tenant.
    Tenant(Permit),
    /// A service, for several tenants at once.
    Fleet(FleetPermit),
    /// A subscription of policy, for one of its tenants: nobody calls.
    Subscription(Subscriber),
}

/// What a subscription of policy consumes. Made by `push` alone.
#[derive(Debug, Clone)]
pub struct Subscriber {
    pub(super) tenant: Uuid,
    pub(super) topic: Name,
}

/// Whose events are looked at.
#[derive(Debug, Clone)]
pub(super) enum Sees {
    /// One tenant's.
    One(Uuid),
    /// Every tenant's.
    Every,
    /// These tenants'.
    These(Arc<[Uuid]>),
}

impl Audience {
    /// The topic.
    #[must_use]
    pub fn topic(&self) -> &Name {
        match self {
            Self::Tenant(permit) => permit.name(),
            Self::Fleet(permit) => permit.name(),
            Self::Subscription(subscriber) => &subscriber.topic,
        }
    }

    /// Whose its groups and cursors are: the tenant's, or the service's own.
    #[must_use]
    pub fn owner(&self) -> Uuid {
        match self {
            Self::Tenant(permit) => *permit.tenant().as_uuid(),
            Self::Fleet(permit) => *permit.owner().as_uuid(),
            Self::Subscription(subscriber) => subscriber.tenant,
        }
    }

    /// What a group of this name is kept as. A service's is of a kind that no tenant's can be, whatever UUID a caller
    /// names: no name begins with `~`.
    pub(super) fn group(&self, name: &Name) -> String {
        match self {
            Self::Tenant(_) | Self::Subscription(_) => name.to_string(),
            Self::Fleet(_) => format!("~{name}"),
        }
    }

    /// What its cursors are bound to beside its owner; a service's are of a kind of their own too.
    #[must_use]
    pub fn cursor_scope(&self) -> String {
        match self {
            Self::Tenant(_) | Self::Subscription(_) => self.topic().to_string(),
            Self::Fleet(_) => format!("~{}", self.topic()),
        }
    }

    pub(super) fn sees(&self) -> Sees {
        match self {
            Self::Tenant(permit) => Sees::One(*permit.tenant().as_uuid()),
            Self::Fleet(permit) => match permit.tenants() {
                FleetTenants::Any => Sees::Every,
                FleetTenants::These(tenants) => Sees::These(Arc::clone(tenants)),
            },
            Self::Subscription(subscriber) => Sees::One(subscriber.tenant),
        }
    }
}

impl Sees {
    /// Whether it sees this tenant's.
    pub(super) fn covers(&self, tenant: &Uuid) -> bool {
        match self {
            Self::One(own) => own == tenant,
            Self::Every => true,
            Self::These(tenants) => tenants.binary_search(tenant).is_ok(),
        }
    }
}

impl From<&Audience> for Reach {
    fn from(audience: &Audience) -> Self {
        match audience {
            Audience::Tenant(permit) => Self::from(permit),
            Audience::Fleet(permit) => Self::from(permit),
            Audience::Subscription(subscriber) => Self::background(subscriber.tenant),
        }
    }
}
