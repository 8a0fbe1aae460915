//! What the tests of this module share: signers, a gate on a key file, tokens.

mod keysets;
mod tokens;
mod urls;

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair as _, RsaKeyPair, RsaPublicKeyComponents,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

use super::gate::now_ms;
use super::jwks::Timing;
use super::refusal::Refusal;
use super::{Gate, IdentityMetrics, Principal, Recent};
use crate::config::{self, ClaimNames, Identity, KeySource};
use crate::tasks::Tasks;
use crate::telemetry::Registry;

pub(super) const TENANT: &str = "0190c7a8-3c5e-7f00-8000-0000000000a1";
pub(super) const ISSUER: &str = "https://issuer.example";

pub(super) fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A key pair: the private half signs, the public half is a JWK.
pub(super) struct Signer {
    pub(super) algorithm: Algorithm,
    pub(super) key: EncodingKey,
    pub(super) jwk: Value,
}

impl Signer {
    pub(super) fn es256(kid: &str) -> Self {
        Self::elliptic(kid, Algorithm::ES256, "P-256", &ECDSA_P256_SHA256_FIXED_SIGNING)
    }

    pub(super) fn es384(kid: &str) -> Self {
        Self::elliptic(kid, Algorithm::ES384, "P-384", &ECDSA_P384_SHA384_FIXED_SIGNING)
    }

    fn elliptic(
        kid: &str,
        algorithm: Algorithm,
        curve: &str,
        signing: &'static EcdsaSigningAlgorithm,
    ) -> Self {
        let pair = EcdsaKeyPair::generate(signing).unwrap();
        let (x, y) = pair.public_key().as_ref()[1..].split_at((pair.public_key().as_ref().len() - 1) / 2);
        let jwk = json!({"kty": "EC", "crv": curve, "x": encode(x), "y": encode(y), "kid": kid});
        Self { algorithm, key: EncodingKey::from_ec_der(pair.to_pkcs8v1().unwrap().as_ref()), jwk }
    }

    pub(super) fn rsa(kid: &str, algorithm: Algorithm, name: &str) -> Self {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let public = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public_key());
        let jwk = json!({"kty": "RSA", "n": encode(&public.n), "e": encode(&public.e), "kid": kid, "alg": name, "use": "sig"});
        let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
        let body = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n");
        Self { algorithm, key: EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap(), jwk }
    }

    pub(super) fn ed25519(kid: &str) -> Self {
        let pair = Ed25519KeyPair::generate().unwrap();
        let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": encode(pair.public_key()), "kid": kid});
        let key = EncodingKey::from_ed_der(pair.to_pkcs8v1().unwrap().as_ref());
        Self { algorithm: Algorithm::EdDSA, key, jwk }
    }

    pub(super) fn hs256(kid: &str, secret: &[u8]) -> Self {
        let jwk = json!({"kty": "oct", "k": encode(secret), "kid": kid, "alg": "HS256"});
        Self { algorithm: Algorithm::HS256, key: EncodingKey::from_secret(secret), jwk }
    }

    /// Signs whatever these texts are.
    pub(super) fn sign(&self, header: &[u8], claims: &[u8]) -> String {
        let message = format!("{}.{}", encode(header), encode(claims));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &self.key, self.algorithm).unwrap();
        format!("{message}.{signature}")
    }

    pub(super) fn token(&self, header: &Value, claims: &Value) -> String {
        self.sign(header.to_string().as_bytes(), claims.to_string().as_bytes())
    }

    /// A good token.
    pub(super) fn good(&self) -> String {
        self.token(&json!({"alg": name(self.algorithm), "kid": self.jwk["kid"]}), &claims())
    }
}

pub(super) fn name(algorithm: Algorithm) -> String {
    format!("{algorithm:?}")
}

pub(super) fn now_s() -> i64 {
    now_ms() / 1000
}

/// Good claims.
pub(super) fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": "outrigger", "sub": "somebody", "tenant_id": TENANT,
        "scope": "cache:read cache:write", "roles": ["reader"], "tier": "pro", "exp": now_s() + 600,
        "iat": now_s(), "nbf": now_s(),
    })
}

pub(super) fn key_set(signers: &[&Signer]) -> Vec<u8> {
    let keys: Vec<&Value> = signers.iter().map(|signer| &signer.jwk).collect();
    json!({ "keys": keys }).to_string().into_bytes()
}

pub(super) fn identity(source: KeySource) -> Identity {
    let mut identity = Identity::development(std::path::Path::new("/"));
    identity.issuers = vec![config::Issuer {
        name: "users".to_owned(),
        issuer: ISSUER.to_owned(),
        audience: "outrigger".to_owned(),
        jwks: source,
        claims: ClaimNames::default(),
    }];
    identity
}

/// A gate, and what it runs on.
pub(super) struct Bench {
    pub(super) gate: Arc<Gate>,
    pub(super) registry: Registry,
    _stopping: tokio_util::sync::DropGuard,
}

impl Bench {
    pub(super) fn new(identity: &Identity, timing: Option<Timing>) -> Self {
        let (registry, tasks) = (Registry::default(), Tasks::default());
        let metrics = IdentityMetrics::new(&registry).unwrap();
        let gate =
            Gate::with_timing(identity, &metrics, &tasks, |source| timing.unwrap_or(Timing::of(source)));
        let _stopping = tasks.stopping().clone().drop_guard();
        Self { gate: Arc::new(gate.unwrap()), registry, _stopping }
    }

    /// On a key file with these signers' keys.
    pub(super) fn with_keys(directory: &tempfile::TempDir, signers: &[&Signer]) -> Self {
        let path = directory.path().join("jwks.json");
        std::fs::write(&path, key_set(signers)).unwrap();
        Self::new(&identity(KeySource::file(path)), None)
    }

    pub(super) async fn ask(&self, token: &str) -> Result<Arc<Principal>, Refusal> {
        ask(&self.gate, token).await
    }

    /// The value of a series, such as `outrigger_identity_tokens_total{outcome="cached"}`.
    pub(super) fn metric(&self, series: &str) -> f64 {
        let text = self.registry.render().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
        line.unwrap_or(0.0)
    }
}

pub(super) async fn ask(gate: &Gate, token: &str) -> Result<Arc<Principal>, Refusal> {
    let mut headers = HeaderMap::new();
    headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
    gate.principal(headers.get("authorization"), &Recent::default(), Instant::now() + Duration::from_secs(5))
        .await
        .map_err(|error| error.0)
}

/// Waits until `condition` holds, in a test's runtime.
pub(super) async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition().await {
        assert!(Instant::now() < end, "{what}: not within 10 s");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
