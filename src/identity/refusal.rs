//! Why a token is refused: a closed list, each with its metric label and its text for the client.

use crate::error::ErrorKind;

/// Why a caller is not let in. No part of a token is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Refusal {
    NoToken,
    Scheme,
    TooLong,
    NotCompact,
    Encrypted,
    Header,
    Type,
    Nested,
    Critical,
    EmbeddedKey,
    KeyIdShape,
    Algorithm,
    Payload,
    IssuerShape,
    UnknownIssuer,
    NoKeyId,
    UnknownKey,
    KeysUnavailable,
    Signature,
    ExpiryShape,
    Expired,
    NotBeforeShape,
    NotYetValid,
    IssuedAtShape,
    IssuedAhead,
    AudienceShape,
    WrongAudience,
    Subject,
    Tenant,
    Scopes,
    Roles,
    Tier,
}

impl Refusal {
    /// Every refusal, in the order of the enum: the metric has a series for each from the start.
    pub(super) const ALL: &[Self] = &[
        Self::NoToken,
        Self::Scheme,
        Self::TooLong,
        Self::NotCompact,
        Self::Encrypted,
        Self::Header,
        Self::Type,
        Self::Nested,
        Self::Critical,
        Self::EmbeddedKey,
        Self::KeyIdShape,
        Self::Algorithm,
        Self::Payload,
        Self::IssuerShape,
        Self::UnknownIssuer,
        Self::NoKeyId,
        Self::UnknownKey,
        Self::KeysUnavailable,
        Self::Signature,
        Self::ExpiryShape,
        Self::Expired,
        Self::NotBeforeShape,
        Self::NotYetValid,
        Self::IssuedAtShape,
        Self::IssuedAhead,
        Self::AudienceShape,
        Self::WrongAudience,
        Self::Subject,
        Self::Tenant,
        Self::Scopes,
        Self::Roles,
        Self::Tier,
    ];

    /// The label `outcome` of `outrigger_identity_tokens_total`.
    pub(super) fn label(self) -> &'static str {
        self.row().0
    }

    /// What is wrong and what would be right, for the client.
    pub(super) fn text(self) -> &'static str {
        self.row().1
    }

    /// What kind of error it is to the caller.
    pub(super) fn kind(self) -> ErrorKind {
        if self == Self::KeysUnavailable { ErrorKind::BackendUnavailable } else { ErrorKind::Unauthenticated }
    }

    /// Whether the request carried a bearer token at all: without one, RFC 6750 wants a bare challenge.
    pub(super) fn has_token(self) -> bool {
        !matches!(self, Self::NoToken | Self::Scheme)
    }

    /// Texts keep to the characters of RFC 6750's `error_description`: no quotation mark, no backslash, ASCII.
    fn row(self) -> (&'static str, &'static str) {
        match self {
            Self::NoToken => ("no_token", "send `Authorization: Bearer <token>`"),
            Self::Scheme => ("scheme", "the Authorization header must be `Bearer`, one space and one token"),
            Self::TooLong => ("too_long", "a token has 8192 bytes at the most"),
            Self::NotCompact => (
                "not_compact",
                "a token is a compact JWS: three non-empty base64url parts without padding, joined by dots",
            ),
            Self::Encrypted => ("encrypted", "encrypted tokens (JWE) are not taken: send a signed one"),
            Self::Header => {
                ("header", "the token's header must be one JSON object, shallow and without repeated members")
            }
            Self::Type => ("type", "the token's `typ` must be `JWT` or `at+jwt`, or be left out"),
            Self::Nested => ("nested", "nested tokens (`cty`) are not taken"),
            Self::Critical => (
                "critical",
                "the token's header asks for an extension (`crit`, `b64`) that is not understood",
            ),
            Self::EmbeddedKey => (
                "embedded_key",
                "a token must not bring its own key (`jwk`, `jku`, `x5c`, `x5u`): name one with `kid`",
            ),
            Self::KeyIdShape => ("key_id", "the token's `kid` must be a text of 1 to 256 bytes"),
            Self::Algorithm => {
                ("algorithm", "the token's `alg` must be the one signature algorithm of the key it names")
            }
            Self::Payload => (
                "payload",
                "the token's claims must be one JSON object, shallow and without repeated members",
            ),
            Self::IssuerShape => ("issuer_shape", "the token must have the claim `iss`, a text"),
            Self::UnknownIssuer => ("unknown_issuer", "no issuer here has this `iss`"),
            Self::NoKeyId => {
                ("no_key_id", "this issuer has several keys: the token must name one with `kid`")
            }
            Self::UnknownKey => ("unknown_key", "no key of this issuer has this `kid`"),
            Self::KeysUnavailable => (
                "keys_unavailable",
                "the keys that would verify this token cannot be had right now; `/readyz?verbose` says why",
            ),
            Self::Signature => ("signature", "the token's signature does not verify"),
            Self::ExpiryShape => ("expiry_shape", "the token must have the claim `exp`, a number of seconds"),
            Self::Expired => ("expired", "the token has expired"),
            Self::NotBeforeShape => ("not_before_shape", "the claim `nbf` must be a number of seconds"),
            Self::NotYetValid => ("not_yet_valid", "the token is not valid yet (`nbf`)"),
            Self::IssuedAtShape => ("issued_at_shape", "the claim `iat` must be a number of seconds"),
            Self::IssuedAhead => ("issued_ahead", "the token was issued in the future (`iat`)"),
            Self::AudienceShape => {
                ("audience_shape", "the token must have the claim `aud`, a text or an array of texts")
            }
            Self::WrongAudience => ("wrong_audience", "the token is for another audience (`aud`)"),
            Self::Subject => {
                ("subject", "the subject claim must be a text of 1 to 256 bytes without control characters")
            }
            Self::Tenant => (
                "tenant",
                "the tenant claim must be a UUID in lower case with hyphens, or a text where a namespace maps them",
            ),
            Self::Scopes => (
                "scopes",
                "the scope claim must be a text or an array of texts: 64 scopes of 256 bytes at the most",
            ),
            Self::Roles => {
                ("roles", "the roles claim must be an array of texts or a text: 64 of 256 bytes at the most")
            }
            Self::Tier => {
                ("tier", "the tier claim must be a name: a-z, 0-9, `_`, `.` and `-`, 64 at the most")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_a_label_of_its_own_and_a_text_that_fits_a_challenge() {
        assert_eq!(Refusal::ALL.len(), Refusal::Tier as usize + 1, "the last of the enum");
        let fits = |c: char| matches!(c, ' '..='~') && c != '"' && c != '\\';
        let mut labels = std::collections::BTreeSet::new();
        for (index, refusal) in Refusal::ALL.iter().enumerate() {
            assert_eq!(*refusal as usize, index);
            assert!(labels.insert(refusal.label()), "{}", refusal.label());
            assert!(refusal.text().chars().all(fits), "{}", refusal.text());
        }
    }
}
