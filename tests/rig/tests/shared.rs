//! What every test can rely on without starting anything: the shared servers, up when they are asked for.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::net::TcpStream;

use rig::{BROKERS, PgBouncerOptions, PostgresRole};

#[test]
fn a_database_of_one_s_own_is_there_and_gone_with_its_value() {
    let postgres = rig::shared_postgres();
    let (first, second) = (postgres.database().unwrap(), postgres.database().unwrap());
    assert_ne!(first.name(), second.name());
    first
        .psql(PostgresRole::Owner, &["CREATE TABLE things (n int)", "INSERT INTO things VALUES (1)"])
        .unwrap();
    let standby =
        postgres.access().psql(1, PostgresRole::Owner, first.name(), &["SHOW transaction_read_only"]);
    assert_eq!(standby.unwrap().trim(), "on");
    assert!(first.url(PostgresRole::App).contains(&postgres.access().address(0)));
    assert!(first.standby_url(PostgresRole::App).contains(&postgres.access().address(1)));
    let denied = second.psql(PostgresRole::App, &["CREATE SCHEMA mine"]).unwrap_err().to_string();
    assert!(denied.contains("permission denied"), "{denied}");

    let bouncer = postgres.bouncer(PgBouncerOptions { pool_size: 1, ..PgBouncerOptions::default() }).unwrap();
    let count = bouncer.psql(PostgresRole::Owner, first.name(), &["SELECT count(*) FROM things"]).unwrap();
    assert_eq!(count.trim(), "1");
    // Also while somebody is still connected, as PgBouncer is.
    let name = first.name().to_owned();
    drop(first);
    let exists = format!("SELECT count(*) FROM pg_database WHERE datname = '{name}'");
    let found = postgres.access().psql(0, PostgresRole::Superuser, "postgres", &[&exists]).unwrap();
    assert_eq!(found.trim(), "0");
}

#[test]
fn the_addresses_are_in_the_environment_file() {
    let postgres = rig::shared_postgres();
    let brokers = rig::shared_kafka_brokers();
    let nodes = rig::shared_redis_nodes();
    assert_eq!((nodes.len(), brokers.len()), (rig::NODES, BROKERS));
    assert!(brokers.iter().all(|broker| TcpStream::connect(broker.as_str()).is_ok()), "{brokers:?}");
    let lines = rig::env_lines();
    let line = |name: &str| lines.iter().find(|(found, _)| found == name).unwrap().1.clone();
    assert!(
        line("POSTGRES_URL").contains(&format!("outrigger_app:rig-app@{}", postgres.access().address(0)))
    );
    assert!(line("POSTGRES_STANDBY_URL").contains(&postgres.access().address(1)));
    assert!(line("POSTGRES_OWNER_URL").contains("//outrigger_owner:"));
    assert!(line("POSTGRES_RELAY_URL").contains("//outrigger_relay:"));
    assert_eq!(line("PGBOUNCER_URL"), postgres.bouncer_url(PostgresRole::App, "outrigger"));
    let authority = std::fs::read_to_string(line("POSTGRES_CA_FILE")).unwrap();
    assert!(authority.starts_with("-----BEGIN CERTIFICATE-----"));
}
