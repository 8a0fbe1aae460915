//! A commit that nobody knows the outcome of: what a publisher is told, and what becomes of it when it says it again.

use std::time::{Duration, Instant};

use rig::{PostgresCluster, PostgresOptions, PostgresRole};
use serde_json::{Value, json};

use crate::support::client::Reply;
use crate::support::postgres::OnPostgres;
use crate::support::sidecar::{ACME, Sidecar};
use crate::support::wait_until;

const STRUCTURED: (&str, &str) = ("Content-Type", "application/cloudevents+json");
/// A publisher's commit that waits for the standby, which is stopped. A sidecar has others, of leases.
const WAITS: &str = "SELECT count(*) FROM pg_stat_activity waits WHERE wait_event = 'SyncRep' \
     AND EXISTS (SELECT FROM pg_locks WHERE pid = waits.pid AND relation = 'event_dedupe'::regclass)";
const CUTS: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity waits WHERE wait_event = 'SyncRep' \
     AND EXISTS (SELECT FROM pg_locks WHERE pid = waits.pid AND relation = 'event_dedupe'::regclass)";

struct Bench {
    sidecar: Sidecar,
    on: OnPostgres,
    cluster: PostgresCluster,
    bearer: String,
}

impl Bench {
    fn new() -> Self {
        let cluster = PostgresCluster::start(PostgresOptions::default()).unwrap();
        let on = OnPostgres::on_cluster(&cluster, None);
        let sidecar = on.sidecar();
        let bearer = sidecar.bearer(ACME);
        Self { sidecar, on, cluster, bearer }
    }

    fn publish(&self, id: &str) -> Reply {
        let event = json!({"specversion": "1.0", "id": id, "source": "/u", "type": "t", "partitionkey": "k"});
        let headers =
            [("Authorization", self.bearer.as_str()), STRUCTURED, ("Outrigger-Timeout-Ms", "18000")];
        self.sidecar.client().send("POST", "/v1/events/leads", &headers, event.to_string().as_bytes())
    }

    fn superuser(&self, statement: &str) -> String {
        self.on.database.psql(PostgresRole::Superuser, &[statement]).unwrap().trim().to_owned()
    }

    /// Publishes while the standby is stopped, does this while the commit waits, and returns what the caller was told, when.
    fn publish_while(&self, id: &str, does: impl FnOnce()) -> (Reply, Duration) {
        self.cluster.stop(self.cluster.standby()).unwrap();
        std::thread::scope(|scope| {
            let began = Instant::now();
            let publishes = scope.spawn(move || (self.publish(id), began.elapsed()));
            wait_until("a commit that waits", Duration::from_secs(10), || self.superuser(WAITS) == "1");
            does();
            publishes.join().unwrap()
        })
    }

    /// Until it is accepted; whether it was there before.
    fn publish_again(&self, id: &str) -> bool {
        let bound = Instant::now() + Duration::from_secs(20);
        loop {
            let reply = self.publish(id);
            if reply.status == 202 {
                return reply.json()["duplicates"] == 1;
            }
            assert!(Instant::now() < bound, "{}", reply.text());
        }
    }

    fn ids(&self) -> Vec<String> {
        let headers = [("Authorization", self.bearer.as_str())];
        let reply = self.sidecar.client().send("GET", "/v1/events/leads", &headers, b"");
        assert_eq!(reply.status, 200, "{}", reply.text());
        let ids = reply
            .text()
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].clone())
            .collect::<Vec<_>>();
        ids.iter().map(|id| id.as_str().unwrap().to_owned()).collect()
    }
}

fn told_unknown(reply: &Reply) {
    let problem = reply.problem(503, "outcome_unknown");
    assert_eq!(problem["retryable"], true, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("counts once"), "{problem}");
}

#[test]
fn chaos_a_publish_whose_commit_is_cut_is_told_so_and_counts_once_when_it_is_said_again() {
    let bench = Bench::new();
    let cluster = &bench.cluster;
    assert_eq!(bench.publish("before").status, 202);

    // The connection is cut while the commit waits: it happened, and the caller cannot know.
    let (reply, after) = bench.publish_while("cut", || assert_eq!(bench.superuser(CUTS), "t"));
    told_unknown(&reply);
    println!("the connection cut: told after {after:?}");
    // The primary has it; nobody is told so before the standby has it too, which may be the next primary.
    told_unknown(&bench.publish("cut"));
    cluster.cont(cluster.standby()).unwrap();
    assert_eq!(bench.publish("cut").json()["duplicates"], 1);

    // Nobody cuts it: the caller is told so in time, and it happens when the standby is back.
    let (reply, after) = bench.publish_while("silent", || {});
    told_unknown(&reply);
    println!("no answer: told after {after:?}");
    assert!(!bench.ids().contains(&"silent".to_owned()), "what the standby has not got is not read");
    cluster.cont(cluster.standby()).unwrap();
    assert_eq!(bench.publish("silent").json()["duplicates"], 1);

    // The primary goes while the commit waits: it is there or not, and counts once either way.
    let (reply, after) = bench.publish_while("lost", || cluster.kill(cluster.primary()).unwrap());
    told_unknown(&reply);
    println!("the primary killed: told after {after:?}");
    cluster.cont(cluster.standby()).unwrap();
    cluster.promote().unwrap();
    println!("there after the promotion: {}", bench.publish_again("lost"));
    assert_eq!(bench.publish("after").status, 202);
    assert_eq!(bench.ids(), ["before", "cut", "silent", "lost", "after"]);
}
