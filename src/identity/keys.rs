//! A key set (RFC 7517): which of its keys verify tokens, and by which one algorithm each.

use std::fmt;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Map, Value};

use super::json;
use super::jws::{MAX_KEY_ID_BYTES, Parsed};
use super::refusal::Refusal;

/// The largest key set, in bytes.
pub(super) const MAX_DOCUMENT_BYTES: usize = 256 * 1024;
/// The most keys of a set.
const MAX_KEYS: usize = 64;
/// The shortest RSA modulus, in bits (RFC 7518, 3.3).
const MIN_RSA_BITS: usize = 2048;
/// The longest that the verifier takes, in bits.
const MAX_RSA_BITS: usize = 8192;
/// The shortest HMAC key of HS256, in bytes (RFC 7518, 3.2).
const MIN_HMAC_BYTES: usize = 32;

/// Why a symmetric key is left out.
const SYMMETRIC: &str = "is symmetric (`oct`): such a key is taken from a file with `hs256: true` only";

/// The keys of one issuer that can verify tokens: at least one.
pub(super) struct KeySet {
    keys: Vec<Key>,
    skipped: Vec<Skipped>,
}

/// A key and its one algorithm (RFC 8725, 3.1).
pub(super) struct Key {
    id: Option<Box<str>>,
    algorithm: Algorithm,
    algorithm_name: &'static str,
    decoding: DecodingKey,
}

/// Why a document is no key set. Holds no key material.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum KeySetError {
    #[error("it has more than {MAX_DOCUMENT_BYTES} bytes")]
    TooLong,
    #[error("it must be one JSON object without repeated members, with an array `keys`")]
    Shape,
    #[error("it has more than {MAX_KEYS} keys")]
    TooMany,
    /// Well-formed, and the issuer lists no key: it has taken back all it had.
    #[error("it lists no keys, so that none is in force")]
    Empty,
    #[error("two of its keys have one `kid`")]
    DoubledKeyId,
    /// Well-formed, and what it lists is for other uses, unknown or too weak.
    #[error("none of its keys can verify tokens{}", .0.iter().map(|skipped| format!("; {skipped}")).collect::<String>())]
    NoUsableKey(Vec<Skipped>),
}

/// A key that is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Skipped {
    /// Its place in `keys`.
    index: usize,
    why: &'static str,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {} {}", self.index, self.why)
    }
}

impl KeySet {
    /// Reads a JWKS document. Keys for other purposes, of unknown types or too weak are left out, and symmetric ones
    /// unless `symmetric`: where keys are published, one that signs would let anyone make tokens (RFC 8725, 3.1).
    pub(super) fn parse(document: &[u8], symmetric: bool) -> Result<Self, KeySetError> {
        if document.len() > MAX_DOCUMENT_BYTES {
            return Err(KeySetError::TooLong);
        }
        let set = json::object(document).map_err(|_| KeySetError::Shape)?;
        let Some(Value::Array(values)) = set.get("keys") else { return Err(KeySetError::Shape) };
        if values.is_empty() {
            return Err(KeySetError::Empty);
        }
        if values.len() > MAX_KEYS {
            return Err(KeySetError::TooMany);
        }
        let mut keys: Vec<Key> = Vec::with_capacity(values.len());
        let mut skipped = Vec::new();
        for (index, value) in values.iter().enumerate() {
            let Value::Object(members) = value else { return Err(KeySetError::Shape) };
            match Key::parse(members, symmetric) {
                Ok(key) if key.id.is_some() && keys.iter().any(|held| held.id == key.id) => {
                    return Err(KeySetError::DoubledKeyId);
                }
                Ok(key) => keys.push(key),
                Err(why) => skipped.push(Skipped { index, why }),
            }
        }
        if keys.is_empty() { Err(KeySetError::NoUsableKey(skipped)) } else { Ok(Self { keys, skipped }) }
    }

    /// The keys that were refused because they are symmetric.
    pub(super) fn symmetric(&self) -> impl Iterator<Item = &Skipped> {
        self.skipped.iter().filter(|skipped| skipped.why == SYMMETRIC)
    }

    /// How many keys can verify tokens.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The key of a token's `kid`; without one, the set's only key.
    pub(super) fn find(&self, id: Option<&str>) -> Result<&Key, Refusal> {
        match (id, self.keys.as_slice()) {
            (Some(id), keys) => {
                keys.iter().find(|key| key.id.as_deref() == Some(id)).ok_or(Refusal::UnknownKey)
            }
            (None, [only]) => Ok(only),
            (None, _) => Err(Refusal::NoKeyId),
        }
    }
}

impl Key {
    fn parse(members: &Map<String, Value>, symmetric: bool) -> Result<Self, &'static str> {
        if !symmetric && members.get("kty").and_then(Value::as_str) == Some("oct") {
            return Err(SYMMETRIC);
        }
        let id = match members.get("kid") {
            None => None,
            Some(Value::String(id)) if !id.is_empty() && id.len() <= MAX_KEY_ID_BYTES => {
                Some(Box::from(id.as_str()))
            }
            Some(_) => return Err("has a `kid` that is not a text of 1 to 256 bytes"),
        };
        if members.get("use").is_some_and(|value| value.as_str() != Some("sig")) {
            return Err("is not for signatures (`use`)");
        }
        let verifies = |value: &Value| {
            value.as_array().is_some_and(|ops| ops.iter().any(|op| op.as_str() == Some("verify")))
        };
        if members.get("key_ops").is_some_and(|value| !verifies(value)) {
            return Err("is not for verifying (`key_ops`)");
        }
        let named = match members.get("alg") {
            None => None,
            Some(value) => Some(value.as_str().ok_or("has an `alg` that is not a text")?),
        };
        let (algorithm, decoding) = match members.get("kty").and_then(Value::as_str) {
            Some("RSA") => rsa(members, named)?,
            Some("EC") => elliptic(members, named)?,
            Some("OKP") => edwards(members, named)?,
            Some("oct") => hmac(members, named)?,
            _ => return Err("is of an unknown type (`kty`)"),
        };
        Ok(Self { id, algorithm, algorithm_name: name_of(algorithm), decoding })
    }

    /// The name of its one algorithm, as `alg` writes it.
    pub(super) fn algorithm_name(&self) -> &'static str {
        self.algorithm_name
    }

    /// Checks the signature of a token whose `alg` is this key's.
    pub(super) fn verify(&self, parsed: &Parsed<'_>) -> Result<(), Refusal> {
        let message = parsed.signing_input.as_bytes();
        match jsonwebtoken::crypto::verify(parsed.signature, message, &self.decoding, self.algorithm) {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(Refusal::Signature),
        }
    }
}

const ALGORITHMS: &[(&str, Algorithm)] = &[
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
    ("HS256", Algorithm::HS256),
];

fn name_of(algorithm: Algorithm) -> &'static str {
    ALGORITHMS.iter().find(|(_, held)| *held == algorithm).map_or("", |(name, _)| name)
}

/// The algorithm that the key's `alg` names, or `default`; it must be one of those the key's type has.
fn choose(named: Option<&str>, default: &str, fitting: &[&str]) -> Result<Algorithm, &'static str> {
    let name = named.unwrap_or(default);
    ALGORITHMS
        .iter()
        .find(|(held, _)| *held == name && fitting.contains(held))
        .map(|(_, algorithm)| *algorithm)
        .ok_or("has an `alg` that its type does not have, or that is not taken here")
}

fn bytes(members: &Map<String, Value>, name: &str) -> Result<Vec<u8>, &'static str> {
    let text = members.get(name).and_then(Value::as_str);
    text.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok()).ok_or("has a part that is not base64url")
}

fn rsa(members: &Map<String, Value>, named: Option<&str>) -> Result<(Algorithm, DecodingKey), &'static str> {
    let fitting = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"];
    let algorithm = choose(named, "RS256", &fitting)?;
    let (modulus, exponent) = (bytes(members, "n")?, bytes(members, "e")?);
    let strip = |number: &[u8]| -> Vec<u8> { number.iter().copied().skip_while(|b| *b == 0).collect() };
    let (modulus, exponent) = (strip(&modulus), strip(&exponent));
    let bits = modulus.first().map_or(0, |first| modulus.len() * 8 - first.leading_zeros() as usize);
    if !(MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits) {
        return Err("is an RSA key of less than 2048 or more than 8192 bits");
    }
    let odd = exponent.last().is_some_and(|last| last % 2 == 1);
    if !odd || exponent.len() > 4 || exponent == [1] {
        return Err("has an RSA exponent that is even, 1 or longer than 32 bits");
    }
    Ok((algorithm, DecodingKey::from_rsa_raw_components(&modulus, &exponent)))
}

fn elliptic(
    members: &Map<String, Value>,
    named: Option<&str>,
) -> Result<(Algorithm, DecodingKey), &'static str> {
    let (name, curve, size) = match members.get("crv").and_then(Value::as_str) {
        Some("P-256") => ("ES256", &ECDSA_P256_SHA256_FIXED, 32),
        Some("P-384") => ("ES384", &ECDSA_P384_SHA384_FIXED, 48),
        _ => return Err("is on an unknown curve (`crv`)"),
    };
    let algorithm = choose(named, name, &[name])?;
    let (x, y) = (bytes(members, "x")?, bytes(members, "y")?);
    let point = [&[4][..], &x, &y].concat();
    if x.len() != size || y.len() != size || ParsedPublicKey::new(curve, &point).is_err() {
        return Err("is not a point of its curve");
    }
    Ok((algorithm, DecodingKey::from_ec_der(&point)))
}

fn edwards(
    members: &Map<String, Value>,
    named: Option<&str>,
) -> Result<(Algorithm, DecodingKey), &'static str> {
    if members.get("crv").and_then(Value::as_str) != Some("Ed25519") {
        return Err("is on an unknown curve (`crv`)");
    }
    let algorithm = choose(named, "EdDSA", &["EdDSA"])?;
    let point = bytes(members, "x")?;
    if point.len() != 32 || ParsedPublicKey::new(&ED25519, &point).is_err() {
        return Err("is not a point of its curve");
    }
    Ok((algorithm, DecodingKey::from_ed_der(&point)))
}

fn hmac(members: &Map<String, Value>, named: Option<&str>) -> Result<(Algorithm, DecodingKey), &'static str> {
    let algorithm = choose(named, "HS256", &["HS256"])?;
    let secret = bytes(members, "k")?;
    if secret.len() < MIN_HMAC_BYTES {
        return Err("is an HMAC key of less than 32 bytes");
    }
    Ok((algorithm, DecodingKey::from_secret(&secret)))
}
