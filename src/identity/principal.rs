//! Who a verified token speaks for.

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

/// A tenant of the platform: a UUID.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Uuid);

impl TenantId {
    /// The tenant of this UUID. Holding one grants nothing: only a `Permit` does.
    #[must_use]
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// Reads the hyphenated, lower-case form; another spelling of the same UUID is refused, so that a
    /// tenant has one spelling in keys.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let uuid = Uuid::try_parse(text).ok()?;
        let mut buffer = Uuid::encode_buffer();
        (uuid.hyphenated().encode_lower(&mut buffer) == text).then_some(Self(uuid))
    }

    /// The UUID.
    #[must_use]
    pub const fn as_uuid(&self) -> &Uuid {
        &self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.hyphenated(), f)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TenantId({self})")
    }
}

/// The claims of a verified token, as the issuer's claim mapping names them.
///
/// Built only in `identity`, from a token whose every check passed. A clone shares the claims.
#[derive(Debug, Clone)]
pub struct Principal {
    tenant: Option<TenantId>,
    claims: Arc<Claims>,
}

/// The parts of a [`Principal`] beside its tenant, named, for the one place that makes it.
#[derive(Debug)]
pub(in crate::identity) struct Claims {
    pub(in crate::identity) issuer: Arc<str>,
    pub(in crate::identity) subject: Arc<str>,
    pub(in crate::identity) scopes: Box<[Box<str>]>,
    pub(in crate::identity) roles: Box<[Box<str>]>,
    pub(in crate::identity) tier: Option<Box<str>>,
}

impl Principal {
    pub(in crate::identity) fn from_verified(tenant: Option<TenantId>, claims: Claims) -> Self {
        Self { tenant, claims: Arc::new(claims) }
    }

    /// The name that the configuration gives the issuer (not its URL).
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.claims.issuer
    }

    /// The subject claim.
    #[must_use]
    pub fn subject(&self) -> &Arc<str> {
        &self.claims.subject
    }

    /// The tenant claim; a service token has none.
    #[must_use]
    pub fn tenant(&self) -> Option<TenantId> {
        self.tenant
    }

    /// The scopes, in the token's order.
    #[must_use]
    pub fn scopes(&self) -> &[Box<str>] {
        &self.claims.scopes
    }

    /// The roles, in the token's order.
    #[must_use]
    pub fn roles(&self) -> &[Box<str>] {
        &self.claims.roles
    }

    /// The tier claim, where the token has one.
    #[must_use]
    pub fn tier(&self) -> Option<&str> {
        self.claims.tier.as_deref()
    }
}
