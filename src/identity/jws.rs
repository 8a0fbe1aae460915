//! The outside of a token: one compact JWS (RFC 7515, 3.1) and what its header may say (RFC 8725).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::json;
use super::refusal::Refusal;

/// The longest token, in bytes.
pub(super) const MAX_TOKEN_BYTES: usize = 8192;
/// The longest `kid`, in bytes.
pub(super) const MAX_KEY_ID_BYTES: usize = 256;

/// A token taken apart; nothing about it is verified.
pub(super) struct Parsed<'t> {
    /// What the signature is over: the first two parts and the dot between.
    pub(super) signing_input: &'t str,
    /// The third part, checked to be base64url.
    pub(super) signature: &'t str,
    /// The header's members.
    pub(super) header: Map<String, Value>,
    /// The claims.
    pub(super) claims: Map<String, Value>,
}

/// Takes a token apart: size, parts, base64url, JSON, no member twice.
pub(super) fn parse(token: &str) -> Result<Parsed<'_>, Refusal> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(Refusal::TooLong);
    }
    let mut parts = token.split('.');
    let (Some(header), Some(claims), Some(signature)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(Refusal::NotCompact);
    };
    match parts.count() {
        0 => {}
        2 => return Err(Refusal::Encrypted),
        _ => return Err(Refusal::NotCompact),
    }
    let decode = |part: &str| match URL_SAFE_NO_PAD.decode(part) {
        Ok(bytes) if !bytes.is_empty() => Ok(bytes),
        _ => Err(Refusal::NotCompact),
    };
    let (header_bytes, claims_bytes) = (decode(header)?, decode(claims)?);
    // `alg: none` has no signature: it is said to be a wrong algorithm, which is what it is.
    if !signature.is_empty() {
        decode(signature)?;
    }
    let signing_input = &token[..header.len() + 1 + claims.len()];
    let header = json::object(&header_bytes).map_err(|_| Refusal::Header)?;
    let claims = json::object(&claims_bytes).map_err(|_| Refusal::Payload)?;
    Ok(Parsed { signing_input, signature, header, claims })
}

/// A check of the header alone.
pub(super) struct HeaderCheck {
    /// What `token inspect` calls it.
    pub(super) name: &'static str,
    /// The members it looks at.
    pub(super) members: &'static [&'static str],
    /// The check.
    pub(super) run: fn(&Map<String, Value>) -> Result<(), Refusal>,
}

/// Every check of the header that needs no key, in order.
pub(super) const HEADER_CHECKS: &[HeaderCheck] = &[
    HeaderCheck { name: "not encrypted", members: &["enc", "zip"], run: not_encrypted },
    HeaderCheck { name: "type", members: &["typ"], run: media_type },
    HeaderCheck { name: "not nested", members: &["cty"], run: not_nested },
    HeaderCheck { name: "no critical extension", members: &["crit", "b64"], run: nothing_critical },
    HeaderCheck {
        name: "no embedded key",
        members: &["jwk", "jku", "x5c", "x5u"],
        run: |header| refuse(header, &["jwk", "jku", "x5c", "x5u"], Refusal::EmbeddedKey),
    },
    HeaderCheck { name: "algorithm", members: &["alg"], run: |header| algorithm(header).map(drop) },
    HeaderCheck { name: "key id", members: &["kid"], run: |header| key_id(header).map(drop) },
];

fn refuse(header: &Map<String, Value>, members: &[&str], refusal: Refusal) -> Result<(), Refusal> {
    if members.iter().any(|member| header.contains_key(*member)) { Err(refusal) } else { Ok(()) }
}

fn not_encrypted(header: &Map<String, Value>) -> Result<(), Refusal> {
    refuse(header, &["enc", "zip"], Refusal::Encrypted)
}

/// A media type without its optional `application/` (RFC 7515, 4.1.9), in lower case.
fn short_media_type(value: &Value) -> Option<String> {
    let text = value.as_str()?.to_ascii_lowercase();
    Some(text.strip_prefix("application/").map_or_else(|| text.clone(), str::to_owned))
}

fn media_type(header: &Map<String, Value>) -> Result<(), Refusal> {
    let Some(value) = header.get("typ") else { return Ok(()) };
    match short_media_type(value).as_deref() {
        Some("jwt" | "at+jwt") => Ok(()),
        _ => Err(Refusal::Type),
    }
}

fn not_nested(header: &Map<String, Value>) -> Result<(), Refusal> {
    let Some(value) = header.get("cty") else { return Ok(()) };
    match short_media_type(value).as_deref() {
        None | Some("jwt") => Err(Refusal::Nested),
        Some(_) => Ok(()),
    }
}

/// No extension is understood here, so that whatever `crit` names has to be refused (RFC 7515, 4.1.11).
fn nothing_critical(header: &Map<String, Value>) -> Result<(), Refusal> {
    let plain = matches!(header.get("b64"), None | Some(Value::Bool(true)));
    if header.contains_key("crit") || !plain { Err(Refusal::Critical) } else { Ok(()) }
}

/// The header's `alg`. It is compared with the key's, never used to choose one.
pub(super) fn algorithm(header: &Map<String, Value>) -> Result<&str, Refusal> {
    match header.get("alg").and_then(Value::as_str) {
        Some(name) if !name.eq_ignore_ascii_case("none") => Ok(name),
        _ => Err(Refusal::Algorithm),
    }
}

/// The header's `kid`.
pub(super) fn key_id(header: &Map<String, Value>) -> Result<Option<&str>, Refusal> {
    match header.get("kid") {
        None => Ok(None),
        Some(Value::String(id)) if !id.is_empty() && id.len() <= MAX_KEY_ID_BYTES => Ok(Some(id)),
        Some(_) => Err(Refusal::KeyIdShape),
    }
}
