//! Signatures of Standard Webhooks 1.0.0, symmetric (`v1`): HMAC-SHA256 over `id.timestamp.body`.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use super::Subscription;
use crate::config::{SecretError, SecretSource};
use crate::primitives::events::Logged;

/// The header with [`message_id`].
pub const ID: &str = "webhook-id";
/// The header with the attempt's time, in seconds since 1970.
pub const TIMESTAMP: &str = "webhook-timestamp";
/// The header with the signatures.
pub const SIGNATURE: &str = "webhook-signature";

const PREFIX: &str = "whsec_";
/// How many bytes a secret has.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Enough that no two events have the same id.
const ID_BYTES: usize = 16;

/// Why there is nothing to sign with. It holds no part of a secret.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] SecretError),
    /// It is not what Standard Webhooks call a secret.
    #[error("the secret {0} is not `whsec_` and the base64 of 24 to 64 bytes")]
    Form(String),
}

/// Signs with every secret of a subscription, in their order, so that a receiver that knows one of them is content
/// while another takes its place.
#[derive(Clone)]
pub struct Signer(Vec<hmac::Key>);

impl Signer {
    /// Reads the secrets as they are now.
    pub fn read(sources: &[SecretSource]) -> Result<Self, SignerError> {
        let key = |source: &SecretSource| {
            let secret = source.read()?;
            key(secret.expose()).ok_or_else(|| SignerError::Form(source.to_string()))
        };
        sources.iter().map(key).collect::<Result<_, _>>().map(Self)
    }

    /// The header's value for this message.
    #[must_use]
    pub fn sign(&self, id: &str, timestamp_s: i64, body: &[u8]) -> String {
        let signature = |key| format!("v1,{}", STANDARD.encode(tag(key, id, timestamp_s, body)));
        self.0.iter().map(signature).collect::<Vec<_>>().join(" ")
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({} secrets)", self.0.len())
    }
}

/// Whether one of `signatures` was made with `secret` for this message, as a receiver looks. Whether the timestamp is
/// recent is for the receiver to see to.
#[must_use]
pub fn verify(secret: &str, id: &str, timestamp_s: i64, body: &[u8], signatures: &str) -> bool {
    let Some(key) = key(secret) else { return false };
    let right = tag(&key, id, timestamp_s, body);
    signatures.split(' ').filter_map(|signature| signature.strip_prefix("v1,")).any(|signature| {
        STANDARD.decode(signature).is_ok_and(|given| verify_slices_are_equal(right.as_ref(), &given).is_ok())
    })
}

fn key(secret: &str) -> Option<hmac::Key> {
    let bytes = STANDARD.decode(secret.strip_prefix(PREFIX)?).ok()?;
    SECRET_BYTES.contains(&bytes.len()).then(|| hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

fn tag(key: &hmac::Key, id: &str, timestamp_s: i64, body: &[u8]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(key);
    context.update(id.as_bytes());
    context.update(format!(".{timestamp_s}.").as_bytes());
    context.update(body);
    context.sign()
}

/// The id of an event for a subscription: the same in every attempt and when it is sent again by command, without a
/// dot, and of no one's choosing: `msg_` and base64url of the first 16 bytes of SHA-256 over tenant, time of acceptance,
/// topic, subscription and attributes, which name the event.
#[must_use]
pub fn message_id(subscription: &Subscription, event: &Logged) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(event.tenant.as_bytes());
    // Not the position: whoever knows the rest could find it by trying, and with it how much everybody publishes.
    context.update(&event.accepted_ms.to_be_bytes());
    for name in [&subscription.topic, &subscription.name] {
        context.update(name.as_str().as_bytes());
        context.update(&[0]);
    }
    context.update(&event.attributes);
    let hash = context.finish();
    format!("msg_{}", URL_SAFE_NO_PAD.encode(&hash.as_ref()[..ID_BYTES]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those of the test suites of the standard's own libraries.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const MESSAGE: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const BODY: &[u8] = b"{\"test\": 2432232314}";
    const TIME: i64 = 1_614_265_330;
    const EXPECTED: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn signer(secrets: &[&str]) -> Signer {
        Signer(secrets.iter().map(|secret| key(secret).unwrap()).collect())
    }

    #[test]
    fn a_signature_is_that_of_the_standard_s_libraries() {
        assert_eq!(signer(&[SECRET]).sign(MESSAGE, TIME, BODY), EXPECTED);
        assert!(verify(SECRET, MESSAGE, TIME, BODY, EXPECTED));
    }

    #[test]
    fn one_right_signature_among_others_is_enough_and_anything_else_is_refused() {
        let wrong = "v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc=";
        let of_v2 = EXPECTED.replacen("v1", "v2", 1);
        assert!(verify(SECRET, MESSAGE, TIME, BODY, &format!("{wrong} {of_v2} {EXPECTED} {wrong}")));
        for signatures in [wrong, &of_v2, "", "v1,", &EXPECTED[..8], &EXPECTED[3..]] {
            assert!(!verify(SECRET, MESSAGE, TIME, BODY, signatures), "{signatures}");
        }
        assert!(!verify(SECRET, "msg_other", TIME, BODY, EXPECTED));
        assert!(!verify(SECRET, MESSAGE, TIME + 1, BODY, EXPECTED));
        assert!(!verify(SECRET, MESSAGE, TIME, b"{\"test\": 2432232315}", EXPECTED));
    }

    #[test]
    fn while_secrets_rotate_both_are_signed_with() {
        let new = format!("{PREFIX}{}", STANDARD.encode([7; 64]));
        let signatures = signer(&[&new, SECRET]).sign(MESSAGE, TIME, BODY);
        assert_eq!(signatures.split(' ').nth(1), Some(EXPECTED), "the first secret signs first");
        assert!(verify(SECRET, MESSAGE, TIME, BODY, &signatures));
        assert!(verify(&new, MESSAGE, TIME, BODY, &signatures));
    }

    #[test]
    fn a_secret_that_is_none_is_told_without_a_part_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let source = SecretSource::File(path.clone());
        for text in [
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_hunter2hunter2hunter2",
            &format!("{PREFIX}{}", STANDARD.encode([1; 23])),
            &format!("{PREFIX}{}", STANDARD.encode([1; 65])),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Signer::read(std::slice::from_ref(&source)).unwrap_err();
            assert!(matches!(error, SignerError::Form(_)), "{text}");
            assert!(!format!("{error} {error:?}").contains(text));
        }
        std::fs::write(&path, format!("{SECRET}\n")).unwrap();
        let read = Signer::read(&[source]).unwrap();
        assert_eq!(
            (read.sign(MESSAGE, TIME, BODY).as_str(), format!("{read:?}").as_str()),
            (EXPECTED, "Signer(1 secrets)")
        );
    }
}
