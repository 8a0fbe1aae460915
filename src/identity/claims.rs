//! What a token's claims must be, and the principal that they make.

use std::sync::Arc;

use serde_json::{Map, Value};
use uuid::Uuid;

use super::principal::{Claims, Principal, TenantId};
use super::refusal::Refusal;
use crate::config::{ClaimNames, Issuer};
use crate::names::Name;

/// The longest subject, tenant, scope or role, in bytes.
const MAX_TEXT_BYTES: usize = 256;
/// The most scopes, roles or audiences of a token.
const MAX_TEXTS: usize = 64;
/// 9999-12-31T23:59:59Z: no token needs a later time, and a larger number is a mistake of unit.
const MAX_SECONDS: f64 = 253_402_300_799.0;

/// What an issuer's claims are checked against.
pub(super) struct Rules {
    pub(super) name: Arc<str>,
    pub(super) issuer: String,
    pub(super) audience: String,
    pub(super) names: ClaimNames,
    pub(super) tenant_namespace: Option<Uuid>,
    pub(super) skew_ms: i64,
}

impl Rules {
    pub(super) fn new(issuer: &Issuer, tenant_namespace: Option<Uuid>, clock_skew_s: u64) -> Self {
        Self {
            name: Arc::from(issuer.name.as_str()),
            issuer: issuer.issuer.clone(),
            audience: issuer.audience.clone(),
            names: issuer.claims.clone(),
            tenant_namespace,
            skew_ms: i64::try_from(clock_skew_s).unwrap_or(300).saturating_mul(1000),
        }
    }
}

/// What a check sees.
pub(super) struct View<'v> {
    pub(super) claims: &'v Map<String, Value>,
    pub(super) rules: &'v Rules,
    /// Now, in milliseconds since 1970.
    pub(super) now_ms: i64,
}

/// A check of the claims.
pub(super) struct ClaimCheck {
    /// What `token inspect` calls it.
    pub(super) name: &'static str,
    /// The claim it looks at, as this issuer names it.
    pub(super) claim: fn(&ClaimNames) -> &str,
    /// The check.
    pub(super) run: fn(&View<'_>) -> Result<(), Refusal>,
}

/// Every check of the claims, in order. Claims are looked at after the signature, `iss` apart.
pub(super) const CLAIM_CHECKS: &[ClaimCheck] = &[
    ClaimCheck { name: "expiry", claim: |_| "exp", run: |view| view.expiry().map(drop) },
    ClaimCheck { name: "not before", claim: |_| "nbf", run: |view| view.not_before() },
    ClaimCheck { name: "issued at", claim: |_| "iat", run: |view| view.issued_at() },
    ClaimCheck { name: "audience", claim: |_| "aud", run: |view| view.audience() },
    ClaimCheck { name: "subject", claim: |names| &names.subject, run: |view| view.subject().map(drop) },
    ClaimCheck { name: "tenant", claim: |names| &names.tenant, run: |view| view.tenant().map(drop) },
    ClaimCheck { name: "scopes", claim: |names| &names.scopes, run: |view| view.scopes().map(drop) },
    ClaimCheck { name: "roles", claim: |names| &names.roles, run: |view| view.roles().map(drop) },
    ClaimCheck { name: "tier", claim: |names| &names.tier, run: |view| view.tier().map(drop) },
];

/// A principal, and until when its token is accepted.
pub(super) struct Verified {
    pub(super) principal: Principal,
    /// `exp` and the skew that verification allows, in milliseconds since 1970.
    pub(super) until_ms: i64,
}

/// The `iss` claim, which picks the issuer.
pub(super) fn issuer(claims: &Map<String, Value>) -> Result<&str, Refusal> {
    claims.get("iss").and_then(Value::as_str).filter(|text| !text.is_empty()).ok_or(Refusal::IssuerShape)
}

/// The value of a claim: a member's name, or an RFC 6901 pointer. `Err` where the way to it leads
/// through something that has no members, which must not pass for a claim that is not there.
pub(super) fn claim<'v>(claims: &'v Map<String, Value>, name: &str) -> Result<Option<&'v Value>, ()> {
    let Some(pointer) = name.strip_prefix('/') else { return Ok(claims.get(name)) };
    let mut steps = pointer.split('/').map(|step| step.replace("~1", "/").replace("~0", "~"));
    let mut found = steps.next().and_then(|step| claims.get(&step));
    for step in steps {
        found = match found {
            None => return Ok(None),
            Some(Value::Object(members)) => members.get(&step),
            Some(_) => return Err(()),
        };
    }
    Ok(found)
}

impl<'v> View<'v> {
    /// The principal, once every check passed.
    pub(super) fn verify(&self) -> Result<Verified, Refusal> {
        for check in CLAIM_CHECKS {
            (check.run)(self)?;
        }
        let until_ms = self.expiry()?.saturating_add(self.rules.skew_ms);
        let claims = Claims {
            issuer: Arc::clone(&self.rules.name),
            subject: Arc::from(self.subject()?),
            scopes: self.scopes()?,
            roles: self.roles()?,
            tier: self.tier()?.map(Box::from),
        };
        Ok(Verified { principal: Principal::from_verified(self.tenant()?, claims), until_ms })
    }

    fn get(&self, name: &str, refusal: Refusal) -> Result<Option<&'v Value>, Refusal> {
        claim(self.claims, name).map_err(|()| refusal)
    }

    /// A NumericDate (RFC 7519, 2) in milliseconds.
    fn time_ms(&self, name: &str, refusal: Refusal) -> Result<Option<i64>, Refusal> {
        let Some(value) = self.claims.get(name) else { return Ok(None) };
        match value.as_f64() {
            Some(seconds) if (0.0..=MAX_SECONDS).contains(&seconds) =>
            {
                #[allow(clippy::cast_possible_truncation, reason = "in range by the line above")]
                Ok(Some((seconds * 1000.0) as i64))
            }
            _ => Err(refusal),
        }
    }

    /// `exp`, in milliseconds.
    fn expiry(&self) -> Result<i64, Refusal> {
        let at = self.time_ms("exp", Refusal::ExpiryShape)?.ok_or(Refusal::ExpiryShape)?;
        if self.now_ms < at.saturating_add(self.rules.skew_ms) { Ok(at) } else { Err(Refusal::Expired) }
    }

    fn not_before(&self) -> Result<(), Refusal> {
        match self.time_ms("nbf", Refusal::NotBeforeShape)? {
            Some(at) if at > self.now_ms.saturating_add(self.rules.skew_ms) => Err(Refusal::NotYetValid),
            _ => Ok(()),
        }
    }

    fn issued_at(&self) -> Result<(), Refusal> {
        match self.time_ms("iat", Refusal::IssuedAtShape)? {
            Some(at) if at > self.now_ms.saturating_add(self.rules.skew_ms) => Err(Refusal::IssuedAhead),
            _ => Ok(()),
        }
    }

    fn audience(&self) -> Result<(), Refusal> {
        let found = match self.claims.get("aud") {
            Some(Value::String(one)) => *one == self.rules.audience,
            Some(Value::Array(several)) if several.len() <= MAX_TEXTS => {
                if !several.iter().all(Value::is_string) {
                    return Err(Refusal::AudienceShape);
                }
                several.iter().any(|one| one.as_str() == Some(&self.rules.audience))
            }
            _ => return Err(Refusal::AudienceShape),
        };
        if found { Ok(()) } else { Err(Refusal::WrongAudience) }
    }

    fn subject(&self) -> Result<&'v str, Refusal> {
        let value = self.get(&self.rules.names.subject, Refusal::Subject)?;
        value.and_then(Value::as_str).filter(|text| is_plain(text)).ok_or(Refusal::Subject)
    }

    /// The tenant. A claim that is there and wrong is refused: it must not pass for a service token's.
    fn tenant(&self) -> Result<Option<TenantId>, Refusal> {
        let Some(value) = self.get(&self.rules.names.tenant, Refusal::Tenant)? else { return Ok(None) };
        let text = value.as_str().filter(|text| is_plain(text)).ok_or(Refusal::Tenant)?;
        if let Some(tenant) = TenantId::parse(text) {
            return Ok(Some(tenant));
        }
        // Another spelling of a UUID would be mapped to another tenant than the one it means.
        let namespace = self.rules.tenant_namespace.filter(|_| !is_misspelt_uuid(text));
        let namespace = namespace.ok_or(Refusal::Tenant)?;
        Ok(Some(TenantId::from_uuid(Uuid::new_v5(&namespace, text.as_bytes()))))
    }

    fn scopes(&self) -> Result<Box<[Box<str>]>, Refusal> {
        texts(self.get(&self.rules.names.scopes, Refusal::Scopes)?).ok_or(Refusal::Scopes)
    }

    fn roles(&self) -> Result<Box<[Box<str>]>, Refusal> {
        texts(self.get(&self.rules.names.roles, Refusal::Roles)?).ok_or(Refusal::Roles)
    }

    fn tier(&self) -> Result<Option<&'v str>, Refusal> {
        let Some(value) = self.get(&self.rules.names.tier, Refusal::Tier)? else { return Ok(None) };
        value.as_str().filter(|text| Name::is_valid(text)).map(Some).ok_or(Refusal::Tier)
    }
}

/// 1 to 256 bytes without control characters, and no space around.
fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_TEXT_BYTES
        && text.trim().len() == text.len()
        && !text.chars().any(char::is_control)
}

fn is_misspelt_uuid(text: &str) -> bool {
    text.len() >= 36 && Uuid::try_parse(text).is_ok()
}

/// Texts in an array, or in one text between spaces; none where the claim is not there.
fn texts(value: Option<&Value>) -> Option<Box<[Box<str>]>> {
    let collect = |texts: &mut dyn Iterator<Item = Option<&str>>| {
        let bounded = texts.take(MAX_TEXTS + 1);
        let found: Option<Vec<Box<str>>> =
            bounded.map(|text| text.filter(|text| is_plain(text)).map(Box::from)).collect();
        found.filter(|found| found.len() <= MAX_TEXTS).map(Vec::into_boxed_slice)
    };
    match value {
        None => Some(Box::default()),
        Some(Value::String(text)) => collect(&mut text.split(' ').filter(|part| !part.is_empty()).map(Some)),
        Some(Value::Array(values)) => collect(&mut values.iter().map(Value::as_str)),
        Some(_) => None,
    }
}
