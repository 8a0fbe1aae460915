//! Raw bytes that no honest client sends: each is refused with a problem document, and the process lives on.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use support::client::Client;
use support::sidecar::{ACME, Sidecar};

struct Case {
    name: &'static str,
    request: Vec<u8>,
    status: u16,
    code: &'static str,
}

fn get(target: &str, more: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n").into_bytes()
}

fn cases(bearer: &str) -> Vec<Case> {
    let authorized = format!("Authorization: {bearer}\r\n");
    let mut cases = Vec::new();
    let mut add = |name, request: Vec<u8>, status, code| cases.push(Case { name, request, status, code });
    let target = "/v1/cache/scoring/k";

    // Heads.
    add("two hosts", get(target, "Host: localhost\r\n"), 421, "misdirected");
    add("a foreign host", b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_vec(), 421, "misdirected");
    add(
        "a rebound host",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1.nip.example:7780\r\n\r\n".to_vec(),
        421,
        "misdirected",
    );
    add(
        "a host with user info",
        b"GET / HTTP/1.1\r\nHost: localhost@evil.example\r\n\r\n".to_vec(),
        421,
        "misdirected",
    );
    add("no host", b"GET / HTTP/1.1\r\n\r\n".to_vec(), 400, "malformed");
    add(
        "absolute form",
        b"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        400,
        "malformed",
    );
    add(
        "absolute form to elsewhere",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        400,
        "malformed",
    );
    add(
        "authority form",
        b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        400,
        "malformed",
    );
    add("two authorizations", get(target, &format!("{authorized}{authorized}")), 400, "malformed");
    add("a foreign origin", get(target, "Origin: https://evil.example\r\n"), 403, "forbidden");
    add("the null origin", get(target, "Origin: null\r\n"), 403, "forbidden");
    add(
        "two origins",
        get(target, "Origin: http://localhost\r\nOrigin: http://localhost\r\n"),
        403,
        "forbidden",
    );

    // Tokens.
    add("no token", get(target, ""), 401, "unauthenticated");
    add("another scheme", get(target, "Authorization: Basic YTpi\r\n"), 401, "unauthenticated");
    add("an empty bearer", get(target, "Authorization: Bearer \r\n"), 401, "unauthenticated");
    add("not a token", get(target, "Authorization: Bearer x.y.z\r\n"), 401, "unauthenticated");
    add(
        "a token and a tail",
        get(target, &format!("Authorization: {bearer} tail\r\n")),
        401,
        "unauthenticated",
    );
    add("a token in the query", get(&format!("{target}?access_token=x"), ""), 401, "unauthenticated");

    // Paths.
    for (name, path) in [
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
    ] {
        add(name, get(path, &authorized), 400, "malformed");
    }
    let long_path = format!("/v1/cache/scoring/{}", "k".repeat(5000));
    add("a path too long", get(&long_path, &authorized), 400, "malformed");
    let long_key = format!("/v1/cache/scoring/{}", "k".repeat(513));
    add("a key too long", get(&long_key, &authorized), 400, "malformed");
    add("a name that cannot be", get("/v1/cache/Scoring/k", &authorized), 404, "not_found");
    add("an unknown path", get("/admin", &authorized), 404, "not_found");
    add("metrics on the API", get("/metrics", &authorized), 404, "not_found");
    add(
        "a wrong method",
        format!("PATCH {target} HTTP/1.1\r\nHost: localhost\r\n{authorized}\r\n").into_bytes(),
        405,
        "method_not_allowed",
    );
    add(
        "trace",
        format!("TRACE {target} HTTP/1.1\r\nHost: localhost\r\n{authorized}\r\n").into_bytes(),
        405,
        "method_not_allowed",
    );

    // Other headers.
    add(
        "a foreign tenant",
        get(target, &format!("{authorized}Outrigger-Tenant: {ACME}\r\n")),
        403,
        "forbidden",
    );
    add(
        "a tenant that is none",
        get(target, &format!("{authorized}Outrigger-Tenant: x\r\n")),
        400,
        "malformed",
    );
    add(
        "two tenants",
        get(target, &format!("{authorized}Outrigger-Tenant: {ACME}\r\nOutrigger-Tenant: {ACME}\r\n")),
        400,
        "malformed",
    );
    add(
        "a timeout of zero",
        get(target, &format!("{authorized}Outrigger-Timeout-Ms: 0\r\n")),
        400,
        "malformed",
    );
    add(
        "a timeout that is none",
        get(target, &format!("{authorized}Outrigger-Timeout-Ms: soon\r\n")),
        400,
        "malformed",
    );
    add(
        "an idempotency key",
        get(target, &format!("{authorized}Idempotency-Key: a\r\n")),
        400,
        "idempotency_not_supported",
    );
    add("an unknown query parameter", get(&format!("{target}?tenant=x"), &authorized), 400, "malformed");

    // What hyper refuses by itself.
    add("a space before the colon", get(target, "X-A : b\r\n"), 400, "malformed");
    add("NUL in a header", get(target, "X-A: a\0b\r\n"), 400, "malformed");
    add("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n".to_vec(), 400, "malformed");
    add("an unknown version", b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n".to_vec(), 400, "malformed");
    add("two lengths", get(target, "Content-Length: 1\r\nContent-Length: 2\r\n"), 400, "malformed");
    add("a negative length", get(target, "Content-Length: -1\r\n"), 400, "malformed");
    add("too many headers", get(target, &"X-A: b\r\n".repeat(300)), 413, "too_large");
    add("a head too large", get(target, &format!("X-A: {}\r\n", "b".repeat(200_000))), 413, "too_large");

    // Bodies.
    let post = |body: &str, more: &str| {
        format!(
            "POST /v1/ratelimit/check HTTP/1.1\r\nHost: localhost\r\n{authorized}{more}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    };
    let json = "Content-Type: application/json\r\n";
    add("no media type", post("{}", ""), 415, "unsupported_media_type");
    add("another media type", post("{}", "Content-Type: text/plain\r\n"), 415, "unsupported_media_type");
    add("no JSON", post("{", json), 400, "malformed");
    add("an empty body", post("", json), 400, "malformed");
    add("two documents", post("{\"checks\":[]} {}", json), 400, "malformed");
    add(
        "an unknown field",
        post("{\"checks\":[{\"limit\":\"api\",\"key\":\"k\",\"tenant\":\"x\"}]}", json),
        422,
        "invalid",
    );
    add("a wrong type", post("{\"checks\":{}}", json), 422, "invalid");
    add("no checks", post("{\"checks\":[]}", json), 422, "invalid");
    let deep = format!("{{\"checks\":{}{}}}", "[".repeat(500), "]".repeat(500));
    let deep_request = post(&deep, json);
    add("deep nesting", deep_request, 422, "invalid");
    let declared = format!(
        "POST /v1/ratelimit/check HTTP/1.1\r\nHost: localhost\r\n{authorized}{json}Content-Length: 99999999999\r\n\r\n"
    );
    add("a declared length over the limit", declared.into_bytes(), 413, "too_large");
    cases
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
