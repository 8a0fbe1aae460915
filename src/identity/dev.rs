//! The development issuer: a signing key in a directory, and the tokens it signs. Never for production.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use super::TenantId;
use super::gate::now_ms;
use crate::config::{DEVELOPMENT_AUDIENCE, DEVELOPMENT_ISSUER};

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

/// The scope that the shipped policies give a tenant's administrator.
pub const ADMIN_SCOPE: &str = "tenant:admin";
/// The tier of a development token that names none.
pub const DEFAULT_TIER: &str = "free";
/// The signing key in an identity directory: PKCS#8 in PEM.
pub const KEY_FILE: &str = "signing-key.pem";
/// The key set in an identity directory.
pub const KEY_SET_FILE: &str = "jwks.json";

/// Why the development key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// A file or directory cannot be made or read.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Somebody else can read the key, so that it is nobody's.
    #[error("{0} can be read by others: `chmod 600` it, or remove it for a new one")]
    Exposed(PathBuf),
    /// Others can put another key set or key in its place.
    #[error("{0} can be written by others: whoever can write there can make tokens; `chmod go-w` it")]
    Writable(PathBuf),
    /// The file holds something else.
    #[error("{0} holds no P-256 key in PKCS#8 PEM: remove it for a new one")]
    NotAKey(PathBuf),
    /// The key could not be made or used.
    #[error("the signature could not be made")]
    Signature,
}

/// What a token says.
#[derive(Debug, Clone)]
pub struct TokenRequest<'r> {
    /// Its tenant; none makes a service token.
    pub tenant: Option<TenantId>,
    /// Its subject.
    pub subject: &'r str,
    /// Its scopes, joined by spaces.
    pub scopes: &'r [String],
    /// Its roles.
    pub roles: &'r [String],
    /// Its tier.
    pub tier: &'r str,
    /// How long it lives from now.
    pub ttl: Duration,
}

#[derive(Serialize)]
struct Claims<'c> {
    iss: &'c str,
    aud: &'c str,
    sub: &'c str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant_id: Option<String>,
    scope: String,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    roles: &'c [String],
    tier: &'c str,
    iat: i64,
    nbf: i64,
    exp: i64,
    jti: String,
}

/// A signing key in a directory, and the tokens it signs.
pub struct DevIdentity {
    key: EncodingKey,
    key_id: String,
}

impl DevIdentity {
    /// The key in `directory`, made if there is none: `signing-key.pem` (0600) and `jwks.json` (0644) in a
    /// directory of 0700. Two processes that do this at once end with one key.
    pub fn open_or_create(directory: &Path) -> Result<Self, DevError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|source| DevError::Io { path: directory.to_owned(), source })?;
        let path = directory.join(KEY_FILE);
        let io_error = |source| DevError::Io { path: path.clone(), source };
        if !path.try_exists().map_err(io_error)? {
            create_key(&path)?;
        }
        if std::fs::metadata(&path).map_err(io_error)?.permissions().mode() & 0o077 != 0 {
            return Err(DevError::Exposed(path));
        }
        let pem = std::fs::read(&path).map_err(io_error)?;
        let not_a_key = || DevError::NotAKey(path.clone());
        let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|_| not_a_key())?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der())
            .map_err(|_| not_a_key())?;
        let key = EncodingKey::from_ec_der(der.secret_pkcs8_der());
        let (x, y) = coordinates(&pair).ok_or_else(not_a_key)?;
        let key_id = thumbprint(&x, &y);
        let key_set = directory.join(KEY_SET_FILE);
        publish(&key_set, &key_id, &x, &y)?;
        for place in [directory, &key_set] {
            let metadata = std::fs::metadata(place);
            let metadata = metadata.map_err(|source| DevError::Io { path: place.to_owned(), source })?;
            if metadata.permissions().mode() & 0o002 != 0 {
                return Err(DevError::Writable(place.to_owned()));
            }
        }
        Ok(Self { key, key_id })
    }

    /// Signs a token.
    pub fn mint(&self, request: &TokenRequest<'_>) -> Result<String, DevError> {
        let now = now_ms() / 1000;
        let ttl = i64::try_from(request.ttl.as_secs()).unwrap_or(i64::MAX);
        let claims = Claims {
            iss: DEVELOPMENT_ISSUER,
            aud: DEVELOPMENT_AUDIENCE,
            sub: request.subject,
            tenant_id: request.tenant.map(|tenant| tenant.to_string()),
            scope: request.scopes.join(" "),
            roles: request.roles,
            tier: request.tier,
            iat: now,
            nbf: now,
            exp: now.saturating_add(ttl),
            jti: Uuid::new_v4().to_string(),
        };
        let header = Header { kid: Some(self.key_id.clone()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, &claims, &self.key).map_err(|_| DevError::Signature)
    }

    /// A token of a tenant's administrator on the tier `free`.
    pub fn mint_admin(&self, tenant: TenantId, subject: &str, ttl: Duration) -> Result<String, DevError> {
        let scopes = [ADMIN_SCOPE.to_owned()];
        let tenant = Some(tenant);
        self.mint(&TokenRequest { tenant, subject, scopes: &scopes, roles: &[], tier: DEFAULT_TIER, ttl })
    }
}

/// Makes a key, unless another process is quicker: then that one's stays.
fn create_key(path: &Path) -> Result<(), DevError> {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(|_| DevError::Signature)?;
    let der = pair.to_pkcs8v1().map_err(|_| DevError::Signature)?;
    let mut pem = String::from("-----BEGIN PRIVATE KEY-----\n");
    let text = STANDARD.encode(der.as_ref());
    for (at, character) in text.chars().enumerate() {
        if at > 0 && at % 64 == 0 {
            pem.push('\n');
        }
        pem.push(character);
    }
    pem.push_str("\n-----END PRIVATE KEY-----\n");
    let temporary = write_beside(path, pem.as_bytes(), 0o600)?;
    // A link does not replace what is there, unlike a rename.
    let linked = std::fs::hard_link(&temporary, path);
    let removed = std::fs::remove_file(&temporary);
    let io_error = |source| DevError::Io { path: path.to_owned(), source };
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(io_error(error)),
        Ok(()) | Err(_) => removed.map_err(io_error),
    }
}

/// Writes the key set, unless it has the key already: one that was extended by hand stays.
fn publish(path: &Path, key_id: &str, x: &str, y: &str) -> Result<(), DevError> {
    let io_error = |source| DevError::Io { path: path.to_owned(), source };
    match std::fs::read_to_string(path) {
        Ok(text) if text.contains(&format!("\"{key_id}\"")) => return Ok(()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_error(error)),
    }
    let key =
        json!({"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": key_id, "alg": "ES256", "use": "sig"});
    let text = format!("{:#}\n", json!({"keys": [key]}));
    let temporary = write_beside(path, text.as_bytes(), 0o644)?;
    std::fs::rename(temporary, path).map_err(io_error)
}

/// Writes a new file next to `path`, whole and on disk, so that it can take the place at once.
fn write_beside(path: &Path, content: &[u8], mode: u32) -> Result<PathBuf, DevError> {
    let temporary = path.with_extension(format!("{}.partial", Uuid::new_v4().simple()));
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()
    };
    match write() {
        Ok(()) => Ok(temporary),
        Err(source) => Err(DevError::Io { path: temporary, source }),
    }
}

/// The public point's coordinates, base64url.
fn coordinates(pair: &EcdsaKeyPair) -> Option<(String, String)> {
    let (x, y) = pair.public_key().as_ref().strip_prefix(&[4])?.split_at_checked(32)?;
    Some((URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y)))
}

/// The key's JWK thumbprint (RFC 7638): the digest of its required members, in order, without spaces.
fn thumbprint(x: &str, y: &str) -> String {
    let text = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, text.as_bytes()))
}
