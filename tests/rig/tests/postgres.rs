//! What the tests on PostgreSQL rely on: a synchronous standby, faults that do what they say, and three roles.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rig::{Database, NodeState, PostgresCluster, PostgresOptions, PostgresRole};

const ROWS: u32 = 100_000;

fn rows(cluster: &PostgresCluster, index: usize, database: &Database, sql: &str) -> String {
    let printed = cluster.access().psql(index, PostgresRole::Superuser, database.name(), &[sql]).unwrap();
    printed.trim().to_owned()
}

/// Inserts 1, 2, 3… one by one on the primary, calls `fault` when 200 were acknowledged, and returns all that were.
fn insert_until_cut(cluster: &PostgresCluster, database: &Database, fault: impl FnOnce()) -> Vec<u32> {
    let mut command = cluster.access().psql_command(cluster.primary(), PostgresRole::Owner, database.name());
    let mut psql =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = psql.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        // It ends when psql is gone: the pipe breaks.
        (1..=ROWS).find(|n| writeln!(input, "INSERT INTO log VALUES ({n}) RETURNING n;").is_err())
    });
    let mut fault = Some(fault);
    let mut acknowledged: Vec<u32> = Vec::new();
    for line in BufReader::new(psql.stdout.take().unwrap()).lines() {
        acknowledged.push(line.unwrap().parse().unwrap());
        if acknowledged.len() >= 200
            && let Some(fault) = fault.take()
        {
            fault();
        }
    }
    assert!(!psql.wait().unwrap().success(), "the fault came after the last row");
    assert!(writer.join().unwrap().is_some());
    acknowledged
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

#[test]
fn chaos_nothing_acknowledged_is_lost_when_the_standby_takes_over_and_the_old_primary_rejoins() {
    let cluster = PostgresCluster::start(PostgresOptions::default()).unwrap();
    let database = cluster.database().unwrap();
    database.psql(PostgresRole::Owner, &["CREATE TABLE log (n int PRIMARY KEY)"]).unwrap();
    for round in 1..=2 {
        database.psql(PostgresRole::Owner, &["TRUNCATE log"]).unwrap();
        let (old, new) = (cluster.primary(), cluster.standby());
        let acknowledged = insert_until_cut(&cluster, &database, || cluster.kill(old).unwrap());
        assert!(acknowledged.len() >= 200, "round {round}");
        let began = Instant::now();
        cluster.promote().unwrap();
        println!("round {round}: {} rows, promoted in {:?}", acknowledged.len(), began.elapsed());
        assert_eq!((cluster.primary(), cluster.state(old)), (new, NodeState::Down));
        let found = database.psql(PostgresRole::Owner, &["SELECT n FROM log ORDER BY n"]).unwrap();
        let found: Vec<u32> = found.lines().map(|line| line.parse().unwrap()).collect();
        // One more may be there: committed when the server died, and never acknowledged.
        assert!(found.starts_with(&acknowledged) && found.len() <= acknowledged.len() + 1, "round {round}");

        // Alone, it takes writes; then the old primary follows it.
        database.psql(PostgresRole::Owner, &["INSERT INTO log VALUES (0)"]).unwrap();
        cluster.rejoin().unwrap();
        let replication = rows(&cluster, new, &database, "SELECT sync_state FROM pg_stat_replication");
        assert_eq!(replication, "sync");
        assert_eq!(rows(&cluster, old, &database, "SELECT pg_is_in_recovery()"), "t");
    }
}

#[test]
fn chaos_a_commit_waits_for_a_standby_that_is_stopped() {
    let cluster = PostgresCluster::start(PostgresOptions::default()).unwrap();
    let database = cluster.database().unwrap();
    assert_eq!((cluster.primary(), cluster.standby()), (0, 1));
    let replication = "SELECT application_name, state, sync_state FROM pg_stat_replication";
    assert_eq!(rows(&cluster, 0, &database, replication), "server1|streaming|sync");
    database.psql(PostgresRole::Owner, &["CREATE TABLE log (n int PRIMARY KEY)"]).unwrap();

    cluster.stop(1).unwrap();
    assert_eq!(cluster.state(1), NodeState::Stopped);
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    std::thread::scope(|scope| {
        let insert = scope.spawn(|| database.psql(PostgresRole::Owner, &["INSERT INTO log VALUES (1)"]));
        wait_for("the commit to wait", || rows(&cluster, 0, &database, waits) == "1");
        assert!(!insert.is_finished());
        // Committed here, and nobody sees it before it is on the standby.
        assert_eq!(rows(&cluster, 0, &database, "SELECT count(*) FROM log"), "0");
        cluster.cont(1).unwrap();
        insert.join().unwrap().unwrap();
    });
    cluster.wait_ok().unwrap();

    // A server that is stopped, and killed as it is, comes back with its data.
    cluster.stop(0).unwrap();
    cluster.restart(0).unwrap();
    cluster.wait_ok().unwrap();
    assert_eq!(rows(&cluster, 0, &database, "SELECT count(*) FROM log"), "1");
    cluster.shutdown(1).unwrap();
    assert_eq!(cluster.state(1), NodeState::Down);
    cluster.start_all().unwrap();
}

#[test]
fn chaos_roles_passwords_and_tls_are_as_production_has_them() {
    let settings = vec![("max_connections".to_owned(), "40".to_owned())];
    let cluster = PostgresCluster::start(PostgresOptions { settings, ..PostgresOptions::default() }).unwrap();
    let database = cluster.database().unwrap();
    let psql = |role, sql: &str| database.psql(role, &[sql]);
    assert_eq!(psql(PostgresRole::App, "SHOW max_connections").unwrap().trim(), "40");
    let tls = "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert_eq!(psql(PostgresRole::App, tls).unwrap().trim(), "TLSv1.3");
    let rights = "SELECT rolname, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication \
                  FROM pg_roles WHERE rolname LIKE 'outrigger%' ORDER BY 1";
    let rights = psql(PostgresRole::Superuser, rights).unwrap();
    assert_eq!(rights, "outrigger_app|f|f|f|f|f\noutrigger_owner|f|f|f|f|f\noutrigger_relay|f|f|f|f|f\n");

    psql(PostgresRole::Owner, "CREATE SCHEMA mine CREATE TABLE things (tenant text)").unwrap();
    let denied = psql(PostgresRole::App, "SELECT * FROM mine.things").unwrap_err().to_string();
    assert!(denied.contains("permission denied for schema mine"), "{denied}");
    let denied = psql(PostgresRole::App, "CREATE TABLE public.things (n int)").unwrap_err().to_string();
    assert!(denied.contains("permission denied"), "{denied}");

    let refused = |variable: &str, value: &str| {
        let mut command = cluster.access().psql_command(0, PostgresRole::App, database.name());
        let output = command.env(variable, value).args(["-c", "SELECT 1"]).output().unwrap();
        assert!(!output.status.success(), "{variable}={value} was accepted");
        String::from_utf8(output.stderr).unwrap()
    };
    let wrong = refused("PGPASSWORD", "wrong");
    assert!(wrong.contains("password authentication failed"), "{wrong}");
    let plain = refused("PGSSLMODE", "disable");
    assert!(plain.contains("channel binding required") || plain.contains("no encryption"), "{plain}");
    let old = refused("PGSSLMAXPROTOCOLVERSION", "TLSv1.2");
    assert!(old.contains("protocol version"), "{old}");
    let secret =
        "SELECT DISTINCT split_part(rolpassword, '$', 1) FROM pg_authid WHERE rolpassword IS NOT NULL";
    assert_eq!(psql(PostgresRole::Superuser, secret).unwrap().trim(), "SCRAM-SHA-256");
}

#[test]
fn chaos_a_server_that_cannot_start_says_why_at_once() {
    let settings = vec![("wal_level".to_owned(), "nonsense".to_owned())];
    let began = Instant::now();
    let failed =
        PostgresCluster::start(PostgresOptions { settings, ..PostgresOptions::default() }).unwrap_err();
    let message = failed.to_string();
    assert!(message.contains("it ended") && message.contains("invalid value for parameter"), "{message}");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}
