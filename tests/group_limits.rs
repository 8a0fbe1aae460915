//! What a tenant may have of consumer groups, and what it hears beyond that.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::time::Duration;

use serde_json::json;
use support::client::{Client, Reply};
use support::postgres::OnPostgres;
use support::sidecar::{ACME, GLOBEX, Sidecar, embedded_config};

const POLICY: &str = "kind: events\ntopics:\n  leads: {groups: {max_per_tenant: 4}}\n";
const BOUND: Duration = Duration::from_secs(20);

fn pull(sidecar: &Sidecar, tenant: &str, group: &str, wait_ms: u64) -> Client {
    let (bearer, mut client) = (sidecar.bearer(tenant), sidecar.client());
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    let body = json!({"group": group, "wait_ms": wait_ms}).to_string();
    client.write_request("POST", "/v1/events/leads:pull", &headers, body.as_bytes()).unwrap();
    client
}

fn pulled(sidecar: &Sidecar, tenant: &str, group: &str, wait_ms: u64) -> Reply {
    pull(sidecar, tenant, group, wait_ms).read_reply(false).unwrap()
}

/// One sidecar of each store, where two pulls of a tenant may wait.
fn on_both(test: fn(&Sidecar)) {
    let directory = tempfile::tempdir().unwrap();
    let config = embedded_config(directory.path(), "store: embedded\nevents: {tenant_pulls: 2}\n");
    let text = std::fs::read_to_string(&config).unwrap();
    let shipped = format!("policies: {}/policies", env!("CARGO_MANIFEST_DIR"));
    assert!(text.contains(&shipped), "{text}");
    let policies = directory.path().join("policies");
    std::fs::create_dir(&policies).unwrap();
    for entry in std::fs::read_dir(format!("{}/policies", env!("CARGO_MANIFEST_DIR"))).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, policies.join(path.file_name().unwrap())).unwrap();
    }
    std::fs::write(policies.join("events.yaml"), POLICY).unwrap();
    std::fs::write(&config, text.replace(&shipped, &format!("policies: {}", policies.display()))).unwrap();
    test(&Sidecar::serve_in(directory, &config));
    let heartbeat = "events: {heartbeat_ms: 200}";
    let on = OnPostgres::new().with_policy("events.yaml", POLICY);
    test(&on.with(heartbeat, "events: {tenant_pulls: 2}").sidecar());
}

#[test]
fn a_tenant_at_its_bounds_is_told_so_and_no_other_is_concerned() {
    on_both(|sidecar| {
        let waiting = ["a", "b"].map(|group| pull(sidecar, ACME, group, 8_000));
        let refused = "outrigger_events_pulls_refused_total";
        support::wait_until("both to wait", BOUND, || {
            let reply = pulled(sidecar, ACME, "c", 1);
            if reply.status == 503 {
                assert_eq!(reply.header("retry-after"), Some("1"));
                let problem = reply.problem(503, "overloaded");
                assert!(problem["detail"].as_str().unwrap().contains("`events.tenant_pulls`"), "{problem}");
            }
            reply.status == 503
        });
        assert!(sidecar.metric(refused) >= 1.0);
        assert_eq!(pulled(sidecar, ACME, "c", 0).status, 200, "who does not wait is not refused");
        assert_eq!(pulled(sidecar, GLOBEX, "a", 1).status, 200);
        // Three groups are there, or will be: one more, and no fifth.
        assert_eq!(pulled(sidecar, ACME, "d", 0).status, 200);
        let problem = pulled(sidecar, ACME, "e", 0).problem(429, "quota_exhausted");
        assert!(problem["detail"].as_str().unwrap().contains("`groups.max_per_tenant`"), "{problem}");
        assert_eq!((&problem["retryable"], pulled(sidecar, GLOBEX, "e", 0).status), (&json!(false), 200));
        for mut waited in waiting {
            assert_eq!(waited.read_reply(false).unwrap().status, 200);
        }
        assert_eq!(pulled(sidecar, ACME, "a", 1).status, 200, "and then others may wait");
    });
}
