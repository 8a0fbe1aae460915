//! The Kafka brokers that the tests share.

use std::path::Path;
use std::time::Duration;

use crate::kafka::{BROKERS, KafkaCluster, check as check_brokers};
use crate::ports::shared_first;
use crate::process::{Error, wait_until};
use crate::recorded::Recorded;
use crate::shared::{Kind, address, from_environment, require};

const PORT_VARIABLE: &str = "RIG_KAFKA_PORT";
/// Above the first port of all.
const PORT_OFFSET: u16 = 20;
const BROKERS_VARIABLE: &str = "KAFKA_BROKERS";

pub(crate) const KIND: Kind = Kind { name: "kafka", start, env_lines, check };

/// The addresses of the shared brokers: `KAFKA_BROKERS` from the environment, else the rig's own, which are started
/// where they are not up (5 to 12 s). Topics are the test's affair: names that no other test has.
///
/// # Panics
/// When there are none and they cannot be started: a missing server fails a test, it skips none.
pub fn shared_kafka_brokers() -> Vec<String> {
    if from_environment(BROKERS_VARIABLE).is_none() {
        require(&KIND);
    }
    let value = address(BROKERS_VARIABLE).unwrap_or_default();
    value.split(',').map(|broker| broker.trim().to_owned()).collect()
}

fn start(folder: &Path) -> Result<Vec<Recorded>, Error> {
    KafkaCluster::start_outliving(&folder.join("kafka"), shared_first(PORT_VARIABLE, PORT_OFFSET)?)
}

fn env_lines() -> Result<Vec<String>, Error> {
    let addresses: Vec<String> = ports()?.map(|port| format!("127.0.0.1:{port}")).collect();
    Ok(vec![format!("{BROKERS_VARIABLE}={}", addresses.join(","))])
}

fn check() -> Result<(), Error> {
    let ports: Vec<u16> = ports()?.collect();
    let ids: Vec<usize> = (1..=BROKERS).collect();
    wait_until("the shared Kafka brokers", Duration::from_secs(5), String::new, || {
        check_brokers(&ports, &ids)
    })
}

fn ports() -> Result<impl Iterator<Item = u16>, Error> {
    Ok((shared_first(PORT_VARIABLE, PORT_OFFSET)?..).take(BROKERS))
}
