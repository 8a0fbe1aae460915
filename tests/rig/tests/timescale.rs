//! What the tests on TimescaleDB rely on: sessions one after the other, each of its own role, and nothing left of the one before.

#![allow(clippy::unwrap_used, reason = "test code")]

use rig::{PostgresRole, TimescaleServer};

#[test]
fn timescale_serves_sessions_in_turn_each_as_its_own_role() {
    let server = TimescaleServer::start().unwrap();
    let (app, owner) = (PostgresRole::App, PostgresRole::Owner);
    let who = "SELECT session_user || ' ' || current_user || ' ' || (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)";
    assert_eq!(server.psql(app, &[who]).unwrap().trim(), "outrigger_app outrigger_app false");
    let there = "SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'";
    assert_eq!(server.psql(owner, &[there]).unwrap().trim(), "1");
    let made = ["CREATE TABLE t (a int)", "INSERT INTO t VALUES (1)", "SET app.tenant_id = 'x'", "BEGIN"];
    server.psql(owner, &made).unwrap();
    let refused = server.psql(app, &["SELECT * FROM t"]).unwrap_err().to_string();
    assert!(refused.contains("permission denied for table t"), "{refused}");
    let refused = server.psql(app, &["SET ROLE outrigger_owner"]).unwrap_err().to_string();
    assert!(refused.contains("permission denied to set role"), "{refused}");
    let left = "SELECT coalesce(current_setting('app.tenant_id', true), ''), (SELECT count(*) FROM t)";
    assert_eq!(server.psql(owner, &[left]).unwrap().trim(), "|1");
    // Both at once, in turn.
    std::thread::scope(|scope| {
        let sessions: Vec<_> =
            (0..3).map(|_| scope.spawn(|| server.psql(owner, &["INSERT INTO t VALUES (2)"]))).collect();
        sessions.into_iter().for_each(|session| drop(session.join().unwrap().unwrap()));
    });
    assert_eq!(server.psql(owner, &["SELECT sum(a) FROM t"]).unwrap().trim(), "7");
}
