//! What the tests through PgBouncer rely on: a pool in transaction mode, and a way to the other server.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use rig::{PgBouncer, PgBouncerOptions, PostgresCluster, PostgresOptions, PostgresRole};

/// A session that stays open.
struct Session {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Session {
    fn open(bouncer: &PgBouncer, database: &str) -> Self {
        let mut command = bouncer.psql_command(PostgresRole::App, database);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }

    /// Runs a statement whose reply is one line.
    fn ask(&mut self, sql: &str) -> String {
        self.send(sql);
        self.line()
    }

    fn send(&mut self, sql: &str) {
        writeln!(self.input.as_mut().unwrap(), "{sql}").unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn close(mut self) {
        drop(self.input.take());
        assert!(self.child.wait().unwrap().success());
    }
}

const BACKEND: &str = "SELECT pg_backend_pid();";

#[test]
fn chaos_sessions_share_one_connection_a_transaction_at_a_time_and_follow_a_failover() {
    let cluster = PostgresCluster::start(PostgresOptions::default()).unwrap();
    let database = cluster.database().unwrap();
    let bouncer =
        PgBouncer::start(&cluster, PgBouncerOptions { pool_size: 1, ..PgBouncerOptions::default() }).unwrap();
    let (mut first, mut second) =
        (Session::open(&bouncer, database.name()), Session::open(&bouncer, database.name()));
    // Both are open, and the one server connection serves them in turn.
    let backend = first.ask(BACKEND);
    assert_eq!(second.ask(BACKEND), backend);

    // What one has in a transaction the other waits for.
    assert_eq!(first.ask("BEGIN; SELECT 'begun';"), "begun");
    second.send(BACKEND);
    let pools = || bouncer.console("SHOW POOLS").unwrap();
    let is_waiting = |line: &str| {
        let fields: Vec<&str> = line.split('|').collect();
        fields[0] == database.name() && fields[3] == "1" && line.contains("|transaction")
    };
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !pools().lines().any(is_waiting) {
        assert!(std::time::Instant::now() < end, "nobody waits: {}", pools());
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    }
    assert_eq!(first.ask("COMMIT; SELECT 'committed';"), "committed");
    assert_eq!(second.line(), backend);

    // TLS on both sides, and no way in with a wrong password.
    let tls = "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid();";
    assert_eq!(first.ask(tls), "TLSv1.3");
    let mut wrong = bouncer.psql_command(PostgresRole::App, database.name());
    let wrong = wrong.env("PGPASSWORD", "wrong").args(["-c", "SELECT 1"]).output().unwrap();
    let text = String::from_utf8(wrong.stderr).unwrap();
    assert!(text.contains("SASL authentication failed"), "{text}");
    first.close();
    second.close();

    cluster.kill(0).unwrap();
    cluster.promote().unwrap();
    bouncer.point_to(cluster.primary()).unwrap();
    let port = bouncer.psql(PostgresRole::App, database.name(), &["SHOW port"]).unwrap();
    assert_eq!(format!("127.0.0.1:{}", port.trim()), cluster.access().address(1));

    bouncer.stop().unwrap();
    bouncer.cont().unwrap();
    bouncer.restart().unwrap();
    bouncer.psql(PostgresRole::App, database.name(), &["SELECT 1"]).unwrap();
}
