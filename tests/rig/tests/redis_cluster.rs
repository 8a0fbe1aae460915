//! What the fault tests rely on: each fault does what its name says, and the cluster comes back.

use rig::{Acl, Node, NodeState, Options, RedisCluster, Role};

fn primaries(nodes: &[Node]) -> usize {
    nodes.iter().filter(|node| node.role == Role::Primary).count()
}

#[test]
fn chaos_a_killed_primary_is_replaced_and_comes_back_as_a_replica() {
    let cluster = RedisCluster::start(Options::default()).unwrap();
    assert_eq!(cluster.addresses().len(), rig::NODES);
    assert_eq!(primaries(&cluster.nodes().unwrap()), 3);
    cluster.cli(&["SET", "kept", "yes"]).unwrap();
    cluster.cli(&["WAIT", "1", "1000"]).unwrap();
    let slot = cluster.slot_of("kept").unwrap();
    let old = cluster.primary_of(slot).unwrap();

    cluster.kill(old).unwrap();
    cluster.wait_ok().unwrap();
    let new = cluster.primary_of(slot).unwrap();
    assert_ne!(new, old);
    assert_eq!(cluster.cli(&["GET", "kept"]).unwrap().trim(), "yes");
    assert_eq!(cluster.nodes().unwrap()[old].state, NodeState::Down);

    cluster.restart(old).unwrap();
    cluster.wait_ok().unwrap();
    assert_eq!(cluster.replica_of(new).unwrap(), old);

    cluster.failover(old).unwrap();
    assert_eq!(cluster.primary_of(slot).unwrap(), old);
    assert_eq!(primaries(&cluster.nodes().unwrap()), 3);
}

#[test]
fn chaos_a_stopped_primary_is_replaced_and_returns_when_continued() {
    let cluster = RedisCluster::start(Options::default()).unwrap();
    let primary = cluster.primary_of(0).unwrap();
    cluster.stop(primary).unwrap();
    assert_eq!(cluster.nodes().unwrap()[primary].state, NodeState::Stopped);
    cluster.wait_ok().unwrap();
    assert_ne!(cluster.primary_of(0).unwrap(), primary);
    cluster.cont(primary).unwrap();
    cluster.wait_ok().unwrap();
    assert_eq!(cluster.nodes().unwrap()[primary].role, Role::Replica);
}

#[test]
fn chaos_a_slot_moves_in_steps_and_a_whole_cluster_returns_with_its_data() {
    let cluster = RedisCluster::start(Options::default()).unwrap();
    let keys: Vec<String> = (0..5).map(|i| format!("{{tag}}:{i}")).collect();
    for key in &keys {
        cluster.cli(&["SET", key, "value"]).unwrap();
    }
    let slot = cluster.slot_of("{tag}").unwrap();
    let from = cluster.primary_of(slot).unwrap();
    let to =
        (0..rig::NODES).find(|i| *i != from && cluster.nodes().unwrap()[*i].role == Role::Primary).unwrap();

    let migration = cluster.begin_slot_migration(slot, to).unwrap();
    assert_eq!((migration.from(), migration.to()), (from, to));
    assert_eq!(migration.move_keys(2).unwrap(), 2);
    // Half of it moved: the owner is the old one, and it points to the new one for what has gone.
    assert_eq!(cluster.primary_of(slot).unwrap(), from);
    let asked = keys.iter().filter_map(|key| cluster.cli_at(from, &["GET", key]).err());
    assert_eq!(asked.filter(|error| error.to_string().contains("ASK")).count(), 2);
    migration.finish().unwrap();
    assert_eq!(cluster.primary_of(slot).unwrap(), to);
    let moved = cluster.cli_at(from, &["GET", &keys[0]]).unwrap_err();
    assert!(moved.to_string().contains("MOVED"), "{moved}");

    cluster.shutdown_all().unwrap();
    assert!(cluster.cli(&["PING"]).is_err());
    cluster.start_all().unwrap();
    assert_eq!(cluster.primary_of(slot).unwrap(), to);
    for key in &keys {
        assert_eq!(cluster.cli(&["GET", key]).unwrap().trim(), "value");
    }
}

#[test]
fn chaos_tls_acl_and_a_memory_limit_work_together() {
    let options = Options {
        tls: true,
        acl: Some(Acl::outrigger("first")),
        maxmemory: Some((8 << 20, "noeviction".to_owned())),
        ..Options::default()
    };
    let cluster = RedisCluster::start(options).unwrap();
    assert!(cluster.certificate().unwrap().authority.exists());
    let slot = cluster.slot_of("cache:x").unwrap();
    let primary = cluster.primary_of(slot).unwrap();
    let allowed = |words: &[&str]| {
        let all: Vec<&str> = ["ACL", "DRYRUN", "outrigger"].iter().chain(words).copied().collect();
        cluster.cli_at(primary, &all).unwrap().trim() == "OK"
    };
    assert!(allowed(&["SET", "cache:x", "1"]));
    assert!(allowed(&["EVALSHA", "0", "1", "tenant:api:rate-limit:{t}:k"]));
    assert!(allowed(&["CLUSTER", "SLOTS"]));
    assert!(allowed(&["CONFIG", "GET", "maxmemory-policy"]));
    assert!(allowed(&["CLIENT", "TRACKING", "ON"]));
    assert!(allowed(&["HELLO", "3"]));
    assert!(!allowed(&["SET", "elsewhere", "1"]));
    assert!(!allowed(&["FLUSHALL"]));
    assert!(!allowed(&["CONFIG", "SET", "maxmemory", "0"]));
    assert!(!allowed(&["KEYS", "*"]));
    cluster.config_set("maxmemory", "1").unwrap();
    let full = cluster.cli(&["SET", "cache:x", "1"]).unwrap_err();
    assert!(full.to_string().contains("OOM"), "{full}");
    cluster.config_set("maxmemory", "0").unwrap();
    cluster.change_password("second").unwrap();
    cluster.cli(&["SET", "cache:x", "1"]).unwrap();
    let to = (0..rig::NODES)
        .find(|i| *i != primary && cluster.nodes().unwrap()[*i].role == Role::Primary)
        .unwrap();
    cluster.migrate_slot(slot, to).unwrap();
    assert_eq!(cluster.cli_at(to, &["GET", "cache:x"]).unwrap().trim(), "1");
}
