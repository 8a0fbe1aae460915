//! PostgreSQL with a synchronous standby, and two sidecars on it: killed, stopped, promoted, held up.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rig::{PgBouncer, PgBouncerOptions, PostgresCluster, PostgresOptions, PostgresRole};
use rustix::process::Signal;

use crate::load::{LEASE_MS, Load};
use crate::support::doors::Doors;
use crate::support::postgres::OnPostgres;
use crate::support::random::{Random, seed, size};
use crate::support::sidecar::Sidecar;
use crate::support::wait_until;

/// After a fault events are accepted again within this time.
pub const RECOVERS: Duration = Duration::from_secs(40);
/// The server ends a session of the application's role that is idle in a transaction after 15 s.
const IDLE: Duration = Duration::from_secs(20);
/// What a transaction of the application's role begins with, and the floor that a writer holds.
const HOLD_FLOOR: &str = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '15s'; \
     SELECT pg_advisory_xact_lock_shared(1869968498, (last_value & 2147483647)::integer) FROM events_id_seq;\n";
/// What a report or a dump does.
const HOLD_SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM events; \
     SELECT pg_current_xact_id();\n";

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    KillSidecar,
    DrainSidecar,
    StopSidecar,
    KillPrimary,
    StopPrimary,
    HoldFloor,
    HoldSnapshot,
}

/// The servers, and two sidecars on a database of them.
pub struct Bench {
    // Dropped in this order: what is served goes before what serves it.
    sidecars: [Option<Sidecar>; 2],
    pub on: OnPostgres,
    pooler: Option<PgBouncer>,
    cluster: PostgresCluster,
    pub random: Random,
}

impl Bench {
    /// With more of `proxy.yaml`.
    pub fn new(pooled: bool, seed: u64, more: &str) -> Self {
        let cluster = PostgresCluster::start(PostgresOptions::default()).unwrap();
        let pooler = pooled.then(|| PgBouncer::start(&cluster, PgBouncerOptions::default()).unwrap());
        let on = OnPostgres::on_cluster(&cluster, pooler.as_ref()).with_config(more);
        let sidecars = [Some(on.sidecar()), Some(on.sidecar())];
        Self { sidecars, on, pooler, cluster, random: Random::new(seed) }
    }

    pub fn doors(&self) -> Doors {
        let [Some(one), Some(other)] = &self.sidecars else { panic!("two sidecars") };
        Doors::of(&[one, other])
    }

    /// Makes it happen among events that are accepted, and waits until they are accepted again.
    pub fn happens(&mut self, fault: Fault, load: &Load<'_>) {
        load.until_more_are_acknowledged(50 + self.random.below(200), RECOVERS);
        std::thread::park_timeout(Duration::from_micros(self.random.below(30_000)));
        let began = Instant::now();
        let at = self.random.below(2) as usize;
        match fault {
            Fault::KillSidecar => self.start_again(at, load),
            Fault::DrainSidecar => {
                let sidecar = self.sidecars[at].as_mut().unwrap();
                sidecar.signal(Signal::TERM);
                assert!(sidecar.wait(RECOVERS).success());
                self.start_again(at, load);
            }
            Fault::StopSidecar => {
                let sidecar = self.sidecars[at].as_ref().unwrap();
                sidecar.signal(Signal::STOP);
                std::thread::park_timeout(Duration::from_millis(LEASE_MS + 500 + self.random.below(1000)));
                sidecar.signal(Signal::CONT);
            }
            Fault::KillPrimary => {
                self.cluster.kill(self.cluster.primary()).unwrap();
                self.promote(load);
            }
            Fault::StopPrimary => {
                self.cluster.stop(self.cluster.primary()).unwrap();
                self.promote(load);
            }
            // The server ends it, not this test.
            Fault::HoldFloor => self.hold(PostgresRole::App, HOLD_FLOOR, || {
                wait_until("the end of a session that is idle", IDLE, || self.sessions_of_psql() == "0");
            }),
            Fault::HoldSnapshot => self.hold(PostgresRole::Owner, HOLD_SNAPSHOT, || {
                load.until_more_are_acknowledged(200, RECOVERS);
            }),
        }
        let took = began.elapsed();
        let again = load.until_more_are_acknowledged(50, RECOVERS);
        println!("{fault:?}: {took:?}, and events were accepted {again:?} later");
    }

    fn start_again(&mut self, at: usize, load: &Load<'_>) {
        let directory = self.sidecars[at].take().unwrap().kill();
        let config = directory.path().join("proxy.yaml");
        let sidecar = Sidecar::serve_in(directory, &config);
        load.doors.moved(at, &sidecar);
        self.sidecars[at] = Some(sidecar);
    }

    /// Events are accepted before the old primary is made a standby of the new one.
    fn promote(&self, load: &Load<'_>) {
        self.cluster.promote().unwrap();
        if let Some(pooler) = &self.pooler {
            pooler.point_to(self.cluster.primary()).unwrap();
        }
        let accepted = load.until_more_are_acknowledged(50, RECOVERS);
        println!("events were accepted {accepted:?} after the promotion");
        self.cluster.rejoin().unwrap();
    }

    /// A session that has begun and does not end.
    fn hold(&self, role: PostgresRole, statements: &str, until: impl FnOnce()) {
        let access = self.cluster.access();
        let mut command: Command = access.psql_command(self.cluster.primary(), role, self.on.database.name());
        let mut held =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        held.stdin.as_mut().unwrap().write_all(statements.as_bytes()).unwrap();
        wait_until("a session that holds", RECOVERS, || self.sessions_of_psql() == "1");
        until();
        drop(held.stdin.take());
        held.wait().unwrap();
    }

    /// Those that are idle in a transaction.
    fn sessions_of_psql(&self) -> String {
        let statement = "SELECT count(*) FROM pg_stat_activity \
                         WHERE application_name = 'psql' AND state = 'idle in transaction'";
        let found = self.on.database.psql(PostgresRole::Superuser, &[statement]).unwrap();
        found.trim().to_owned()
    }
}

fn run(pooled: bool, faults: &[Fault], rounds: u64) {
    let seed = seed();
    println!("seed {seed}, {rounds} times {faults:?}, pooled: {pooled}");
    let mut bench = Bench::new(pooled, seed, "");
    let doors = bench.doors();
    let load = Load::new(&doors);
    let verdict = load.run(seed, |load| {
        for _ in 0..rounds {
            for fault in faults {
                bench.happens(*fault, load);
            }
        }
    });
    println!("{}", verdict.holds());
}

#[test]
fn chaos_postgres_keeps_every_event_beside_sidecars_that_are_killed_and_stopped() {
    run(
        false,
        &[Fault::KillSidecar, Fault::StopSidecar, Fault::DrainSidecar, Fault::HoldSnapshot],
        size(2, 30),
    );
}

#[test]
fn chaos_postgres_keeps_every_event_where_a_primary_is_killed_and_its_standby_promoted() {
    run(false, &[Fault::KillPrimary], size(2, 30));
}

#[test]
fn chaos_postgres_keeps_every_event_where_a_primary_hangs_and_its_standby_is_promoted() {
    run(false, &[Fault::StopPrimary], size(1, 20));
}

#[test]
fn chaos_postgres_keeps_every_event_beside_a_session_that_holds_the_floor() {
    run(false, &[Fault::HoldFloor], size(1, 10));
}

#[test]
fn chaos_postgres_keeps_every_event_through_a_pooler() {
    run(true, &[Fault::KillSidecar, Fault::StopSidecar, Fault::KillPrimary], size(1, 20));
}
