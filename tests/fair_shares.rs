//! One tenant's many or slow calls leave the others room: for their bodies, their replies, their calls, and in the embedded store.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rig::PostgresRole;
use support::client::{Client, Reply};
use support::http2::Http2;
use support::postgres::OnPostgres;
use support::sidecar::{ACME, GLOBEX, Sidecar, embedded_config, with_own_policy};
use support::wait_until;

const VALUE_BYTES: usize = 1_000_000;

fn sidecar(limits: &str) -> Sidecar {
    let directory = tempfile::tempdir().unwrap();
    let config = embedded_config(directory.path(), limits);
    // How slow this machine's disk is, is not what is tested here.
    let patient = ("cache: {backend: embedded}", "cache: {backend: embedded, budget_ms: 8000}");
    let text = std::fs::read_to_string(&config).unwrap().replace(patient.0, patient.1);
    std::fs::write(&config, text).unwrap();
    Sidecar::serve_in(directory, &config)
}

/// One with the embedded store.
fn with_store(limits: &str) -> Sidecar {
    sidecar(&format!("store: embedded\nevents: {{}}\n{limits}"))
}

/// What a call of events answers, on a connection of its own.
fn post(sidecar: &Sidecar, bearer: &str, path: &str, media_type: &str, body: &str) -> Reply {
    let headers = [("Authorization", bearer), ("Content-Type", media_type)];
    sidecar.client().send("POST", path, &headers, body.as_bytes())
}

/// Publishes so many thousand events of 1 KB to the topic `sla`.
fn fill_sla(sidecar: &Sidecar, bearer: &str, thousands: usize) {
    let data = "x".repeat(1000);
    for call in 0..thousands {
        let of = |at: usize| {
            format!(
                "{{\"specversion\":\"1.0\",\"id\":\"{call}-{at}\",\"source\":\"s\",\"type\":\"made\",\"data\":\"{data}\"}}"
            )
        };
        let events: Vec<String> = (0..1000).map(of).collect();
        let body = format!("[{}]", events.join(","));
        let reply = post(sidecar, bearer, "/v1/events/sla", "application/cloudevents-batch+json", &body);
        assert_eq!(reply.status, 202, "{}", reply.text());
    }
}

/// A request that is sent some hundreds of times a second by callers who do not wait for the answer.
struct Attack<'s> {
    sidecar: &'s Sidecar,
    bearer: &'s str,
    method: &'s str,
    path: &'s str,
    body: &'s str,
}

impl Attack<'_> {
    /// Goes on while `others` does what it does, which begins after a few seconds of it. How many calls there were.
    fn beside(&self, others: impl FnOnce()) -> usize {
        let over_with = AtomicBool::new(false);
        let calls = AtomicUsize::new(0);
        let patience = ("Outrigger-Timeout-Ms", "5");
        let headers = [("Authorization", self.bearer), ("Content-Type", "application/json"), patience];
        let attacker = || {
            while !over_with.load(Relaxed) {
                // Its time is over in the middle of a reply, too.
                let mut client = self.sidecar.client();
                client.write_request(self.method, self.path, &headers, self.body.as_bytes()).unwrap();
                client.read_reply(false).ok();
                calls.fetch_add(1, Relaxed);
                std::thread::park_timeout(Duration::from_millis(5));
            }
        };
        std::thread::scope(|scope| {
            let attackers: Vec<_> = (0..32).map(|_| scope.spawn(attacker)).collect();
            wait_until("many calls", Duration::from_secs(60), || calls.load(Relaxed) > 3000);
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(others));
            over_with.store(true, Relaxed);
            for attacker in attackers {
                attacker.join().unwrap();
            }
            if let Err(panic) = ended {
                std::panic::resume_unwind(panic);
            }
        });
        calls.into_inner()
    }
}

/// The longest but one of a hundred.
fn p99(mut call: impl FnMut()) -> Duration {
    let mut took: Vec<Duration> = (0..100)
        .map(|_| {
            let began = Instant::now();
            call();
            began.elapsed()
        })
        .collect();
    took.sort_unstable();
    took[98]
}

/// What a read, and what publishing, pulling and settling together, of another tenant may take beside an attack on a machine that
/// others use too; without turns it was 550 ms, and more than 10 s.
const READ_BESIDE: Duration = Duration::from_millis(300);
const WORK_BESIDE: Duration = Duration::from_secs(1);

fn put(sidecar: &Sidecar, bearer: &str, key: &str) -> Reply {
    let (path, value) = (format!("/v1/cache/profiles/{key}"), vec![b'x'; VALUE_BYTES]);
    sidecar.client().send("PUT", &path, &[("Authorization", bearer)], &value)
}

/// A PUT whose body comes but for its last byte.
fn slow_put(sidecar: &Sidecar, bearer: &str, at: usize) -> Client {
    let mut client = sidecar.client();
    let head = format!(
        "PUT /v1/cache/profiles/slow-{at} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {bearer}\r\n\
         Outrigger-Timeout-Ms: 60000\r\nContent-Length: {VALUE_BYTES}\r\n\r\n"
    );
    client.write_raw(head.as_bytes()).unwrap();
    // A body that was refused ends its connection.
    if let Err(error) = client.write_raw(&vec![b'x'; VALUE_BYTES - 1]) {
        assert!(!matches!(error.kind(), std::io::ErrorKind::WouldBlock), "{error}");
    }
    client
}

fn overloads(sidecar: &Sidecar, bound: &str) -> u64 {
    let text = sidecar.admin_client().send("GET", "/metrics", &[], b"").text();
    let name = format!("outrigger_http_overloads_total{{bound=\"{bound}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn slow_bodies_of_one_tenant_or_of_four_leave_the_others_theirs() {
    // A tenant that is alone has 64 MiB, and four have 37 MiB each.
    slow_bodies_leave_the_others_theirs(&[ACME], "tenant_bodies", 200);
    let four: [String; 3] = std::array::from_fn(|_| uuid::Uuid::new_v4().to_string());
    slow_bodies_leave_the_others_theirs(&[ACME, &four[0], &four[1], &four[2]], "bodies", 100);
}

/// With so many refused for this bound.
fn slow_bodies_leave_the_others_theirs(slow: &[&str], bound: &str, refused: u64) {
    let sidecar = sidecar("");
    let (acme, globex) = (sidecar.bearer(slow[0]), sidecar.bearer(GLOBEX));
    let slow: Vec<String> = slow.iter().map(|tenant| sidecar.bearer(tenant)).collect();
    // More than all bodies together may take, were they one tenant's: 300 MB of 256 MiB.
    let mut held: Vec<Client> = (0..300).map(|at| slow_put(&sidecar, &slow[at % slow.len()], at)).collect();
    wait_until("a body over the tenant's share", Duration::from_secs(20), || {
        overloads(&sidecar, bound) > refused
    });
    // Those that were refused half-way gave back what they had: there may be room for one or two yet.
    let refused = (300..320).find_map(|at| {
        let reply = put(&sidecar, &acme, "more");
        held.push(slow_put(&sidecar, &acme, at));
        (reply.status == 503).then_some(reply)
    });
    let refused = refused.expect("a body over the tenant's share is refused");
    refused.problem(503, "overloaded");
    assert!(refused.header("retry-after").is_some());
    for key in 0..20 {
        let reply = put(&sidecar, &globex, &format!("k{key}"));
        assert_eq!(reply.status, 204, "{}", reply.text());
    }
    let small =
        sidecar.client().send("PUT", "/v1/cache/profiles/small", &[("Authorization", &acme)], b"small");
    assert_eq!(small.status, 204, "what comes in one piece is not counted: {}", small.text());
    drop(held);
    wait_until("room again", Duration::from_secs(20), || put(&sidecar, &acme, "again").status == 204);
}

#[test]
fn replies_that_one_tenant_does_not_read_leave_the_others_theirs() {
    let sidecar = sidecar("limits: {tenant_bytes: 20971520}\n");
    let (acme, globex) = (sidecar.bearer(ACME), sidecar.bearer(GLOBEX));
    let get = |bearer: &str| {
        sidecar.client().send("GET", "/v1/cache/profiles/large", &[("Authorization", bearer)], b"")
    };
    for bearer in [&acme, &globex] {
        assert_eq!(put(&sidecar, bearer, "large").status, 204);
        assert_eq!(get(bearer).status, 200);
    }
    // Pipelined, so that more is made than the kernel's buffers hold; those of a socket of this machine never grow.
    let request =
        format!("GET /v1/cache/profiles/large HTTP/1.1\r\nHost: localhost\r\nAuthorization: {acme}\r\n\r\n");
    let held: Vec<Client> = (0..100)
        .map(|_| {
            let mut client = sidecar.socket_client();
            client.write_raw(request.repeat(8).as_bytes()).unwrap();
            client
        })
        .collect();
    wait_until("a reply over the tenant's share", Duration::from_secs(20), || get(&acme).status == 503);
    get(&acme).problem(503, "overloaded");
    assert!(overloads(&sidecar, "tenant_replies") > 0);
    for _ in 0..20 {
        assert_eq!(get(&globex).status, 200);
    }
    drop(held);
    wait_until("room again", Duration::from_secs(20), || get(&acme).status == 200);
}

#[test]
fn callers_without_a_token_that_read_nothing_leave_every_tenant_its_replies() {
    let sidecar = sidecar("");
    let globex = sidecar.bearer(GLOBEX);
    assert_eq!(put(&sidecar, &globex, "large").status, 204);
    let get = || sidecar.client().send("GET", "/v1/cache/profiles/large", &[("Authorization", &globex)], b"");
    let length = sidecar.client().send("GET", "/openapi.json", &[], b"").body.len();
    // More than all large replies together may take, were these counted among them.
    let streams = 1..=127_u8;
    let connections = 256 * 1024 * 1024 / length / streams.len() + 8;
    let held: Vec<Http2> = (0..connections)
        .map(|_| {
            let mut client = Http2::open(&sidecar);
            for stream in streams.clone() {
                client.get_with(2 * (stream - 1) + 1, "/openapi.json", &[]);
            }
            client.ping();
            while client.next_frame().unwrap() != (6, 1) {}
            client
        })
        .collect();
    for _ in 0..20 {
        let reply = get();
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    assert_eq!(overloads(&sidecar, "replies"), 0);
    drop(held);
}

#[test]
fn a_tenant_with_too_many_calls_at_once_is_told_so_and_the_others_are_not() {
    let sidecar = sidecar("limits: {tenant_calls: 20}\n");
    let (acme, globex) = (sidecar.bearer(ACME), sidecar.bearer(GLOBEX));
    let get = |bearer: &str| {
        sidecar.client().send("GET", "/v1/cache/scoring/absent", &[("Authorization", bearer)], b"")
    };
    let held: Vec<Client> = (0..25).map(|at| slow_put(&sidecar, &acme, at)).collect();
    wait_until("five calls too many", Duration::from_secs(20), || overloads(&sidecar, "tenant_calls") == 5);
    let refused = get(&acme);
    assert!(refused.problem(503, "overloaded")["detail"].to_string().contains("limits.tenant_calls"));
    assert!(refused.header("retry-after").is_some());
    get(&globex).problem(404, "not_found");
    drop(held);
    wait_until("room again", Duration::from_secs(20), || get(&acme).status == 404);
}

/// Holds the rows of one tenant's groups, so that its pulls wait in the database.
const HOLD: &str = "BEGIN; SELECT FROM event_groups WHERE name LIKE 'slow%' FOR UPDATE;";

#[test]
fn forty_slow_calls_of_two_tenants_leave_a_third_its_connections_to_the_store() {
    let on = OnPostgres::new();
    let sidecar = on.sidecar();
    let second = sidecar.bearer(&uuid::Uuid::new_v4().to_string());
    let (acme, globex) = (sidecar.bearer(ACME), sidecar.bearer(GLOBEX));
    let call = |bearer: &str, path: &str, body: &str| {
        let headers = [("Authorization", bearer), ("Content-Type", "application/json")];
        sidecar.client().send("POST", path, &headers, body.as_bytes())
    };
    let pull_of = |bearer: &str, group: &str| {
        call(bearer, "/v1/events/leads:pull", &format!("{{\"group\": \"{group}\"}}"))
    };
    let pull = |bearer: &str| pull_of(bearer, "quick");
    // The calls of one group share a connection: each has one of its own.
    let of = |at: usize| if at.is_multiple_of(2) { &acme } else { &second };
    for at in 0..40 {
        assert_eq!(pull_of(of(at), &format!("slow{at}")).status, 200);
    }
    let over_with = AtomicBool::new(false);
    let again = |at: usize| -> Vec<u16> {
        let pulls = std::iter::repeat_with(|| pull_of(of(at), &format!("slow{at}")).status);
        pulls.take_while(|_| !over_with.load(Relaxed)).collect()
    };
    std::thread::scope(|scope| {
        let held = on.database.hold(PostgresRole::Superuser, HOLD).unwrap();
        let slow: Vec<_> = (0..40).map(|at| scope.spawn(move || again(at))).collect();
        let mut over = pull(&acme);
        wait_until("one over the tenant's share", Duration::from_secs(20), || {
            over = pull(&acme);
            over.status == 503 && over.json()["code"] == "overloaded"
        });
        over.problem(503, "overloaded");
        assert!(over.header("retry-after").is_some());
        for at in 0..20 {
            let began = Instant::now();
            let reply = call(&globex, "/v1/events/leads?type=made", &format!("{{\"at\": {at}}}"));
            assert_eq!(reply.status, 202, "{}", reply.text());
            assert_eq!(pull(&globex).status, 200);
            assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        }
        // Publishing is nobody's in particular.
        assert_eq!(call(&acme, "/v1/events/leads?type=made", "{}").status, 202);
        over_with.store(true, Relaxed);
        drop(held);
        let ended: Vec<u16> = slow.into_iter().flat_map(|one| one.join().unwrap()).collect();
        // 504: it had a connection, and its time was over before the row was free.
        assert!(ended.iter().all(|status| [200, 503, 504].contains(status)), "{ended:?}");
    });
    assert_eq!(pull(&acme).status, 200);
}

#[test]
fn reads_that_nobody_waits_for_leave_another_tenant_its_reads_of_the_embedded_store() {
    let sidecar = with_store("");
    let (acme, globex) = (sidecar.bearer(ACME), sidecar.bearer(GLOBEX));
    fill_sla(&sidecar, &acme, 5);
    assert_eq!(post(&sidecar, &globex, "/v1/events/sla?type=met", "application/json", "1").status, 202);
    let read = || {
        let reply = sidecar.client().send("GET", "/v1/events/sla", &[("Authorization", &globex)], b"");
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.text().lines().count(), 1);
    };
    let path = "/v1/events/sla?type=zzz";
    let attack = Attack { sidecar: &sidecar, bearer: &acme, method: "GET", path, body: "" };
    let mut worst = Duration::ZERO;
    let calls = attack.beside(|| worst = p99(read));
    println!("reads beside {calls} that nobody waited for: P99 {worst:?}");
    assert!(worst < READ_BESIDE, "{worst:?}");
}

#[test]
fn groups_that_seek_and_leave_let_another_tenant_publish_pull_and_ack_on_the_embedded_store() {
    let sidecar = with_store("");
    let (acme, globex) = (sidecar.bearer(ACME), sidecar.bearer(GLOBEX));
    fill_sla(&sidecar, &acme, 20);
    // So near that all events may be of that time, and none is.
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(30);
    let body = format!("{{\"group\": \"g\", \"to\": \"{soon}\"}}");
    let seek = || post(&sidecar, &acme, "/v1/events/sla:seek", "application/json", &body);
    let first = seek();
    assert_eq!(first.status, 204, "{}", first.text());
    let mut at = 0;
    let work = || {
        at += 1;
        let path = "/v1/events/leads?type=made";
        let reply = post(&sidecar, &globex, path, "application/json", &at.to_string());
        assert_eq!(reply.status, 202, "{}", reply.text());
        let pull = "{\"group\": \"g\", \"max\": 1}";
        let pulled = post(&sidecar, &globex, "/v1/events/leads:pull", "application/json", pull);
        assert_eq!(pulled.status, 200, "{}", pulled.text());
        let ack =
            format!("{{\"group\": \"g\", \"receipts\": [{}]}}", pulled.json()["deliveries"][0]["receipt"]);
        let acked = post(&sidecar, &globex, "/v1/events/leads:ack", "application/json", &ack);
        assert_eq!(acked.json()["done"], 1, "{}", acked.text());
    };
    let path = "/v1/events/sla:seek";
    let attack = Attack { sidecar: &sidecar, bearer: &acme, method: "POST", path, body: &body };
    let mut worst = Duration::ZERO;
    let calls = attack.beside(|| worst = p99(work));
    println!("publish, pull and ack beside {calls} seeks that nobody waited for: P99 {worst:?}");
    assert!(worst < WORK_BESIDE, "{worst:?}");
}

#[test]
fn a_tenant_that_fills_its_part_of_the_embedded_store_leaves_the_others_theirs() {
    let sidecar = with_store("limits: {durable_db_bytes: 16777216}\n");
    let (acme, globex) = (sidecar.bearer(ACME), sidecar.bearer(GLOBEX));
    let data = format!("\"{}\"", "x".repeat(200 * 1024));
    let publish =
        |bearer: &str| post(&sidecar, bearer, "/v1/events/leads?type=made", "application/json", &data);
    let group = |bearer: &str| {
        let pulled = post(
            &sidecar,
            bearer,
            "/v1/events/leads:pull",
            "application/json",
            "{\"group\": \"g\", \"max\": 1}",
        );
        assert_eq!(pulled.status, 200, "{}", pulled.text());
        let ack =
            format!("{{\"group\": \"g\", \"receipts\": [{}]}}", pulled.json()["deliveries"][0]["receipt"]);
        let acked = post(&sidecar, bearer, "/v1/events/leads:ack", "application/json", &ack);
        assert_eq!(acked.json()["done"], 1, "{}", acked.text());
    };
    let replies: Vec<Reply> = (0..100).map(|_| publish(&acme)).collect();
    let kept = replies.iter().take_while(|reply| reply.status == 202).count();
    assert!((35..=42).contains(&kept), "{kept} events of 200 KiB in 8 MiB");
    for refused in &replies[kept..] {
        let detail = refused.problem(429, "quota_exhausted")["detail"].to_string();
        assert!(detail.contains("limits.durable_db_bytes") && detail.contains("retention_days"), "{detail}");
    }
    for _ in 0..20 {
        let reply = publish(&globex);
        assert_eq!(reply.status, 202, "{}", reply.text());
        group(&globex);
        group(&acme);
    }
    let board = sidecar.admin_client().send("GET", "/readyz?verbose", &[], b"").text();
    let line = board.lines().find(|line| line.starts_with("durable.db")).unwrap_or_default();
    assert!(line.contains(" up "), "one tenant's part is nobody else's: {board}");
}

/// A configuration of this primitive on the embedded store, with this policy of its own.
fn with_policy(directory: &std::path::Path, primitive: &str, policy: &str) -> std::path::PathBuf {
    let config = embedded_config(directory, &format!("store: embedded\n{primitive}: {{}}\n"));
    with_own_policy(&config, &format!("{primitive}.yaml"), policy);
    config
}

/// Writes of one tenant by its calls' numbers until one is refused, which must be for this bound; another one's pass, and its own once it has waited.
fn is_told_which_bound(bound: &str, globex: impl Fn() -> Reply, acme: impl Fn(usize) -> Reply) {
    let refused = (0..2000).map(&acme).find(|reply| reply.status != 202);
    let refused = refused.expect("more than the limit is refused");
    let problem = refused.problem(429, "rate_limited");
    assert!(problem["detail"].to_string().contains(bound) && problem["retryable"] == true, "{problem}");
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=10).contains(&seconds), "{seconds}");
    assert_eq!(globex().status, 202);
    wait_until("room again", Duration::from_secs(seconds + 10), || acme(2000).status == 202);
}

#[test]
fn a_tenant_that_publishes_faster_than_its_tier_may_is_told_which_bound_and_when_and_the_others_are_not() {
    for (limit, size, bound) in [
        ("events_per_second: 1, bytes_per_second: 100000000, burst_seconds: 10", 10, "1 events a second"),
        (
            "events_per_second: 10000, bytes_per_second: 175000, burst_seconds: 60",
            250_000,
            "175000 bytes a second",
        ),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let policy = format!(
            "kind: events\nlimits:\n  tiers:\n    free: {{{limit}}}\ntopics:\n  leads: {{max_batch: 1}}\n"
        );
        let config = with_policy(directory.path(), "events", &policy);
        let sidecar = Sidecar::serve_in(directory, &config);
        let (acme, globex) = (sidecar.bearer(ACME), sidecar.bearer(GLOBEX));
        let data = format!("\"{}\"", "x".repeat(size));
        let publish =
            |bearer: &str| post(&sidecar, bearer, "/v1/events/leads?type=made", "application/json", &data);
        is_told_which_bound(bound, || publish(&globex), |_| publish(&acme));
    }
}

#[test]
fn a_tenant_that_records_faster_than_its_tier_may_is_told_which_bound_and_when_whatever_ack_says() {
    for (limit, size, bound) in [
        (
            "records_per_second: 200, bytes_per_second: 100000000, burst_seconds: 50",
            1000,
            "200 records a second",
        ),
        // Each record has a value of its own of each tag: it is the sums that cost.
        (
            "records_per_second: 100000, bytes_per_second: 450000, burst_seconds: 60",
            1000,
            "450000 bytes a second",
        ),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let policy = format!(
            "kind: usage\nlimits:\n  tiers:\n    free: {{{limit}}}\nmetrics:\n  api_calls: {{group_by: [a, b]}}\n  \
             leads_scored: {{group_by: [a, b], ack: spool}}\n"
        );
        let config = with_policy(directory.path(), "usage", &policy);
        let sidecar = Sidecar::serve_in(directory, &config);
        let (acme, globex) = (sidecar.bearer(ACME), sidecar.bearer(GLOBEX));
        let time = jiff::Timestamp::now().to_string();
        let record = |bearer: &str, call: usize, metric: &str| {
            let records: Vec<_> = (0..size).map(|number| {
                let key = format!("{call}-{number}");
                serde_json::json!({"metric": metric, "value": 1, "time": time, "tags": {"a": key, "b": key}, "idempotency_key": key})
            }).collect();
            let body = serde_json::json!({ "records": records }).to_string();
            post(&sidecar, bearer, "/v1/usage", "application/json", &body)
        };
        // Both ways of one tenant have one bound.
        let metric = |call: usize| if call.is_multiple_of(2) { "api_calls" } else { "leads_scored" };
        is_told_which_bound(
            bound,
            || record(&globex, 0, "api_calls"),
            |call| record(&acme, call, metric(call)),
        );
    }
}
