//! Raw bytes that no honest client sends: each is refused with a problem document, and the process lives on.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::time::Duration;

use support::client::Client;
use support::sidecar::{ACME, Sidecar};
use support::wait_until;

struct Case {
    name: &'static str,
    request: Vec<u8>,
    status: u16,
    code: &'static str,
}

fn get(target: &str, more: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n").into_bytes()
}

const TARGET: &str = "/v1/cache/scoring/k";

fn case(name: &'static str, request: impl Into<Vec<u8>>, status: u16, code: &'static str) -> Case {
    Case { name, request: request.into(), status, code }
}

fn cases(bearer: &str) -> Vec<Case> {
    let authorized = format!("Authorization: {bearer}\r\n");
    let groups = [
        hosts_and_origins(&authorized),
        credentials(bearer),
        paths(&authorized),
        routes(&authorized),
        own_headers(&authorized),
        broken_framing(),
        bodies(&authorized),
    ];
    groups.into_iter().flatten().collect()
}

fn hosts_and_origins(authorized: &str) -> Vec<Case> {
    let raw = |text: &str| text.replace('\n', "\r\n");
    vec![
        case("two hosts", get(TARGET, "Host: localhost\r\n"), 421, "misdirected"),
        case("a foreign host", raw("GET / HTTP/1.1\nHost: evil.example\n\n"), 421, "misdirected"),
        case(
            "a rebound host",
            raw("GET / HTTP/1.1\nHost: 127.0.0.1.nip.example:7780\n\n"),
            421,
            "misdirected",
        ),
        case(
            "a host with user info",
            raw("GET / HTTP/1.1\nHost: localhost@evil.example\n\n"),
            421,
            "misdirected",
        ),
        case("an empty host", raw("GET / HTTP/1.1\nHost: \n\n"), 421, "misdirected"),
        case("no host", raw("GET / HTTP/1.1\n\n"), 400, "malformed"),
        case("absolute form", raw("GET http://localhost/ HTTP/1.1\nHost: localhost\n\n"), 400, "malformed"),
        case(
            "absolute form to elsewhere",
            raw("GET http://evil.example/ HTTP/1.1\nHost: localhost\n\n"),
            400,
            "malformed",
        ),
        case("authority form", raw("CONNECT localhost:80 HTTP/1.1\nHost: localhost\n\n"), 400, "malformed"),
        case("two authorizations", get(TARGET, &format!("{authorized}{authorized}")), 400, "malformed"),
        case("a foreign origin", get(TARGET, "Origin: https://evil.example\r\n"), 403, "forbidden"),
        case("the null origin", get(TARGET, "Origin: null\r\n"), 403, "forbidden"),
        case(
            "two origins",
            get(TARGET, "Origin: http://localhost\r\nOrigin: http://localhost\r\n"),
            403,
            "forbidden",
        ),
    ]
}

fn credentials(bearer: &str) -> Vec<Case> {
    let refused = |name, more: &str| case(name, get(TARGET, more), 401, "unauthenticated");
    vec![
        refused("no token", ""),
        refused("another scheme", "Authorization: Basic YTpi\r\n"),
        refused("an empty bearer", "Authorization: Bearer \r\n"),
        refused("not a token", "Authorization: Bearer x.y.z\r\n"),
        refused("a token and a tail", &format!("Authorization: {bearer} tail\r\n")),
        case("a token in the query", get(&format!("{TARGET}?access_token=x"), ""), 401, "unauthenticated"),
    ]
}

fn paths(authorized: &str) -> Vec<Case> {
    let long_path = format!("/v1/cache/scoring/{}", "k".repeat(5000));
    let long_key = format!("/v1/cache/scoring/{}", "k".repeat(513));
    let malformed = |(name, path): (&'static str, &str)| case(name, get(path, authorized), 400, "malformed");
    [
        ("dot segments", "/v1/cache/scoring/../k"),
        ("encoded dot segments", "/v1/cache/%2e%2e/k"),
        ("half-encoded dot segments", "/v1/cache/.%2E/k"),
        ("dots behind an encoded slash", "/v1/cache/scoring/a%2f..%2fb"),
        ("an empty segment", "/v1//cache/scoring/k"),
        ("a trailing slash", "/v1/cache/scoring/"),
        ("a broken escape", "/v1/cache/scoring/%4"),
        ("not an escape", "/v1/cache/scoring/%zz"),
        ("an encoded NUL", "/v1/cache/scoring/%00"),
        ("an encoded newline", "/v1/cache/scoring/%0d%0aX"),
        ("overlong UTF-8", "/v1/cache/scoring/%c0%af"),
        ("not UTF-8", "/v1/cache/scoring/%ff"),
        ("a path too long", &long_path),
        ("a key too long", &long_key),
    ]
    .into_iter()
    .map(malformed)
    .collect()
}

fn routes(authorized: &str) -> Vec<Case> {
    let with_method =
        |method: &str| format!("{method} {TARGET} HTTP/1.1\r\nHost: localhost\r\n{authorized}\r\n");
    vec![
        case("a name that cannot be", get("/v1/cache/Scoring/k", authorized), 404, "not_found"),
        case("an unknown path", get("/admin", authorized), 404, "not_found"),
        case("metrics on the API", get("/metrics", authorized), 404, "not_found"),
        case("a wrong method", with_method("PATCH"), 405, "method_not_allowed"),
        case("trace", with_method("TRACE"), 405, "method_not_allowed"),
        case("an unknown query parameter", get(&format!("{TARGET}?tenant=x"), authorized), 400, "malformed"),
    ]
}

fn own_headers(authorized: &str) -> Vec<Case> {
    let with = |more: &str| get(TARGET, &format!("{authorized}{more}"));
    let tenant = format!("Outrigger-Tenant: {ACME}\r\n");
    vec![
        case("a foreign tenant", with(&tenant), 403, "forbidden"),
        case("a tenant that is none", with("Outrigger-Tenant: x\r\n"), 403, "forbidden"),
        case("an empty tenant", with("Outrigger-Tenant: \r\n"), 403, "forbidden"),
        case("two tenants", with(&tenant.repeat(2)), 403, "forbidden"),
        case("a timeout of zero", with("Outrigger-Timeout-Ms: 0\r\n"), 400, "malformed"),
        case("a timeout that is none", with("Outrigger-Timeout-Ms: soon\r\n"), 400, "malformed"),
        case("an idempotency key", with("Idempotency-Key: a\r\n"), 400, "idempotency_not_supported"),
    ]
}

/// What hyper refuses by itself.
fn broken_framing() -> Vec<Case> {
    vec![
        case("a space before the colon", get(TARGET, "X-A : b\r\n"), 400, "malformed"),
        case("NUL in a header", get(TARGET, "X-A: a\0b\r\n"), 400, "malformed"),
        case(
            "no HTTP",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n".to_vec(),
            400,
            "malformed",
        ),
        case("an unknown version", b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n".to_vec(), 400, "malformed"),
        case("two lengths", get(TARGET, "Content-Length: 1\r\nContent-Length: 2\r\n"), 400, "malformed"),
        case("a negative length", get(TARGET, "Content-Length: -1\r\n"), 400, "malformed"),
        case("too many headers", get(TARGET, &"X-A: b\r\n".repeat(300)), 413, "too_large"),
        case("a head too large", get(TARGET, &format!("X-A: {}\r\n", "b".repeat(200_000))), 413, "too_large"),
    ]
}

fn bodies(authorized: &str) -> Vec<Case> {
    const JSON: &str = "Content-Type: application/json\r\n";
    let head = format!("POST /v1/ratelimit/check HTTP/1.1\r\nHost: localhost\r\n{authorized}");
    let typed =
        |body: &str, media: &str| format!("{head}{media}Content-Length: {}\r\n\r\n{body}", body.len());
    let json = |body: &str| typed(body, JSON);
    let deep = format!("{{\"checks\":{}{}}}", "[".repeat(500), "]".repeat(500));
    let foreign = r#"{"checks":[{"limit":"api","key":"k","tenant":"x"}]}"#;
    vec![
        case("no media type", typed("{}", ""), 415, "unsupported_media_type"),
        case(
            "another media type",
            typed("{}", "Content-Type: text/plain\r\n"),
            415,
            "unsupported_media_type",
        ),
        case("no JSON", json("{"), 400, "malformed"),
        case("an empty body", json(""), 400, "malformed"),
        case("two documents", json("{\"checks\":[]} {}"), 400, "malformed"),
        case("an unknown field", json(foreign), 422, "invalid"),
        case("a wrong type", json("{\"checks\":{}}"), 422, "invalid"),
        case("no checks", json("{\"checks\":[]}"), 422, "invalid"),
        case("deep nesting", json(&deep), 422, "invalid"),
        case(
            "a declared length over the limit",
            format!("{head}{JSON}Content-Length: 99999999999\r\n\r\n"),
            413,
            "too_large",
        ),
    ]
}

#[test]
fn each_hostile_request_is_refused_with_a_problem_document() {
    let sidecar = Sidecar::dev();
    let bearer = sidecar.bearer(ACME);
    let cases = cases(&bearer);
    assert!(cases.len() >= 40);
    let mut wrong = Vec::new();
    for case in &cases {
        for unix in [false, true] {
            let mut client = if unix { sidecar.socket_client() } else { sidecar.client() };
            let sent = client.write_raw(&case.request);
            let reply = client.read_reply(false);
            match reply {
                Ok(reply) if reply.status == case.status && reply.json()["code"] == case.code => {
                    reply.problem(case.status, case.code);
                }
                other => wrong.push(format!(
                    "{} (unix: {unix}): sent {sent:?}, got {other:?}, wanted {} {}",
                    case.name, case.status, case.code
                )),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let reply = sidecar.client().send("GET", "/v1/cache/scoring/k", &[("Authorization", &bearer)], b"");
    reply.problem(404, "not_found");
}

#[test]
fn a_service_that_names_a_tenant_wrongly_is_told_how_and_no_other_is() {
    let sidecar = Sidecar::dev();
    let service = |subject: &str| {
        let token = sidecar.token_with(&["--service", "--subject", subject, "--scope", "tenant:admin"]);
        format!("Bearer {token}")
    };
    let (listed, stranger) = (service("system:serviceaccount:leads:scoring"), service("stranger"));
    let upper = ACME.to_uppercase();
    let ask = |bearer: &str, tenants: &[&str]| {
        let named = tenants.iter().map(|tenant| ("Outrigger-Tenant", *tenant));
        let headers: Vec<_> = named.chain([("Authorization", bearer)]).collect();
        sidecar.client().send("GET", TARGET, &headers, b"")
    };
    ask(&listed, &[ACME]).problem(404, "not_found");
    ask(&listed, &[]).problem(403, "forbidden");
    for wrong in [&["x"][..], &[""], &[&upper], &[ACME, ACME]] {
        ask(&listed, wrong).problem(400, "malformed");
        ask(&stranger, wrong).problem(403, "forbidden");
    }
}

#[test]
fn a_smuggled_request_is_not_served() {
    let sidecar = Sidecar::dev();
    let bearer = sidecar.bearer(ACME);
    let request = format!(
        "POST /v1/ratelimit/check HTTP/1.1\r\nHost: localhost\r\nAuthorization: {bearer}\r\nContent-Type: application/json\r\n\
         Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /v1/cache/scoring/k HTTP/1.1\r\nHost: localhost\r\nAuthorization: {bearer}\r\n\r\n"
    );
    let mut client: Client = sidecar.client();
    client.write_raw(request.as_bytes()).unwrap();
    let first = client.read_reply(false).unwrap();
    assert_eq!(first.status, 400, "{first:?}");
    let second = client.read_reply(false);
    assert!(second.is_err(), "a second request was served on the connection: {second:?}");
}

#[test]
fn bodies_on_their_way_are_bounded_together() {
    const BODY_BYTES: usize = 8_000_000;
    let sidecar = Sidecar::dev();
    let bearer = sidecar.bearer(ACME);
    let head = format!(
        "POST /v1/cache/profiles:batchPut HTTP/1.1\r\nHost: localhost\r\nAuthorization: {bearer}\r\n\
         Content-Type: application/json\r\nOutrigger-Timeout-Ms: 60000\r\nContent-Length: {BODY_BYTES}\r\n\r\n"
    );
    let most = vec![b' '; BODY_BYTES - 1];
    let send = || {
        let mut client = sidecar.client();
        client.write_raw(head.as_bytes()).unwrap();
        // Refused in the middle, the connection is closed: then this fails.
        (client.write_raw(&most).is_ok(), client)
    };
    let held: Vec<_> = (0..36).map(|_| send()).collect();
    wait_until("a body to be refused", Duration::from_secs(20), || {
        let metrics = sidecar.admin_client().send("GET", "/metrics", &[], b"").text();
        metrics.lines().any(|line| {
            line.starts_with("outrigger_request_duration_seconds_count")
                && line.contains(r#"outcome="unavailable""#)
                && line.contains(r#"primitive="cache""#)
                && !line.ends_with(" 0")
        })
    });
    let small = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    let check = br#"{"checks":[{"limit":"api","key":"k","cost":0}]}"#;
    assert_eq!(sidecar.client().send("POST", "/v1/ratelimit/check", &small, check).status, 200);
    drop(held);
    let value = vec![b'x'; 200_000];
    wait_until("room again", Duration::from_secs(20), || {
        sidecar.client().send("PUT", "/v1/cache/profiles/k", &small, &value).status == 204
    });
}
