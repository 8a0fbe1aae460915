//! `outrigger check`: configuration, policies and backends, every problem at once.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::process::Command;

use serde_json::Value;
use support::configuration::GOOD;
use support::sidecar::{BINARY, embedded_config, write_config};

#[test]
fn check_reports_configuration_and_policies_together() {
    let directory = tempfile::tempdir().unwrap();
    let policies = directory.path().join("policies");
    std::fs::create_dir(&policies).unwrap();
    std::fs::write(policies.join("access.yaml"), "kind: acces\n").unwrap();
    let path = directory.path().join("proxy.yaml");
    std::fs::write(&path, GOOD.replace("admin:", "amdin:")).unwrap();
    let check = |more: &[&str]| {
        let output = Command::new(BINARY).args(["check", "--config"]).arg(&path).args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let text = check(&[]);
    for expected in ["proxy.yaml:1:31", "did you mean `admin`?", "access.yaml:1:7", "did you mean `access`?"]
    {
        assert!(text.contains(expected), "{text}");
    }
    let problems: Vec<Value> = serde_json::from_str(&check(&["--json"])).unwrap();
    assert_eq!(problems.len(), 2, "{problems:?}");
    for problem in problems {
        let members: Vec<_> = problem.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(members, ["file", "line", "column", "pointer", "message", "expected"]);
    }
}

#[test]
fn check_finds_access_rules_about_issuers_that_the_configuration_does_not_have() {
    let directory = tempfile::tempdir().unwrap();
    let policies = directory.path().join("policies");
    std::fs::create_dir(&policies).unwrap();
    let service = "kind: access\nservices:\n  - {subject: s, issuer: dve, act_for: any}\n";
    std::fs::write(policies.join("access.yaml"), service).unwrap();
    let path = directory.path().join("proxy.yaml");
    // Also where the configuration is wrong elsewhere.
    for text in [GOOD.to_owned(), GOOD.replace("admin:", "amdin:")] {
        std::fs::write(&path, text).unwrap();
        let output = Command::new(BINARY).args(["check", "--config"]).arg(&path).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        for expected in [
            "error: no issuer is called `dve`; did you mean `dev`?",
            "access.yaml:3:26",
            "3 |   - {subject: s, issuer: dve, act_for: any}\n  |                          ^^^",
            "= help: the name of an issuer in `identity.issuers`: `dev`",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
    }
}

#[test]
fn check_tries_each_backend_and_says_where_a_dead_one_is_configured() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("policies")).unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let path = directory.path().join("proxy.yaml");
    std::fs::write(&path, GOOD.replace("127.0.0.1:17001", &closed.to_string())).unwrap();
    let output = Command::new(BINARY).args(["check", "--json", "--config"]).arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let problems: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let pointers: Vec<_> = problems.iter().map(|problem| problem["pointer"].as_str().unwrap()).collect();
    assert!(pointers.contains(&"/identity/issuers/0/jwks"), "{problems:?}");
    assert!(pointers.iter().any(|pointer| pointer.starts_with("/redis/limits")), "{problems:?}");
    assert!(problems.iter().all(|problem| problem["line"].is_u64()), "{problems:?}");
}

/// On the shared cluster, whose nodes do not evict.
#[test]
fn check_recommends_eviction_for_an_instance_of_the_cache_alone_and_does_not_fail() {
    let nodes = rig::shared_redis_nodes();
    for (sections, warned) in [
        ("ratelimit: {backend: embedded}\ncache: {backend: redis, redis: main}\n", true),
        ("ratelimit: {backend: redis, redis: main}\ncache: {backend: redis, redis: main}\n", false),
        ("ratelimit: {backend: redis, redis: main}\ncache: {backend: embedded}\n", false),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let redis = format!("redis:\n  main: {{nodes: [{}]}}\n{sections}", nodes.join(", "));
        let config = write_config(directory.path(), &redis, "");
        let output = Command::new(BINARY).args(["check", "--config"]).arg(&config).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{text}");
        let line =
            text.lines().find(|line| line.starts_with("redis.main: warning: maxmemory-policy is noeviction"));
        assert_eq!(line.is_some(), warned, "{sections}\n{text}");
        assert!(line.is_none_or(|line| line.contains("`maxmemory-policy allkeys-lru`")), "{text}");
    }
}

#[test]
fn check_warns_where_one_tenant_may_take_what_all_have() {
    for (limits, warned) in [
        ("", None),
        ("limits: {tenant_bytes: 268435455}", None),
        ("limits: {tenant_bytes: 268435456}", Some("limits.tenant_bytes")),
        ("limits: {body_bytes: 536870912}", Some("limits.tenant_bytes")),
        ("limits: {cache_db_bytes: 1073741825}", None),
        ("limits: {cache_db_bytes: 1073741824}", Some("limits.cache_db_bytes")),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let config = embedded_config(directory.path(), limits);
        let output = Command::new(BINARY).args(["check", "--config"]).arg(&config).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{text}");
        let found = text.lines().find_map(|line| Some(line.split_once(": warning: one tenant may")?.0));
        let found =
            found.or_else(|| text.lines().find_map(|line| Some(line.split_once(": warning: `cache.db`")?.0)));
        assert_eq!(found, warned, "{limits}\n{text}");
    }
}
