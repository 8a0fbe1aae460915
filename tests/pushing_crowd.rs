//! Many subscriptions on a real store, a third of whose endpoints are dead or slow: the others' deliveries take no longer.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use support::client::Client;
use support::postgres::OnPostgres;
use support::random::size;
use support::sidecar::{ACME, Sidecar};
use support::{wait_until, webhooks};

/// What is sent in one round, to each healthy endpoint.
const EVENTS: usize = 4;
/// Rounds of each kind, in turns.
const ROUNDS: usize = 3;
/// Between two events: what is measured is no queue of the test's own.
const PACE: Duration = Duration::from_millis(12);
const BOUND: Duration = Duration::from_secs(120);

/// When each event came to a healthy endpoint first.
type Arrivals = Arc<Mutex<HashMap<String, Instant>>>;

struct Crowd {
    healthy: usize,
    ill: usize,
    api: Sidecar,
    push: Sidecar,
    client: Client,
    bearer: String,
    arrivals: Arrivals,
    // Dropped after the sidecars, which use both all the time.
    _on: OnPostgres,
    _secret: tempfile::TempDir,
}

/// A topic and a subscription for each endpoint.
fn policy(healthy: usize, ill: usize, well: u16, bad: u16, closed: u16, secret: &str) -> String {
    let (mut topics, mut push) = (String::new(), String::new());
    for at in 0..healthy + ill {
        let url = match at.checked_sub(healthy).map(|at| at % 4) {
            None => format!("http://127.0.0.1:{well}/well/{at}"),
            Some(0) => format!("http://127.0.0.1:{bad}/never/{at}"),
            Some(1) => format!("http://127.0.0.1:{closed}/{at}"),
            Some(2) => format!("http://127.0.0.1:{bad}/slow/{at}"),
            Some(_) => format!("http://127.0.0.1:{bad}/fails/{at}"),
        };
        writeln!(topics, "  t{at}: {{}}").unwrap();
        writeln!(
            push,
            "  s{at}: {{topic: t{at}, target: {{url: '{url}'}}, tenants: any, secrets: ['${{file:{secret}}}'], \
             allow_private: true, timeout_ms: 5000, max_attempts: 16, backoff: {{first_ms: 5000, max_ms: 60000}}}}"
        )
        .unwrap();
    }
    format!("kind: events\ntopics:\n{topics}push:\n{push}")
}

impl Crowd {
    fn start(all: usize) -> Self {
        let (ill, healthy) = (all / 3, all - all / 3);
        let arrivals = Arrivals::default();
        let arrived = Arc::clone(&arrivals);
        let well = webhooks::endpoint(move |received| {
            let data = received.body["data"].as_str().unwrap().to_owned();
            arrived.lock().unwrap().entry(data).or_insert_with(Instant::now);
            Some("204 No Content")
        });
        let bad = webhooks::endpoint(|received| match received.path.split('/').nth(1).unwrap() {
            "never" => None,
            // This is the slow endpoint.
            "slow" => {
                std::thread::park_timeout(Duration::from_millis(1500));
                Some("204 No Content")
            }
            _ => Some("500 Internal Server Error"),
        });
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let directory = tempfile::tempdir().unwrap();
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let text = policy(healthy, ill, well, bad, closed, secret.to_str().unwrap());
        let on = OnPostgres::new().with_policy("events.yaml", &text);
        let (api, push) = (on.sidecar(), on.process("roles: [push]\n"));
        let token = api.token_with(&["--tenant", ACME, "--subject", "crowd", "--ttl", "12h"]);
        let (client, bearer) = (api.client(), format!("Bearer {token}"));
        Self { healthy, ill, api, push, client, bearer, arrivals, _on: on, _secret: directory }
    }

    fn publish(&mut self, topic: usize, key: &str, data: &str) {
        let event = json!({"specversion": "1.0", "id": data, "source": "/t", "type": "made", "partitionkey": key, "data": data});
        let headers = [("Authorization", &*self.bearer), ("Content-Type", "application/cloudevents+json")];
        let target = format!("/v1/events/t{topic}");
        let reply = self.client.send("POST", &target, &headers, event.to_string().as_bytes());
        assert_eq!(reply.status, 202, "{}", reply.text());
        if reply.header("connection") == Some("close") {
            self.client = self.api.client();
        }
    }

    /// Until every healthy subscription runs: each begins when it is first seen.
    fn warm_up(&mut self) {
        let mut round = 0;
        wait_until("every subscription to run", BOUND, || {
            round += 1;
            let missing: Vec<usize> = {
                let arrivals = self.arrivals.lock().unwrap();
                let has =
                    |at: usize| (1..round).any(|round| arrivals.contains_key(&format!("probe{round}-{at}")));
                (0..self.healthy).filter(|at| !has(*at)).collect()
            };
            for at in &missing {
                self.publish(*at, "probe", &format!("probe{round}-{at}"));
            }
            missing.is_empty()
        });
    }

    /// The 50th and the 99th percentile of the time from an event's acceptance to its arrival at a healthy endpoint.
    fn round(&mut self, name: &str, ill: usize) -> [Duration; 2] {
        let mut accepted = Vec::new();
        let mut next = Instant::now();
        for number in 0..EVENTS {
            for at in 0..self.healthy + ill {
                std::thread::park_timeout(next.saturating_duration_since(Instant::now()));
                next += PACE;
                let data = format!("{name}-{number}-{at}");
                self.publish(at, &format!("k{number}"), &data);
                if at < self.healthy {
                    accepted.push((data, Instant::now()));
                }
            }
        }
        wait_until("every event of the healthy", BOUND, || {
            let arrivals = self.arrivals.lock().unwrap();
            accepted.iter().all(|(data, _)| arrivals.contains_key(data))
        });
        let arrivals = self.arrivals.lock().unwrap();
        let mut waits: Vec<Duration> =
            accepted.iter().map(|(data, at)| arrivals[data].saturating_duration_since(*at)).collect();
        waits.sort_unstable();
        [waits[waits.len() / 2], waits[waits.len() * 99 / 100]]
    }
}

#[test]
fn on_postgresql_the_others_p99_is_within_twice_of_alone_with_a_third_of_the_endpoints_dead_or_slow() {
    let mut crowd = Crowd::start(usize::try_from(size(60, 1000)).unwrap());
    crowd.warm_up();
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    let ill = crowd.ill;
    for round in 0..ROUNDS {
        alone.push(crowd.round(&format!("alone{round}"), 0));
        beside.push(crowd.round(&format!("beside{round}"), ill));
    }
    println!(
        "{} healthy endpoints beside {ill} dead or slow ones, P50 and P99 of acceptance to arrival:\n  alone  {alone:.2?}\n  beside {beside:.2?}",
        crowd.healthy
    );
    let open = crowd.push.metric("outrigger_events_push_circuits_open_count");
    assert!(open > 0.0, "the dead ones are not tried all the time");
    let median = |mut rounds: Vec<[Duration; 2]>| {
        rounds.sort_unstable_by_key(|round| round[1]);
        rounds[ROUNDS / 2][1]
    };
    let (alone, beside) = (median(alone), median(beside));
    assert!(beside <= alone * 2, "{beside:?} beside the others, {alone:?} alone");
}
