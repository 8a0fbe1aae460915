//! STUB: the development issuer.
use std::path::Path;
use std::time::Duration;

use super::TenantId;

/// A tenant that `outrigger dev` prints a token for.
pub struct DemoTenant {
    /// What the printed lines call it.
    pub name: &'static str,
    /// Its id.
    pub id: TenantId,
}

/// The tenants of `outrigger dev`.
pub const DEMO_TENANTS: [DemoTenant; 2] = [
    DemoTenant { name: "acme", id: TenantId::from_uuid(uuid::uuid!("0190c7a8-3c5e-7f00-8000-0000000000a1")) },
    DemoTenant {
        name: "globex",
        id: TenantId::from_uuid(uuid::uuid!("0190c7a8-3c5e-7f00-8000-0000000000b2")),
    },
];

/// Why the development key cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("stub")]
pub struct DevError;

/// A signing key in a directory, and the tokens it signs.
pub struct DevIdentity;

impl DevIdentity {
    /// STUB
    pub fn open_or_create(_: &Path) -> Result<Self, DevError> {
        Ok(Self)
    }

    /// STUB
    pub fn mint_admin(&self, _: TenantId, _: &str, _: Duration) -> Result<String, DevError> {
        Ok(String::new())
    }
}
