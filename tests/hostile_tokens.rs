//! Tokens that no honest issuer makes: each is refused with a problem document that says which check failed.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use support::client::Client;
use support::sidecar::{ACME, GLOBEX, Sidecar};

const TARGET: &str = "/v1/cache/scoring/k";

/// Makes tokens with the sidecar's own signing key, whatever they say.
struct Forge {
    key: EncodingKey,
    pem: Vec<u8>,
    jwk: Value,
    now: i64,
}

struct Case {
    name: String,
    token: String,
    detail: &'static str,
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Forge {
    fn new(sidecar: &Sidecar) -> Self {
        let directory = sidecar.directory.path().join("identity");
        let pem = std::fs::read(directory.join("signing-key.pem")).unwrap();
        let set: Value =
            serde_json::from_slice(&std::fs::read(directory.join("jwks.json")).unwrap()).unwrap();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let now = i64::try_from(since.as_secs()).unwrap();
        Self { key: EncodingKey::from_ec_pem(&pem).unwrap(), pem, jwk: set["keys"][0].clone(), now }
    }

    fn header(&self) -> Value {
        json!({"alg": "ES256", "typ": "JWT", "kid": self.jwk["kid"]})
    }

    fn claims(&self) -> Value {
        json!({
            "iss": "outrigger-dev", "aud": "outrigger", "sub": "hostile", "tenant_id": ACME,
            "scope": "tenant:admin", "tier": "free", "iat": self.now, "nbf": self.now, "exp": self.now + 600,
        })
    }

    fn sign(&self, header: impl AsRef<[u8]>, claims: impl AsRef<[u8]>) -> String {
        sign_with(&self.key, Algorithm::ES256, header, claims)
    }

    fn with_header(&self, more: &Value) -> String {
        self.sign(merged(self.header(), more).to_string(), self.claims().to_string())
    }

    fn with_claims(&self, more: &Value) -> String {
        self.sign(self.header().to_string(), merged(self.claims(), more).to_string())
    }

    fn without_claim(&self, name: &str) -> String {
        let mut claims = self.claims();
        claims.as_object_mut().unwrap().remove(name).unwrap();
        self.sign(self.header().to_string(), claims.to_string())
    }

    /// The good claims' text with more members at its end.
    fn with_text(&self, more: &str) -> String {
        let claims = self.claims().to_string();
        self.sign(self.header().to_string(), format!("{},{more}}}", claims.strip_suffix('}').unwrap()))
    }

    fn good(&self) -> String {
        self.with_claims(&json!({}))
    }
}

fn sign_with(
    key: &EncodingKey,
    algorithm: Algorithm,
    header: impl AsRef<[u8]>,
    claims: impl AsRef<[u8]>,
) -> String {
    let message = format!("{}.{}", encode(header), encode(claims));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm).unwrap();
    format!("{message}.{signature}")
}

fn merged(mut object: Value, more: &Value) -> Value {
    object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    object
}

fn form(forge: &Forge) -> Vec<Case> {
    let good = forge.good();
    let [header, claims, signature]: [&str; 3] = good.split('.').collect::<Vec<_>>().try_into().unwrap();
    let compact = "a token is a compact JWS";
    let unsigned = |header: &Value| encode(header.to_string());
    let body = forge.claims().to_string();
    [
        ("one part", header.to_owned(), compact),
        ("two parts", format!("{header}.{claims}"), compact),
        ("four parts", format!("{good}.{signature}"), compact),
        ("five parts, as a JWE", format!("{good}.{header}.{claims}"), "encrypted tokens"),
        ("six parts", format!("{good}.a.b.c"), compact),
        ("an empty header", format!(".{claims}.{signature}"), compact),
        ("empty claims", format!("{header}..{signature}"), compact),
        ("padding in the signature", format!("{good}=="), compact),
        ("padding in the header", format!("{header}=.{claims}.{signature}"), compact),
        ("the other base64 alphabet", format!("{header}.{claims}.+{}", &signature[1..]), compact),
        ("a base64 length that cannot be", format!("{header}.{claims}.{signature}AAA"), compact),
        ("too long", forge.with_claims(&json!({"x": "x".repeat(8192)})), "8192 bytes at the most"),
        ("a header that is no JSON", forge.sign("alg=ES256", &body), "header must be one JSON object"),
        ("a header that is an array", forge.sign("[]", &body), "header must be one JSON object"),
        ("claims that are no JSON", forge.sign(forge.header().to_string(), "sub=x"), "claims must be one"),
        ("claims that are a text", forge.sign(forge.header().to_string(), "\"x\""), "claims must be one"),
        ("claims twice", forge.sign(forge.header().to_string(), body.repeat(2)), "claims must be one"),
        (
            "claims that are not UTF-8",
            forge.sign(forge.header().to_string(), b"{\"sub\":\"\xff\"}"),
            "claims must be one",
        ),
        ("deep claims", forge.with_text(&format!("\"x\":{}{}", "[".repeat(99), "]".repeat(99))), "shallow"),
        ("no signature, and it says so", format!("{}.{claims}.", unsigned(&json!({"alg": "none"}))), "`alg`"),
        ("none in another case", format!("{}.{claims}.", unsigned(&json!({"alg": "NoNe"}))), "`alg`"),
        ("no signature", format!("{header}.{claims}."), "signature does not verify"),
    ]
    .map(|(name, token, detail)| Case { name: name.to_owned(), token, detail })
    .into()
}

fn signatures(forge: &Forge) -> Vec<Case> {
    let good = forge.good();
    let (message, signature) = good.rsplit_once('.').unwrap();
    let bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let mut swapped = bytes.clone();
    swapped.rotate_left(32);
    let mut flipped = bytes.clone();
    flipped[10] ^= 1;
    let (header, claims) = (forge.header().to_string(), forge.claims().to_string());
    let other_tenant = forge.with_claims(&json!({"tenant_id": GLOBEX}));
    let transplanted = format!("{}.{signature}", other_tenant.rsplit_once('.').unwrap().0);
    let hmac = |secret: &[u8]| {
        let header = merged(forge.header(), &json!({"alg": "HS256"})).to_string();
        sign_with(&EncodingKey::from_secret(secret), Algorithm::HS256, header, &claims)
    };
    let stranger = tempfile::tempdir().unwrap();
    let minted = std::process::Command::new(support::sidecar::BINARY)
        .args(["token", "mint", "--tenant", ACME, "--subject", "stranger", "--data"])
        .arg(stranger.path())
        .output()
        .unwrap();
    assert!(minted.status.success());
    let pem = std::fs::read(stranger.path().join("identity/signing-key.pem")).unwrap();
    let stranger_key = EncodingKey::from_ec_pem(&pem).unwrap();
    let wrong = "signature does not verify";
    [
        ("one bit of the signature", format!("{message}.{}", encode(&flipped)), wrong),
        ("r and s swapped", format!("{message}.{}", encode(&swapped)), wrong),
        ("a signature of zeros", format!("{message}.{}", encode([0; 64])), wrong),
        ("a signature too short", format!("{message}.{}", encode(&bytes[..63])), wrong),
        ("a signature too long", format!("{message}.{}", encode([&bytes[..], &[0]].concat())), wrong),
        ("another token's signature", transplanted, wrong),
        ("another key under this kid", sign_with(&stranger_key, Algorithm::ES256, &header, &claims), wrong),
        (
            "a stranger's own token",
            String::from_utf8(minted.stdout).unwrap().trim().to_owned(),
            "no key of this issuer has this `kid`",
        ),
        ("HS256 with the public key", hmac(forge.jwk.to_string().as_bytes()), "`alg`"),
        ("HS256 with the private key's file", hmac(&forge.pem), "`alg`"),
        ("HS256 with nothing", hmac(b""), "`alg`"),
    ]
    .map(|(name, token, detail)| Case { name: name.to_owned(), token, detail })
    .into()
}

fn headers(forge: &Forge) -> Vec<Case> {
    let jwk = &forge.jwk;
    let own_key = "must not bring its own key";
    let mut cases: Vec<Case> = [
        (json!({"alg": "ES384"}), "`alg`"),
        (json!({"alg": "es256"}), "`alg`"),
        (json!({"alg": "RS256"}), "`alg`"),
        (json!({"alg": null}), "`alg`"),
        (json!({"alg": ["ES256"]}), "`alg`"),
        (json!({"kid": "../../jwks.json"}), "no key of this issuer has this `kid`"),
        (json!({"kid": "' OR 1=1 --"}), "no key of this issuer has this `kid`"),
        (json!({"kid": 1}), "`kid` must be a text"),
        (json!({"kid": ""}), "`kid` must be a text"),
        (json!({"kid": "k".repeat(300)}), "`kid` must be a text"),
        (json!({"jwk": jwk}), own_key),
        (json!({"jku": "http://127.0.0.1:1/jwks.json"}), own_key),
        (json!({"x5u": "http://127.0.0.1:1/chain.pem"}), own_key),
        (json!({"x5c": ["MIIB"]}), own_key),
        (json!({"crit": ["exp"], "exp": 1}), "extension (`crit`, `b64`)"),
        (json!({"crit": []}), "extension (`crit`, `b64`)"),
        (json!({"crit": ["b64"], "b64": false}), "extension (`crit`, `b64`)"),
        (json!({"b64": false}), "extension (`crit`, `b64`)"),
        (json!({"typ": "dpop+jwt"}), "`typ` must be"),
        (json!({"typ": "logout+jwt"}), "`typ` must be"),
        (json!({"typ": 1}), "`typ` must be"),
        (json!({"cty": "JWT"}), "nested"),
        (json!({"enc": "A256GCM"}), "encrypted"),
        (json!({"zip": "DEF"}), "encrypted"),
    ]
    .map(|(more, detail)| Case { name: format!("header {more}"), token: forge.with_header(&more), detail })
    .into();
    let (kid, claims) = (&jwk["kid"], forge.claims().to_string());
    for (text, detail) in [
        (format!(r#"{{"alg":"none","alg":"ES256","kid":{kid}}}"#), "header must be one"),
        (format!(r#"{{"alg":"ES256","kid":"x","\u006bid":{kid}}}"#), "header must be one"),
        (format!(r#"{{"kid":{kid}}}"#), "`alg`"),
    ] {
        cases.push(Case { token: forge.sign(&text, &claims), name: format!("header {text}"), detail });
    }
    cases
}

fn times(forge: &Forge) -> Vec<Case> {
    let (now, shape) = (forge.now, "the claim `exp`, a number");
    [
        (json!({"exp": now - 60}), "has expired"),
        (json!({"exp": 0}), "has expired"),
        (json!({"exp": -1}), shape),
        (json!({"exp": (now + 600).to_string()}), shape),
        (json!({"exp": null}), shape),
        (json!({"exp": 1e300}), shape),
        (json!({"exp": (now + 600) * 1000}), shape),
        (json!({"nbf": now + 300}), "not valid yet"),
        (json!({"nbf": "now"}), "`nbf` must be a number"),
        (json!({"iat": now + 300}), "issued in the future"),
        (json!({"iat": {}}), "`iat` must be a number"),
    ]
    .map(|(more, detail)| Case { name: format!("claims {more}"), token: forge.with_claims(&more), detail })
    .into()
}

fn claims(forge: &Forge) -> Vec<Case> {
    let audience = "the claim `aud`, a text or an array of texts";
    let mut cases: Vec<Case> = [
        (json!({"iss": "outrigger-dev/"}), "no issuer here has this `iss`"),
        (json!({"iss": "https://issuer.example"}), "no issuer here has this `iss`"),
        (json!({"iss": ["outrigger-dev"]}), "the claim `iss`, a text"),
        (json!({"aud": "another"}), "another audience"),
        (json!({"aud": []}), "another audience"),
        (json!({"aud": {"outrigger": true}}), audience),
        (json!({"aud": ["outrigger", 1]}), audience),
        (json!({"sub": ""}), "the subject claim must be"),
        (json!({"sub": 1}), "the subject claim must be"),
        (json!({"sub": "a\u{0}b"}), "the subject claim must be"),
        (json!({"sub": "s".repeat(300)}), "the subject claim must be"),
        (json!({"tenant_id": ""}), "the tenant claim must be"),
        (json!({"tenant_id": null}), "the tenant claim must be"),
        (json!({"tenant_id": "*"}), "the tenant claim must be"),
        (json!({"tenant_id": [ACME, GLOBEX]}), "the tenant claim must be"),
        (json!({"tenant_id": ACME.to_uppercase()}), "the tenant claim must be"),
        (json!({"tenant_id": format!("{{{ACME}}}")}), "the tenant claim must be"),
        (json!({"tenant_id": format!("{ACME}}}:x")}), "the tenant claim must be"),
        (json!({"scope": {"tenant:admin": true}}), "the scope claim must be"),
        (json!({"scope": ["tenant:admin", null]}), "the scope claim must be"),
        (json!({"scope": vec!["s"; 100]}), "the scope claim must be"),
        (json!({"roles": 1}), "the roles claim must be"),
        (json!({"tier": "Enterprise"}), "the tier claim must be"),
        (json!({"tier": ["enterprise"]}), "the tier claim must be"),
    ]
    .map(|(more, detail)| Case { name: format!("claims {more}"), token: forge.with_claims(&more), detail })
    .into();
    for (name, detail) in [
        ("exp", "the claim `exp`, a number"),
        ("iss", "the claim `iss`, a text"),
        ("aud", audience),
        ("sub", "the subject claim must be"),
    ] {
        cases.push(Case { name: format!("no {name}"), token: forge.without_claim(name), detail });
    }
    for more in [
        format!("\"tenant_id\":\"{GLOBEX}\""),
        format!("\"tenant_\\u0069d\":\"{GLOBEX}\""),
        "\"exp\":99999999999".to_owned(),
        "\"x\":[{\"y\":{\"z\":1,\"z\":2}}]".to_owned(),
    ] {
        let detail = "without repeated members";
        cases.push(Case { token: forge.with_text(&more), name: format!("more claims {more}"), detail });
    }
    cases
}

/// Asserts that the token is refused as RFC 6750 and the contract want it.
fn assert_refused(client: &mut Client, case: &Case) {
    let bearer = format!("Bearer {}", case.token);
    let reply = client.send("GET", TARGET, &[("Authorization", &bearer)], b"");
    assert_eq!(reply.status, 401, "{}: {}", case.name, reply.text());
    let document = reply.problem(401, "unauthenticated");
    let detail = document["detail"].as_str().unwrap();
    assert!(detail.contains(case.detail), "{}: {detail}", case.name);
    assert_eq!(document["retryable"], false, "{}", case.name);
    let expected = format!("Bearer error=\"invalid_token\", error_description=\"{detail}\"");
    assert_eq!(reply.header("www-authenticate"), Some(expected.as_str()), "{}", case.name);
}

fn assert_accepted(client: &mut Client, token: &str) {
    let reply = client.send("GET", TARGET, &[("Authorization", &format!("Bearer {token}"))], b"");
    reply.problem(404, "not_found");
}

#[test]
fn each_hostile_token_is_refused_and_says_why() {
    let sidecar = Sidecar::dev();
    let forge = Forge::new(&sidecar);
    let cases: Vec<Case> = [form(&forge), signatures(&forge), headers(&forge), times(&forge), claims(&forge)]
        .into_iter()
        .flatten()
        .collect();
    assert!(cases.len() >= 60, "{} cases", cases.len());
    let good = forge.good();
    let mut client = sidecar.client();
    assert_accepted(&mut client, &good);
    for case in &cases {
        assert_refused(&mut client, case);
        // And not the second time either: a refusal is not cached, nor is what was refused.
        assert_refused(&mut client, case);
    }
    let mut socket = sidecar.socket_client();
    for case in &cases {
        assert_refused(&mut socket, case);
    }
    assert_accepted(&mut client, &good);
    assert_accepted(&mut socket, &good);
    println!("{} hostile tokens refused", cases.len());
}

#[test]
fn what_is_no_bearer_token_gets_a_bare_challenge() {
    let sidecar = Sidecar::dev();
    let good = Forge::new(&sidecar).good();
    for value in [
        None,
        Some(good.clone()),
        Some(format!("Basic {good}")),
        Some(format!("Bearer{good}")),
        Some(format!("Bearer {good} {good}")),
        Some(format!("Bearer {good}, Bearer {good}")),
        Some(format!("Bearer \"{good}\"")),
        Some("Bearer".to_owned()),
    ] {
        let headers: Vec<(&str, &str)> =
            value.iter().map(|value| ("Authorization", value.as_str())).collect();
        let reply = sidecar.client().send("GET", TARGET, &headers, b"");
        reply.problem(401, "unauthenticated");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"), "{value:?}");
    }
    for scheme in ["bearer", "BEARER"] {
        let headers = [("Authorization", format!("{scheme} {good}"))];
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        sidecar.client().send("GET", TARGET, &headers, b"").problem(404, "not_found");
    }
}

#[test]
fn no_token_is_logged_even_at_trace() {
    let directory = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::dev_with_environment(directory, &[("OUTRIGGER_LOG", "trace")]);
    let forge = Forge::new(&sidecar);
    let canary = "canary-7f3a9c51";
    let good = forge.with_claims(&json!({"sub": canary, "canary": canary}));
    let refused = [
        forge.with_claims(&json!({"aud": canary, "canary": canary})),
        forge.with_claims(&json!({"iss": canary})),
        forge.with_claims(&json!({"tenant_id": canary})),
        forge.with_header(&json!({"kid": canary})),
        forge.with_header(&json!({"typ": canary})),
        format!("{good}x"),
        canary.to_owned(),
    ];
    let mut client = sidecar.client();
    for _ in 0..2 {
        assert_accepted(&mut client, &good);
    }
    for token in &refused {
        let bearer = format!("Bearer {token}");
        let reply = client.send("GET", TARGET, &[("Authorization", &bearer)], b"");
        let document = reply.problem(401, "unauthenticated").to_string();
        assert!(!document.contains(canary), "{document}");
    }
    let metrics = sidecar.admin_client().send("GET", "/metrics", &[], b"").text();
    assert!(metrics.contains("outrigger_identity_tokens_total{outcome=\"wrong_audience\"} 1"), "{metrics}");
    sidecar.signal(rustix::process::Signal::TERM);
    sidecar.wait(std::time::Duration::from_secs(10));
    let log = sidecar.log();
    assert!(log.contains("DEBUG") && log.contains("a token was refused"), "the log has no refusals:\n{log}");
    let parts = refused.iter().chain([&good]).flat_map(|token| token.split('.').map(str::to_owned));
    for part in parts.filter(|part| part.len() >= 8) {
        assert!(!log.contains(&part), "a part of a token is in the log:\n{log}");
    }
    for text in [&log, &metrics] {
        assert!(
            !text.contains(canary) && !text.contains(&encode(canary)[..16]),
            "the canary got out:\n{text}"
        );
    }
}
