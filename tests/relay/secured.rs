//! Brokers that take nobody without TLS and a password.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger::config::{KafkaConfig, KafkaSasl, KafkaTls, SaslMechanism, SecretSource};
use outrigger::pools::kafka::Kafka;
use outrigger::primitives::events::relay::ShardEnd;
use rig::{KAFKA_PASSWORD, KAFKA_USER, KafkaAcl, KafkaCluster, KafkaOptions};
use uuid::Uuid;

use super::check::check;
use super::consumer::read_committed;
use super::log::Log;
use super::{BOUND, LANES, LOGGED, append, ensure, metrics, start};

/// The permissions that operators are told to give, for another prefix than theirs.
fn acls(prefix: &str) -> Vec<KafkaAcl> {
    let text = include_str!("../../docs/operations.md");
    let lines = text.lines().filter(|line| line.starts_with("kafka-acls --add "));
    let acls: Vec<KafkaAcl> =
        lines.map(|line| line.replace("outrigger.", &format!("{prefix}.")).parse().unwrap()).collect();
    assert_eq!(acls.len(), 4, "{acls:?}");
    acls
}

fn sasl(mechanism: SaslMechanism, password: PathBuf) -> KafkaSasl {
    KafkaSasl { mechanism, username: KAFKA_USER.to_owned(), password: SecretSource::File(password) }
}

#[tokio::test(flavor = "multi_thread")]
async fn chaos_brokers_are_spoken_to_through_tls_by_a_user_and_who_is_refused_is_told_why() {
    let started = tokio::task::spawn_blocking(|| {
        KafkaCluster::start(KafkaOptions { secured: true, ..KafkaOptions::default() }).unwrap()
    });
    let cluster = started.await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (right, wrong) = (directory.path().join("right"), directory.path().join("wrong"));
    std::fs::write(&right, KAFKA_PASSWORD).unwrap();
    std::fs::write(&wrong, "canary-91c7").unwrap();
    let authority = Some(KafkaTls { ca_file: cluster.authority().map(Into::into) });
    let of = |prefix: &str, tls: Option<KafkaTls>, sasl: KafkaSasl| {
        let brokers = KafkaConfig::of_brokers(cluster.secured_addresses());
        let config =
            KafkaConfig { tls, sasl: Some(sasl), prefix: prefix.to_owned(), timeout_ms: 5000, ..brokers };
        Arc::new(Kafka::new(config).unwrap())
    };
    let (_, metrics) = metrics();
    for mechanism in [SaslMechanism::ScramSha512, SaslMechanism::ScramSha256, SaslMechanism::Plain] {
        let prefix = format!("test-{}", Uuid::now_v7().simple());
        let kafka = of(&prefix, authority.clone(), sasl(mechanism, right.clone()));
        for acl in acls(&prefix) {
            cluster.grant(&acl).unwrap();
        }
        assert!(ensure(&kafka, LANES).await.iter().all(|report| report.was_made), "{mechanism:?}");
        let log = Arc::new(Log::default());
        append(&log, 0, 500);
        let relay = start(&kafka, &log, &metrics);
        let (brokers, topic) = (cluster.bootstrap_servers(), format!("{prefix}.t"));
        let seen =
            tokio::task::spawn_blocking(move || read_committed(&brokers, &topic, LANES, 500, BOUND)).await;
        check(&log.rows().iter().collect::<Vec<_>>(), &seen.unwrap());
        relay.lease_lost.cancel();
        assert!(matches!(relay.task.await.unwrap(), ShardEnd::LeaseLost));
    }
    let (topics, transactions) = (&acls("only-topics")[0], &acls("only-transactions")[1]);
    cluster.grant(topics).unwrap();
    cluster.grant(transactions).unwrap();
    // The operating system's authorities did not sign this cluster's certificate.
    for (tls, password, prefix, reason) in [
        (&authority, wrong, "refused", "Authentication failed"),
        (&Some(KafkaTls { ca_file: None }), right.clone(), "refused", "certificate verify failed"),
        (&authority, right.clone(), "only-topics", "Transactional Id authorization failed"),
        (&authority, right, "only-transactions", "Topic authorization failed"),
    ] {
        std::mem::take(&mut *LOGGED.lock());
        let kafka = of(prefix, tls.clone(), sasl(SaslMechanism::ScramSha512, password));
        let relay = start(&kafka, &Arc::new(Log::default()), &metrics);
        let mut ticks = tokio::time::interval(Duration::from_millis(50));
        let deadline = Instant::now() + BOUND;
        let logged = || String::from_utf8_lossy(&LOGGED.lock()).into_owned();
        let is_said = || {
            logged().lines().any(|line| line.contains("kafka does not take events") && line.contains(reason))
        };
        while !relay.task.is_finished() && !is_said() {
            assert!(Instant::now() < deadline, "nothing says {reason}: {}", logged());
            ticks.tick().await;
        }
        relay.lease_lost.cancel();
        let end = relay.task.await.unwrap().to_string();
        assert!(is_said() || end.contains(reason), "{end}");
        assert!(!logged().contains("canary-91c7") && !end.contains("canary-91c7"), "{end}");
        println!("{reason}: {end}");
    }
}
