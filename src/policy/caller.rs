//! The caller of one request, and the permits it is given.

use std::fmt;
use std::sync::Arc;

use super::fleet::{self, FleetPermit};
use super::{Action, InForce, Policies};
use crate::identity::{Principal, TenantId};
use crate::names::Name;

/// The tier of a caller whose token names none.
pub const DEFAULT_TIER: &str = "free";

/// Why policy said no, in words for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No rule allows the action on the name.
    #[error("no access rule lets this token do `{action}` on `{name}`")]
    Name {
        /// What was asked.
        action: Action,
        /// On what.
        name: Name,
    },
    /// No rule allows the action on anything.
    #[error("no access rule lets this token do `{0}`")]
    Action(Action),
    /// A tenant's token, or a service that policy does not list, named a tenant.
    #[error("`Outrigger-Tenant` is only for service tokens whose access policy says `act_for` this tenant")]
    ActFor,
    /// A service token named no tenant where one is needed.
    #[error("this service token has no tenant claim: name the tenant in `Outrigger-Tenant`")]
    NoTenant,
}

/// What the request says about the tenant beside its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TenantChoice {
    /// No `Outrigger-Tenant` header.
    FromToken,
    /// `Outrigger-Tenant: …`.
    ActFor(TenantId),
}

/// A principal, the tenant it speaks for, and the policies in force when its request came.
pub struct Caller {
    principal: Arc<Principal>,
    tenant: Option<TenantId>,
    policies: InForce,
}

impl Caller {
    /// The caller of a request, once its choice of tenant is allowed.
    pub fn new(
        principal: Arc<Principal>,
        choice: TenantChoice,
        policies: impl Into<InForce>,
    ) -> Result<Self, Denied> {
        let policies = policies.into();
        let tenant = match choice {
            TenantChoice::FromToken => principal.tenant(),
            TenantChoice::ActFor(tenant) if policies.access().may_act_for(&principal, tenant) => Some(tenant),
            TenantChoice::ActFor(_) => return Err(Denied::ActFor),
        };
        Ok(Self { principal, tenant, policies })
    }

    /// Whether `action` can be allowed on any name, asked before the body is read; and whose call it is: the tenant's, or
    /// where the route `serves_fleets` and no tenant is named, the service's own.
    pub fn check_verb(&self, action: Action, serves_fleets: bool) -> Result<TenantId, Denied> {
        let tenant = match self.tenant {
            Some(tenant) => tenant,
            None if serves_fleets && self.policies.access().may_act(&self.principal) => {
                fleet::owner(&self.principal)
            }
            None => return Err(Denied::NoTenant),
        };
        if self.policies.access().allows_somewhere(&self.principal, action) {
            Ok(tenant)
        } else {
            Err(Denied::Action(action))
        }
    }

    /// The permit to do `action` on `name` in this caller's tenant.
    pub fn permit(&self, action: Action, name: &Name) -> Result<Permit, Denied> {
        let tenant = self.tenant.ok_or(Denied::NoTenant)?;
        if !self.policies.access().allows(&self.principal, action, name.as_str()) {
            return Err(Denied::Name { action, name: name.clone() });
        }
        Ok(Permit { tenant, action, name: name.clone(), principal: Arc::clone(&self.principal) })
    }

    /// The permit to do `action` on `name` in every tenant that this service may act for. None where the caller speaks for
    /// one tenant: its token's, or the one that it named.
    pub fn fleet_permit(&self, action: Action, name: &Name) -> Result<Option<FleetPermit>, Denied> {
        if self.tenant.is_some() {
            return Ok(None);
        }
        let access = self.policies.access();
        let tenants = access.fleet_of(&self.principal).ok_or(Denied::NoTenant)?;
        if !access.allows(&self.principal, action, name.as_str()) {
            return Err(Denied::Name { action, name: name.clone() });
        }
        Ok(Some(FleetPermit::new(&self.principal, tenants, action, name)))
    }

    /// The policies in force for this request.
    #[must_use]
    pub fn policies(&self) -> &Policies {
        &self.policies
    }
}

/// One action on one named resource of one tenant, allowed.
///
/// A primitive takes the tenant and the name from it, so that it cannot be given others. There is no
/// public constructor and no setter.
#[derive(Clone)]
pub struct Permit {
    tenant: TenantId,
    action: Action,
    name: Name,
    principal: Arc<Principal>,
}

impl Permit {
    /// The tenant whose data this is about.
    #[must_use]
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// What is allowed.
    #[must_use]
    pub fn action(&self) -> Action {
        self.action
    }

    /// The resource it is allowed on.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The subject that acts, for audit.
    #[must_use]
    pub fn subject(&self) -> &str {
        self.principal.subject()
    }

    /// The tenant's tier, from the claim; `free` without one.
    #[must_use]
    pub fn tier(&self) -> &str {
        self.principal.tier().unwrap_or(DEFAULT_TIER)
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Permit({} on {} for {})", self.action, self.name, self.tenant)
    }
}
