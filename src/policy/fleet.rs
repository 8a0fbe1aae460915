//! What a service does for several tenants at once.

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

use super::Action;
use crate::identity::{Principal, TenantId};
use crate::names::Name;

/// Names what belongs to a service: UUIDv5 of its issuer and subject in this namespace. No tenant has such a UUID.
const SERVICES: Uuid = uuid::uuid!("6b1f6c1e-2f0b-5c57-9e0c-6a1d7c0b9f52");

/// Several tenants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FleetTenants {
    /// Every tenant.
    Any,
    /// These, in order.
    These(Arc<[Uuid]>),
}

impl FleetTenants {
    /// Whether `tenant` is one of them.
    #[must_use]
    pub fn cover(&self, tenant: &Uuid) -> bool {
        match self {
            Self::Any => true,
            Self::These(tenants) => tenants.binary_search(tenant).is_ok(),
        }
    }
}

/// One action on one named resource of each tenant that a service may act for, allowed.
///
/// Another type than [`Permit`](super::Permit): only what is made for several tenants takes it. There is no public constructor and no
/// setter.
#[derive(Clone)]
pub struct FleetPermit {
    tenants: FleetTenants,
    action: Action,
    name: Name,
    owner: TenantId,
}

impl FleetPermit {
    pub(super) fn new(principal: &Principal, tenants: FleetTenants, action: Action, name: &Name) -> Self {
        Self { tenants, action, name: name.clone(), owner: owner(principal) }
    }

    /// Whose data this is about.
    #[must_use]
    pub fn tenants(&self) -> &FleetTenants {
        &self.tenants
    }

    /// The resource it is allowed on, in each of them.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The service itself, as what belongs to it is named: no tenant's.
    #[must_use]
    pub fn owner(&self) -> TenantId {
        self.owner
    }
}

impl fmt::Debug for FleetPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FleetPermit({} on {} for {:?})", self.action, self.name, self.tenants)
    }
}

pub(super) fn owner(principal: &Principal) -> TenantId {
    // An issuer's name has no line break.
    let text = format!("{}\n{}", principal.issuer(), principal.subject());
    TenantId::from_uuid(Uuid::new_v5(&SERVICES, text.as_bytes()))
}
