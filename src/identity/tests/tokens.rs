//! Tokens, one wrong in one way each, and what is made of the right ones.

use http::HeaderValue;
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use uuid::Uuid;

use super::super::refusal::Refusal;
use super::super::{Inspector, TenantId};
use super::*;

fn with(change: impl FnOnce(&mut Value)) -> Value {
    let mut claims = claims();
    change(&mut claims);
    claims
}

fn set(name: &str, value: Value) -> Value {
    with(|claims| claims[name] = value)
}

fn without(name: &str) -> Value {
    with(|claims| drop(claims.as_object_mut().unwrap().remove(name)))
}

/// Claims that are refused, and as what.
fn wrong_claims() -> Vec<(Value, Refusal)> {
    use Refusal as R;
    let many = vec!["s"; 65];
    let later = now_s() + 120;
    vec![
        (without("exp"), R::ExpiryShape),
        (set("exp", json!("1900000000")), R::ExpiryShape),
        (set("exp", json!(null)), R::ExpiryShape),
        (set("exp", json!(-1)), R::ExpiryShape),
        (set("exp", json!(1e300)), R::ExpiryShape),
        (set("exp", json!(now_ms())), R::ExpiryShape),
        (set("exp", json!(now_s() - 31)), R::Expired),
        (set("exp", json!(0)), R::Expired),
        (set("nbf", json!(later)), R::NotYetValid),
        (set("nbf", json!("soon")), R::NotBeforeShape),
        (set("nbf", json!([now_s()])), R::NotBeforeShape),
        (set("iat", json!(later)), R::IssuedAhead),
        (set("iat", json!(true)), R::IssuedAtShape),
        (without("iss"), R::IssuerShape),
        (set("iss", json!("")), R::IssuerShape),
        (set("iss", json!([ISSUER])), R::IssuerShape),
        (set("iss", json!("https://issuer.example/")), R::UnknownIssuer),
        (without("aud"), R::AudienceShape),
        (set("aud", json!(7)), R::AudienceShape),
        (set("aud", json!(["outrigger", 7])), R::AudienceShape),
        (set("aud", json!("outrigger ")), R::WrongAudience),
        (set("aud", json!([])), R::WrongAudience),
        (set("aud", json!(["Outrigger", "other"])), R::WrongAudience),
        (without("sub"), R::Subject),
        (set("sub", json!("")), R::Subject),
        (set("sub", json!(42)), R::Subject),
        (set("sub", json!("a\nb")), R::Subject),
        (set("sub", json!("s".repeat(257))), R::Subject),
        (set("tenant_id", json!("")), R::Tenant),
        (set("tenant_id", json!(null)), R::Tenant),
        (set("tenant_id", json!("acme")), R::Tenant),
        (set("tenant_id", json!([TENANT])), R::Tenant),
        (set("tenant_id", json!({"id": TENANT})), R::Tenant),
        (set("tenant_id", json!(TENANT.to_uppercase())), R::Tenant),
        (set("tenant_id", json!(format!("{TENANT} "))), R::Tenant),
        (set("tenant_id", json!(TENANT.replace('-', ""))), R::Tenant),
        (set("tenant_id", json!(format!("urn:uuid:{TENANT}"))), R::Tenant),
        (set("scope", json!(7)), R::Scopes),
        (set("scope", json!(["a", 7])), R::Scopes),
        (set("scope", json!(["a", ""])), R::Scopes),
        (set("scope", json!(many)), R::Scopes),
        (set("scope", json!("a\tb")), R::Scopes),
        (set("scope", json!("s".repeat(257))), R::Scopes),
        (set("roles", json!({"admin": true})), R::Roles),
        (set("roles", json!(many.join(" "))), R::Roles),
        (set("tier", json!("Pro")), R::Tier),
        (set("tier", json!("")), R::Tier),
        (set("tier", json!(["pro"])), R::Tier),
        (set("tier", json!("t".repeat(65))), R::Tier),
    ]
}

#[tokio::test]
async fn claims_that_are_wrong_in_one_way_are_refused_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let signer = Signer::es256("a");
    let bench = Bench::with_keys(&directory, &[&signer]);
    let inspector = Inspector::with_key_sets(&identity(KeySource::file("/none")), &[&key_set(&[&signer])]);
    let header = json!({"alg": "ES256", "kid": "a", "typ": "JWT"});
    for (claims, expected) in wrong_claims() {
        let token = signer.token(&header, &claims);
        assert_eq!(bench.ask(&token).await.err(), Some(expected), "{claims}");
        let explanation = inspector.explain(&token);
        assert!(explanation.principal().is_none(), "{claims}");
        let failed: Vec<_> = explanation.checks().iter().filter(|check| !check.passed).collect();
        assert!(failed.len() == 1 && failed[0].detail.contains(expected.text()), "{claims}: {failed:?}");
    }
    assert!(bench.ask(&signer.good()).await.is_ok());
    assert!(inspector.explain(&signer.good()).principal().is_some());
}

#[tokio::test]
async fn headers_that_are_wrong_in_one_way_are_refused_for_it() {
    use Refusal as R;
    let directory = tempfile::tempdir().unwrap();
    let signer = Signer::es256("a");
    let other = Signer::es256("b");
    let bench = Bench::with_keys(&directory, &[&signer, &other]);
    for (more, expected) in [
        (json!({"typ": "dpop+jwt"}), R::Type),
        (json!({"typ": "logout+jwt"}), R::Type),
        (json!({"typ": ""}), R::Type),
        (json!({"typ": null}), R::Type),
        (json!({"typ": ["JWT"]}), R::Type),
        (json!({"cty": "JWT"}), R::Nested),
        (json!({"cty": "application/jwt"}), R::Nested),
        (json!({"crit": ["exp"]}), R::Critical),
        (json!({"crit": []}), R::Critical),
        (json!({"crit": ["b64"], "b64": false}), R::Critical),
        (json!({"b64": false}), R::Critical),
        (json!({"jwk": other.jwk}), R::EmbeddedKey),
        (json!({"jku": "https://evil.example/jwks"}), R::EmbeddedKey),
        (json!({"x5u": "https://evil.example/cert"}), R::EmbeddedKey),
        (json!({"x5c": ["AAAA"]}), R::EmbeddedKey),
        (json!({"enc": "A256GCM"}), R::Encrypted),
        (json!({"zip": "DEF"}), R::Encrypted),
        (json!({"kid": 7}), R::KeyIdShape),
        (json!({"kid": ""}), R::KeyIdShape),
        (json!({"kid": "k".repeat(257)}), R::KeyIdShape),
        (json!({"kid": "c"}), R::UnknownKey),
        (json!({"kid": "b"}), R::Signature),
        (json!({"alg": "none"}), R::Algorithm),
        (json!({"alg": "nOnE"}), R::Algorithm),
        (json!({"alg": "HS256"}), R::Algorithm),
        (json!({"alg": "es256"}), R::Algorithm),
        (json!({"alg": "ES384"}), R::Algorithm),
        (json!({"alg": ["ES256"]}), R::Algorithm),
        (json!({"alg": null}), R::Algorithm),
    ] {
        let mut header = json!({"alg": "ES256", "kid": "a"});
        header.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        assert_eq!(bench.ask(&signer.token(&header, &claims())).await.err(), Some(expected), "{more}");
    }
    let without_kid = signer.token(&json!({"alg": "ES256"}), &claims());
    assert_eq!(bench.ask(&without_kid).await.err(), Some(R::NoKeyId));
    for more in ["JWT", "jwt", "at+jwt", "AT+JWT", "application/jwt", "application/at+jwt"] {
        let token = signer.token(&json!({"alg": "ES256", "kid": "a", "typ": more}), &claims());
        assert!(bench.ask(&token).await.is_ok(), "{more}");
    }
}

#[tokio::test]
async fn a_token_that_is_no_strict_jws_is_refused() {
    use Refusal as R;
    let directory = tempfile::tempdir().unwrap();
    let signer = Signer::es256("a");
    let bench = Bench::with_keys(&directory, &[&signer]);
    let header = br#"{"alg":"ES256","kid":"a"}"#;
    let body = claims().to_string();
    let good = signer.good();
    let [head, payload, signature] = good.split('.').collect::<Vec<_>>().try_into().unwrap();
    let doubled = |more: &str| format!("{},{more}}}", &body[..body.len() - 1]);
    let mut flipped = signature.to_owned();
    let last = flipped.pop().unwrap();
    flipped.push(if last == 'A' { 'Q' } else { 'A' });
    let mut swapped = URL_SAFE_NO_PAD.decode(signature).unwrap();
    swapped.rotate_left(32);
    for (token, expected) in [
        (format!("{head}.{payload}.{}", encode(swapped)), R::Signature),
        (format!("{head}.{payload}"), R::NotCompact),
        (format!("{head}..{signature}"), R::NotCompact),
        (format!(".{payload}.{signature}"), R::NotCompact),
        (format!("{good}."), R::NotCompact),
        (format!("{good}.x.y"), R::Encrypted),
        (format!("{good}="), R::NotCompact),
        (format!("{head}=.{payload}.{signature}"), R::NotCompact),
        (format!("{head}.{payload}+.{signature}"), R::NotCompact),
        (format!("{head}.{payload}.{}", "A".repeat(5)), R::NotCompact),
        (format!("{head}.{payload}."), R::Signature),
        (format!("{head}.{payload}.{flipped}"), R::Signature),
        (format!("{head}.{payload}.{}", "A".repeat(86)), R::Signature),
        (format!("{head}.{payload}.{}", &signature[..41]), R::NotCompact),
        (format!("{head}.{}.{signature}", encode(doubled("\"x\":1"))), R::Signature),
        ("a".repeat(8193), R::TooLong),
        (signer.sign(header, doubled("\"sub\":\"other\"").as_bytes()), R::Payload),
        (signer.sign(header, doubled("\"tenant_i\\u0064\":\"x\"").as_bytes()), R::Payload),
        (signer.sign(header, doubled("\"x\":{\"a\":1,\"a\":2}").as_bytes()), R::Payload),
        (
            signer.sign(header, doubled(&format!("\"x\":{}1{}", "[".repeat(20), "]".repeat(20))).as_bytes()),
            R::Payload,
        ),
        (signer.sign(header, b"[]"), R::Payload),
        (signer.sign(header, b"\"x\""), R::Payload),
        (signer.sign(header, format!("{body}{body}").as_bytes()), R::Payload),
        (signer.sign(header, b"{\"sub\":\"\xff\"}"), R::Payload),
        (signer.sign(br#"{"alg":"none","alg":"ES256","kid":"a"}"#, body.as_bytes()), R::Header),
        (signer.sign(br#"{"alg":"ES256","kid":"b","kid":"a"}"#, body.as_bytes()), R::Header),
        (signer.sign(b"{}", body.as_bytes()), R::Algorithm),
        (signer.sign(b"null", body.as_bytes()), R::Header),
        (Signer::es256("a").good(), R::Signature),
    ] {
        assert_eq!(bench.ask(&token).await.err(), Some(expected), "{token}");
    }
}

#[tokio::test]
async fn each_algorithm_verifies_and_no_key_serves_another() {
    let directory = tempfile::tempdir().unwrap();
    let signers = [
        Signer::es256("es256"),
        Signer::es384("es384"),
        Signer::ed25519("eddsa"),
        Signer::rsa("rs256", Algorithm::RS256, "RS256"),
        Signer::rsa("ps384", Algorithm::PS384, "PS384"),
        Signer::hs256("hs256", &[7; 32]),
    ];
    let path = directory.path().join("jwks.json");
    std::fs::write(&path, key_set(&signers.iter().collect::<Vec<_>>())).unwrap();
    let bench = Bench::new(&identity(KeySource::File { file: path, hs256: true }), None);
    for signer in &signers {
        assert!(bench.ask(&signer.good()).await.is_ok(), "{}", name(signer.algorithm));
        // Another algorithm of the same key, or the key as another algorithm's.
        for other in ["RS256", "RS512", "PS256", "PS384", "ES256", "ES384", "EdDSA", "HS256", "HS512"] {
            let token = signer.token(&json!({"alg": other, "kid": signer.jwk["kid"]}), &claims());
            let expected = if other == name(signer.algorithm) { None } else { Some(Refusal::Algorithm) };
            assert_eq!(bench.ask(&token).await.err(), expected, "{other} with {}", name(signer.algorithm));
        }
    }
    // The public key as an HMAC secret.
    let public = signers[0].jwk.to_string();
    let confused = Signer::hs256("es256", public.as_bytes());
    assert_eq!(bench.ask(&confused.good()).await.err(), Some(Refusal::Algorithm));
}

#[tokio::test]
async fn a_principal_is_what_the_claims_say() {
    let directory = tempfile::tempdir().unwrap();
    let signer = Signer::es256("a");
    let path = directory.path().join("jwks.json");
    std::fs::write(&path, key_set(&[&signer])).unwrap();
    let mut identity = identity(KeySource::file(path));
    let namespace = Uuid::from_u128(7);
    identity.tenant_namespace = Some(namespace);
    identity.issuers[0].claims.tenant = "/org/tenant~1id".to_owned();
    identity.issuers[0].claims.roles = "/access/roles".to_owned();
    identity.issuers[0].claims.subject = "client".to_owned();
    let bench = Bench::new(&identity, None);
    let token = |more: Value| {
        let mut claims = claims();
        claims["client"] = json!("worker");
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        signer.token(&json!({"alg": "ES256"}), &claims)
    };
    let v5 = TenantId::from_uuid(Uuid::new_v5(&namespace, b"acme"));
    for (more, tenant) in [
        (json!({"org": {"tenant/id": TENANT}}), Ok(TenantId::parse(TENANT))),
        (json!({"org": {"tenant/id": "acme"}}), Ok(Some(v5))),
        (json!({"org": {}}), Ok(None)),
        (json!({}), Ok(None)),
        (json!({"org": "acme"}), Err(Refusal::Tenant)),
        (json!({"org": null}), Err(Refusal::Tenant)),
        (json!({"org": {"tenant/id": ""}}), Err(Refusal::Tenant)),
        (json!({"org": {"tenant/id": TENANT.to_uppercase()}}), Err(Refusal::Tenant)),
        (json!({"org": {"tenant/id": "t".repeat(257)}}), Err(Refusal::Tenant)),
    ] {
        let found = bench.ask(&token(more.clone())).await.map(|principal| principal.tenant());
        assert_eq!(found, tenant, "{more}");
    }
    let more = json!({"org": {"tenant/id": "acme"}, "access": {"roles": "a b"}, "scope": ["x y", "z"], "aud": ["q", "outrigger"]});
    let principal = bench.ask(&token(more)).await.unwrap();
    assert_eq!(&**principal.subject(), "worker");
    assert_eq!(principal.issuer(), "users");
    assert_eq!(principal.tier(), Some("pro"));
    assert_eq!(principal.roles().iter().map(|role| &**role).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(principal.scopes().iter().map(|scope| &**scope).collect::<Vec<_>>(), ["x y", "z"]);
}

#[tokio::test]
async fn the_header_is_a_bearer_token_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let signer = Signer::es256("a");
    let bench = Bench::with_keys(&directory, &[&signer]);
    let good = signer.good();
    for (value, expected) in [
        (None, Some(Refusal::NoToken)),
        (Some(format!("Bearer {good}")), None),
        (Some(format!("bEARER {good}")), None),
        (Some(format!("Bearer  {good}")), None),
        (Some("Bearer".to_owned()), Some(Refusal::Scheme)),
        (Some("Bearer ".to_owned()), Some(Refusal::Scheme)),
        (Some(format!("Basic {good}")), Some(Refusal::Scheme)),
        (Some(format!("Bearer {good} x")), Some(Refusal::Scheme)),
        (Some(format!("Bearer {good},{good}")), Some(Refusal::Scheme)),
        (Some(format!("Bearer\t{good}")), Some(Refusal::Scheme)),
        (Some(format!("Bearer \t{good}")), Some(Refusal::Scheme)),
        (Some(format!("Bearer {}", "x".repeat(8193))), Some(Refusal::TooLong)),
        (Some(format!("Bearer {good}\u{e9}")), Some(Refusal::Scheme)),
        (Some(good.clone()), Some(Refusal::Scheme)),
    ] {
        let mut headers = HeaderMap::new();
        if let Some(value) = &value {
            headers.insert("authorization", HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        let found =
            bench.gate.principal(headers.get("authorization"), &Recent::default(), deadline).await.err();
        assert_eq!(found.map(|error| error.0), expected, "{value:?}");
        if let Some(error) = found {
            let bare = error.0 != Refusal::TooLong;
            assert_eq!(
                error.challenge() == "Bearer",
                bare,
                "an error in the challenge where there is a token"
            );
        }
    }
}

#[tokio::test]
async fn a_verified_token_is_cached_until_it_expires_or_keys_change() {
    let directory = tempfile::tempdir().unwrap();
    let (signer, other) = (Signer::es256("a"), Signer::es256("b"));
    let path = directory.path().join("jwks.json");
    std::fs::write(&path, key_set(&[&signer])).unwrap();
    let mut identity = identity(KeySource::file(path.clone()));
    identity.clock_skew_s = 0;
    let bench = Bench::new(&identity, None);
    let cached = || bench.metric("outrigger_identity_tokens_total{outcome=\"cached\"}");
    let verified = || bench.metric("outrigger_identity_tokens_total{outcome=\"verified\"}");
    let good = signer.good();
    for _ in 0..3 {
        assert!(bench.ask(&good).await.is_ok());
    }
    assert_eq!((verified(), cached()), (1.0, 2.0));

    let short = signer.token(&json!({"alg": "ES256"}), &set("exp", json!(now_s() + 2)));
    assert!(bench.ask(&short).await.is_ok());
    until("the cached token to expire", || async { bench.ask(&short).await.err() == Some(Refusal::Expired) })
        .await;

    // The key goes: a token that it verified is refused, cached or not.
    std::fs::write(&path, key_set(&[&other])).unwrap();
    until("the new key set", || async { bench.ask(&good).await.err() == Some(Refusal::UnknownKey) }).await;
    assert!(bench.ask(&other.good()).await.is_ok());

    // A broken file changes nothing.
    std::fs::write(&path, "{").unwrap();
    until("a failed reading", || async {
        bench.metric("outrigger_identity_key_fetches_total{issuer=\"users\",outcome=\"failed\"}") > 0.0
    })
    .await;
    assert!(bench.ask(&other.good()).await.is_ok());
    assert_eq!(bench.gate.ready(), Ok(()));
}
