//! What the tests on Kafka rely on: three brokers, faults that do what they say, and a quorum that outlives them.

#![allow(clippy::unwrap_used, reason = "test code")]

use rig::{BROKERS, KafkaCluster, KafkaOptions, NodeState};

#[test]
fn chaos_the_metadata_quorum_outlives_a_killed_leader_and_a_stopped_broker_and_returns_from_nothing() {
    let cluster = KafkaCluster::start(KafkaOptions::default()).unwrap();
    assert_eq!(cluster.addresses().len(), BROKERS);
    let leader = cluster.controller().unwrap();

    // That it is no longer alive is written by the quorum of the other two, under a new leader.
    cluster.kill(leader).unwrap();
    assert_eq!(cluster.state(leader), NodeState::Down);
    cluster.wait_ok().unwrap();
    let next = cluster.controller().unwrap();
    assert_ne!(next, leader);
    cluster.restart(leader).unwrap();
    cluster.wait_ok().unwrap();

    let follower = (0..BROKERS).find(|index| *index != cluster.controller().unwrap()).unwrap();
    cluster.stop(follower).unwrap();
    assert_eq!(cluster.state(follower), NodeState::Stopped);
    cluster.wait_ok().unwrap();
    cluster.cont(follower).unwrap();
    cluster.wait_ok().unwrap();

    cluster.kill_all().unwrap();
    assert!(cluster.controller().is_err());
    cluster.start_all().unwrap();
    assert!(cluster.controller().unwrap() < BROKERS);
    cluster.shutdown(follower).unwrap();
    cluster.wait_ok().unwrap();
}
