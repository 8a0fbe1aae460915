//! Rate limits over HTTP, the same on both backends: `docs/ratelimit.md` and section 3 of the contract.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::client::Reply;
use support::sidecar::{ACME, Sidecar, write_config};
use support::wait_until;

const QUOTA_EXCEEDED: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";

/// Runs a promise on `outrigger dev` and on the shared Redis Cluster, each time with a tenant nobody knows.
fn on_both(promise: impl Fn(&Sidecar, &str)) {
    promise(&Sidecar::dev(), &fresh_tenant());
    // What is promised is counting, however slow the machine is.
    let nodes = rig::shared_redis_nodes().join(", ");
    promise(&on_redis(&nodes, "up", 1000), &fresh_tenant());
}

fn fresh_tenant() -> String {
    uuid::Uuid::new_v4().to_string()
}

fn on_redis(nodes: &str, state: &str, budget_ms: u64) -> Sidecar {
    let directory = tempfile::tempdir().unwrap();
    let sections = format!(
        "redis:\n  main: {{nodes: [{nodes}]}}\nratelimit: {{backend: redis, redis: main, budget_ms: {budget_ms}}}\n"
    );
    let config = write_config(directory.path(), &sections, "");
    let sidecar = Sidecar::serve_in(directory, &config);
    sidecar.wait_for_backend("redis.main", state);
    sidecar
}

fn post(sidecar: &Sidecar, token: &str, body: &str) -> Reply {
    let bearer = format!("Bearer {token}");
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    sidecar.client().send("POST", "/v1/ratelimit/check", &headers, body.as_bytes())
}

fn check(sidecar: &Sidecar, token: &str, checks: Value) -> Reply {
    post(sidecar, token, &json!({ "checks": checks }).to_string())
}

#[test]
fn a_check_that_passes_says_what_is_left() {
    on_both(|sidecar, tenant| {
        let token = sidecar.token(tenant);
        let reply = check(sidecar, &token, json!([{"limit": "api", "key": "/leads", "cost": 1}]));
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert_eq!(reply.header("ratelimit-policy"), Some(r#""api";q=100;w=60"#));
        assert_eq!(reply.header("ratelimit"), Some(r#""api";r=19;t=1"#));
        assert_eq!(
            reply.json(),
            json!({"allowed": true, "degraded": false, "results": [
                {"limit": "api", "key": "/leads", "remaining": 19, "retry_after_ms": 0, "reset_ms": 600},
            ]})
        );
        let looked = check(sidecar, &token, json!([{"limit": "api", "key": "/é \"quoted\"", "cost": 0}]));
        let result = &looked.json()["results"][0];
        assert_eq!((&result["key"], &result["remaining"]), (&json!("/é \"quoted\""), &json!(20)));
        let both =
            check(sidecar, &token, json!([{"limit": "login", "key": "a"}, {"limit": "api", "key": "b"}]));
        assert_eq!(both.header("ratelimit-policy"), Some(r#""login";q=10;w=60, "api";q=100;w=60"#));
        assert_eq!(both.header("ratelimit"), Some(r#""login";r=4;t=6, "api";r=19;t=1"#));
    });
}

#[test]
fn a_check_that_is_refused_says_when_to_come_again() {
    on_both(|sidecar, tenant| {
        let token = sidecar.token(tenant);
        let whole = check(sidecar, &token, json!([{"limit": "login", "key": "ada", "cost": 5}]));
        assert_eq!(whole.status, 200, "{whole:?}");
        let checks = json!([{"limit": "api", "key": "/login"}, {"limit": "login", "key": "ada", "cost": 2}]);
        let reply = check(sidecar, &token, checks);
        let problem = reply.problem(429, "rate_limited");
        assert_eq!(problem["type"], QUOTA_EXCEEDED);
        assert_eq!(problem["violated-policies"], json!(["login"]));
        assert_eq!((&problem["degraded"], &problem["retryable"]), (&json!(false), &json!(true)));
        let api =
            json!({"limit": "api", "key": "/login", "remaining": 20, "retry_after_ms": 0, "reset_ms": 0});
        assert_eq!(problem["results"][0], api, "nothing is taken from the limit that had enough");
        let wait_ms = problem["results"][1]["retry_after_ms"].as_u64().unwrap();
        assert!((10_000..=12_000).contains(&wait_ms), "{problem}");
        assert_eq!(reply.header("retry-after"), Some(wait_ms.div_ceil(1000).to_string().as_str()));
        assert_eq!(reply.header("ratelimit-policy"), Some(r#""api";q=100;w=60, "login";q=10;w=60"#));
        assert!(reply.header("ratelimit").unwrap().contains(r#""login";r=0;t=30"#), "{reply:?}");
        let looked = check(sidecar, &token, json!([{"limit": "login", "key": "ada", "cost": 0}]));
        assert_eq!(
            (looked.status, &looked.json()["allowed"]),
            (200, &json!(true)),
            "a look is never refused"
        );
    });
}

#[test]
fn the_same_limit_and_key_twice_add_up() {
    on_both(|sidecar, tenant| {
        let token = sidecar.token(tenant);
        let twice =
            json!([{"limit": "login", "key": "k", "cost": 3}, {"limit": "login", "key": "k", "cost": 2}]);
        let reply = check(sidecar, &token, twice);
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(reply.json()["results"][0]["remaining"], 0);
        assert_eq!(reply.json()["results"][1]["remaining"], 0);
        let more =
            json!([{"limit": "login", "key": "k", "cost": 3}, {"limit": "login", "key": "k", "cost": 3}]);
        let problem = check(sidecar, &token, more).problem(422, "invalid");
        assert_eq!(problem["errors"][0]["pointer"], "/checks/1/cost");
    });
}

#[test]
fn what_is_wrong_with_a_request_is_named() {
    let sidecar = Sidecar::dev();
    let token = sidecar.token(ACME);
    let seventeen = json!({"checks": vec![json!({"limit": "api", "key": "k"}); 17]}).to_string();
    let long = json!({"checks": [{"limit": "api", "key": "k".repeat(513)}]}).to_string();
    for (body, status, code, pointer) in [
        ("{", 400, "malformed", ""),
        (r#"{"checks":[]}"#, 422, "invalid", "/checks"),
        (seventeen.as_str(), 422, "invalid", "/checks"),
        (r#"{"checks":[{"limit":"api","key":"k","cost":21}]}"#, 422, "invalid", "/checks/0/cost"),
        (r#"{"checks":[{"limit":"api","key":"k","cost":-1}]}"#, 422, "invalid", "/checks/0/cost"),
        (r#"{"checks":[{"limit":"api","key":"k","cost":0.5}]}"#, 422, "invalid", "/checks/0/cost"),
        (r#"{"checks":[{"limit":"api","key":""}]}"#, 422, "invalid", "/checks/0/key"),
        (r#"{"checks":[{"limit":"api","key":"a\u0000"}]}"#, 422, "invalid", "/checks/0/key"),
        (long.as_str(), 422, "invalid", "/checks/0/key"),
        (r#"{"checks":[{"limit":"Api","key":"k"}]}"#, 422, "invalid", "/checks/0/limit"),
        (
            r#"{"checks":[{"limit":"api","key":"k"},{"limit":"none","key":"k"}]}"#,
            404,
            "not_found",
            "/checks/1/limit",
        ),
        (r#"{"checks":[{"limit":"api","key":"k","tenant":"x"}]}"#, 422, "invalid", "/checks/0/tenant"),
    ] {
        let reply = post(&sidecar, &token, body);
        let problem = reply.problem(status, code);
        if !pointer.is_empty() {
            assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
            assert!(!problem["errors"][0]["detail"].as_str().unwrap().is_empty());
        }
    }
    let untouched = check(&sidecar, &token, json!([{"limit": "api", "key": "k", "cost": 0}]));
    assert_eq!(untouched.json()["results"][0]["remaining"], 20, "a wrong request takes nothing");
}

#[test]
fn a_token_checks_only_what_policy_lets_it() {
    let sidecar = Sidecar::dev();
    let mint = |scope| sidecar.token_with(&["--tenant", ACME, "--subject", "test", "--scope", scope]);
    let checks = json!([{"limit": "api", "key": "k"}]);
    assert_eq!(check(&sidecar, &mint("limits:check"), checks.clone()).status, 200);
    check(&sidecar, &mint("scoring:read"), checks).problem(403, "forbidden");
}

#[test]
fn a_tier_has_its_own_quota_and_an_unknown_one_that_of_free() {
    on_both(|sidecar, _| {
        for (tier, remaining) in [("free", 20), ("pro", 100), ("enterprise", 1000), ("platinum", 20)] {
            let tenant = fresh_tenant();
            let token = sidecar.token_with(&["--tenant", &tenant, "--subject", "test", "--tier", tier]);
            let reply = check(sidecar, &token, json!([{"limit": "api", "key": "k", "cost": 0}]));
            assert_eq!(reply.json()["results"][0]["remaining"], remaining, "{tier}");
        }
    });
}

#[test]
fn what_was_taken_more_than_a_second_ago_survives_kill_9() {
    let sidecar = Sidecar::dev();
    let token = sidecar.token(ACME);
    let all = json!([{"limit": "login", "key": "k", "cost": 5}]);
    assert_eq!(check(&sidecar, &token, all.clone()).status, 200);
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end {
        std::thread::park_timeout(Duration::from_millis(50));
    }
    let sidecar = Sidecar::dev_in(sidecar.kill(), &[]);
    check(&sidecar, &token, all).problem(429, "rate_limited");
}

#[test]
fn without_redis_each_limit_answers_as_its_policy_says() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let sidecar = on_redis(&nobody.to_string(), "down", 20);
    let token = sidecar.token(ACME);
    let local = check(&sidecar, &token, json!([{"limit": "api", "key": "k"}]));
    assert_eq!((local.status, &local.json()["degraded"]), (200, &json!(true)), "{local:?}");
    let closed = check(&sidecar, &token, json!([{"limit": "login", "key": "k"}]));
    assert_eq!(closed.problem(429, "rate_limited")["degraded"], true);
    assert_eq!(closed.header("retry-after"), Some("1"));
    // The breaker opens, and then a check waits for nothing.
    wait_until("a check that does not wait", Duration::from_secs(10), || {
        let began = Instant::now();
        check(&sidecar, &token, json!([{"limit": "api", "key": "k", "cost": 0}]));
        began.elapsed() < Duration::from_millis(10)
    });
    let metrics = sidecar.admin_client().send("GET", "/metrics", &[], b"").text();
    for line in [
        r#"outrigger_ratelimit_decisions_total{outcome="allowed",source="backend"} 0"#,
        r#"outrigger_ratelimit_decisions_total{outcome="denied",source="closed"} 1"#,
        "outrigger_ratelimit_breakers_open 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in the metrics");
    }
}
