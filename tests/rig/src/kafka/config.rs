//! What brokers are started with.

use std::path::Path;

/// How to start brokers; `KafkaOptions::default()` is three on free ports.
#[derive(Clone, Debug, Default)]
pub struct KafkaOptions {
    /// The first of three ports; each broker's controller listens 10000 above. None: free ones.
    pub first_port: Option<u16>,
    /// More settings for every broker; they win over the rig's.
    pub settings: Vec<(String, String)>,
    /// Each broker listens once more, with TLS, for those who show [`KAFKA_USER`] and [`KAFKA_PASSWORD`] by SCRAM or
    /// PLAIN, and who may do there only what [`KafkaCluster::grant`](super::KafkaCluster::grant) granted.
    pub secured: bool,
}

/// Who may use the secured listeners.
pub const KAFKA_USER: &str = "relay";
/// That user's password.
pub const KAFKA_PASSWORD: &str = "rig-kafka";
/// Hashes that the user's password is kept for.
pub(crate) const MECHANISMS: [&str; 2] = ["SCRAM-SHA-256", "SCRAM-SHA-512"];

/// Small, quick to notice a dead broker (1.5 s), three copies of everything and two to acknowledge.
const SETTINGS: &str = "\
process.roles=broker,controller
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
auto.create.topics.enable=false
num.partitions=6
group.initial.rebalance.delay.ms=0
num.network.threads=2
num.io.threads=2
num.recovery.threads.per.data.dir=1
log.cleaner.dedupe.buffer.size=4194304
log.index.size.max.bytes=1048576
broker.heartbeat.interval.ms=300
broker.session.timeout.ms=1500
controller.quorum.election.timeout.ms=500
controller.quorum.fetch.timeout.ms=1000
controller.quorum.election.backoff.max.ms=300
replica.lag.time.max.ms=5000
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
share.coordinator.state.topic.num.partitions=4
";

/// `server.properties` of the node with this index, in a cluster on these ports (one broker, or three).
pub(crate) fn properties(options: &KafkaOptions, ports: &[(u16, u16)], index: usize, data: &Path) -> String {
    let (broker, controller) = ports.get(index).copied().unwrap_or_default();
    let voters = ports.iter().enumerate().map(|(at, (_, port))| format!("{}@127.0.0.1:{port}", node_id(at)));
    let copies = ports.len();
    let acknowledge = copies.div_ceil(2);
    let more: String = options.settings.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    format!(
        "{SETTINGS}node.id={id}\nlog.dirs={data}\ncontroller.quorum.voters={voters}\n\
         listeners=PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{broker}\n\
         default.replication.factor={copies}\nmin.insync.replicas={acknowledge}\n\
         offsets.topic.replication.factor={copies}\n\
         transaction.state.log.replication.factor={copies}\ntransaction.state.log.min.isr={acknowledge}\n\
         share.coordinator.state.topic.replication.factor={copies}\n\
         share.coordinator.state.topic.min.isr={acknowledge}\n{more}",
        id = node_id(index),
        data = data.display(),
        voters = voters.collect::<Vec<_>>().join(","),
    )
}

/// The secured listener of a broker, beside its others: `plain` is the text of [`properties`].
pub(crate) fn with_secured(plain: &str, port: u16, keystore: &Path) -> String {
    let listener = format!(",SECURED://127.0.0.1:{port}");
    // Whoever comes by the plain listeners is the rig.
    let authorizer = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
                      super.users=User:ANONYMOUS\n";
    let lines = plain.lines().map(|line| match line.split_once('=') {
        Some(("listeners" | "advertised.listeners", _)) => format!("{line}{listener}\n"),
        Some(("listener.security.protocol.map", _)) => format!("{line},SECURED:SASL_SSL\n"),
        _ => format!("{line}\n"),
    });
    let of_listener = |(name, value): (&str, &str)| format!("listener.name.secured.{name}={value}\n");
    let keystore = keystore.display().to_string();
    let module = "org.apache.kafka.common.security";
    let scram = format!("{module}.scram.ScramLoginModule required;");
    let plain = format!("{module}.plain.PlainLoginModule required user_{KAFKA_USER}=\"{KAFKA_PASSWORD}\";");
    let secured = [
        ("ssl.keystore.type", "PEM"),
        ("ssl.keystore.location", &*keystore),
        ("sasl.enabled.mechanisms", "SCRAM-SHA-256,SCRAM-SHA-512,PLAIN"),
        ("scram-sha-256.sasl.jaas.config", &*scram),
        ("scram-sha-512.sasl.jaas.config", &*scram),
        ("plain.sasl.jaas.config", &*plain),
    ];
    lines.chain(secured.into_iter().map(of_listener)).chain([authorizer.to_owned()]).collect()
}

/// Kafka counts from 1 here, as in its own examples.
pub(crate) fn node_id(index: usize) -> usize {
    index + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_follow_the_number_of_brokers_and_a_test_s_settings_come_last() {
        let options =
            KafkaOptions { settings: vec![("num.partitions".into(), "1".into())], ..Default::default() };
        let three = [(1, 11), (2, 12), (3, 13)];
        let text = properties(&options, &three, 1, Path::new("/data"));
        assert!(text.contains("node.id=2\n") && text.contains("transaction.state.log.min.isr=2\n"), "{text}");
        assert!(text.contains("voters=1@127.0.0.1:11,2@127.0.0.1:12,3@127.0.0.1:13\n"), "{text}");
        assert!(text.ends_with("num.partitions=1\n"), "{text}");
        let one = properties(&KafkaOptions::default(), &three[..1], 0, Path::new("/data"));
        assert!(one.contains("min.insync.replicas=1\n") && one.contains("default.replication.factor=1\n"));
    }
}
