//! PostgreSQL with a synchronous standby, and two sidecars on it: killed, ended, promoted.

use std::time::Duration;

use rig::{PgBouncer, PgBouncerOptions, PostgresCluster, PostgresOptions, PostgresRole};
use rustix::process::Signal;
use serde_json::json;

use crate::client::Ack;
use crate::load::{Load, Ways, close_after_ms, policy, run};
use crate::support::postgres::OnPostgres;
use crate::support::random::{Random, seed, size};
use crate::support::sidecar::{ACME, Sidecar};
use crate::support::wait_until;
use crate::verdict::reconciles;

/// After a fault records are accepted again within this time.
const RECOVERS: Duration = Duration::from_secs(60);

#[test]
fn chaos_postgres_counts_every_record_once_where_sidecars_and_primaries_are_killed() {
    through(size(8, 120), false, Ack::Database);
}

#[test]
fn chaos_postgres_counts_every_record_once_through_a_pooler() {
    through(size(4, 40), true, Ack::Database);
}

#[test]
fn chaos_postgres_counts_every_record_once_that_sidecars_took_to_disk() {
    through(size(6, 120), false, Ack::Spool);
}

fn through(faults: u64, is_pooled: bool, ack: Ack) {
    let seed = seed();
    println!("seed {seed}, {faults} faults, {ack:?}");
    let cluster = PostgresCluster::start(PostgresOptions::default()).unwrap();
    let pooler = is_pooled.then(|| PgBouncer::start(&cluster, PgBouncerOptions::default()).unwrap());
    let on = OnPostgres::on_cluster(&cluster, pooler.as_ref());
    let on = on.with_policy("usage.yaml", &policy(ack));
    // As `outrigger migrate` does with this policy, which the migrated one was not.
    let put =
        format!("SELECT outrigger_put_usage_terms('UTC', {}, '{{}}', '{{}}', '{{}}')", close_after_ms());
    on.database.psql(PostgresRole::Owner, &[&put]).unwrap();
    let mut sidecars = [Some(on.sidecar()), Some(on.sidecar())];
    let both = sidecars.each_ref().map(|sidecar| sidecar.as_ref().unwrap());
    let ways = if ack == Ack::Spool { Ways::spooled(both) } else { Ways::of(&both) };
    let mut random = Random::new(seed);
    let model = run(&ways, seed, |load| {
        for _ in 0..faults {
            load.until_more_are_accepted(100 + random.below(500), RECOVERS);
            std::thread::park_timeout(Duration::from_micros(random.below(30_000)));
            match random.below(4) {
                0 => {
                    cluster.kill(cluster.primary()).unwrap();
                    promote(&cluster, pooler.as_ref(), load);
                }
                1 => {
                    let sidecar = sidecars[0].as_mut().unwrap();
                    sidecar.signal(Signal::TERM);
                    assert!(sidecar.wait(RECOVERS).success());
                    start_again(&mut sidecars, 0, load);
                }
                _ => start_again(&mut sidecars, random.below(2) as usize, load),
            }
        }
        load.until_more_are_accepted(100, RECOVERS);
    });
    let [Some(one), Some(other)] = sidecars else { panic!("two sidecars") };
    if ack == Ack::Spool {
        println!("all are counted after {:?}", model.until_counted(&one, RECOVERS));
        model.lists_every_lie(&one);
    }
    model.holds(&one);
    model.holds(&other);
    reconciles(&one.directory.path().join("proxy.yaml"));
}

fn start_again(sidecars: &mut [Option<Sidecar>; 2], at: usize, load: &Load<'_>) {
    let directory = sidecars[at].take().unwrap().kill();
    let config = directory.path().join("proxy.yaml");
    let sidecar = Sidecar::serve_in(directory, &config);
    load.ways.moved(at, &sidecar);
    sidecars[at] = Some(sidecar);
}

/// Records are accepted before the old primary is made a standby of the new one.
fn promote(cluster: &PostgresCluster, pooler: Option<&PgBouncer>, load: &Load<'_>) {
    cluster.promote().unwrap();
    if let Some(pooler) = pooler {
        pooler.point_to(cluster.primary()).unwrap();
    }
    load.until_more_are_accepted(50, RECOVERS);
    cluster.rejoin().unwrap();
}

/// A commit that waits for the standby, and is cut while it does, is seen on the primary before the standby has it.
#[test]
fn chaos_postgres_tells_nobody_of_what_the_standby_may_not_have() {
    let cluster = PostgresCluster::start(PostgresOptions::default()).unwrap();
    let on = OnPostgres::on_cluster(&cluster, None);
    let sidecar = on.sidecar();
    let bearer = sidecar.bearer(ACME);
    let record = |key: &str| {
        let time =
            jiff::Timestamp::from_second(jiff::Timestamp::now().as_second().div_euclid(3600) * 3600).unwrap();
        let record =
            json!({"metric": "api_calls", "value": 1, "time": time.to_string(), "idempotency_key": key});
        let headers = [
            ("Authorization", bearer.as_str()),
            ("Content-Type", "application/json"),
            ("Outrigger-Timeout-Ms", "18000"),
        ];
        let body = json!({"records": [record]}).to_string();
        sidecar.client().send("POST", "/v1/usage", &headers, body.as_bytes())
    };
    // Its tenant repeats itself, so that its keys are looked up before anything is written.
    assert_eq!((record("one").status, record("one").json()["duplicates"].clone()), (202, json!(1)));
    let superuser =
        |statement: &str| on.database.psql(PostgresRole::Superuser, &[statement]).unwrap().trim().to_owned();
    // Housekeeping locks what it makes and drops: it waits for the standby too, if it is at it by then.
    wait_until("the first housekeeping", RECOVERS, || superuser(HOUSE_IS_KEPT) == "t");
    cluster.stop(cluster.standby()).unwrap();
    let told = std::thread::scope(|scope| {
        let records = scope.spawn(|| record("two"));
        wait_until("a commit that waits", RECOVERS, || superuser(&format!("SELECT count(*) {WAITS}")) == "1");
        assert_eq!(superuser(&format!("SELECT pg_terminate_backend(pid) {WAITS}")), "t");
        records.join().unwrap()
    });
    told.problem(503, "outcome_unknown");
    record("two").problem(503, "outcome_unknown");
    cluster.cont(cluster.standby()).unwrap();
    assert_eq!(record("two").json()["duplicates"], 1);
}

const HOUSE_IS_KEPT: &str =
    "SELECT count(*) = 1 FROM leases WHERE name = 'usage/housekeeping' AND owner IS NULL";
const WAITS: &str = "FROM pg_stat_activity waits WHERE wait_event = 'SyncRep' \
     AND EXISTS (SELECT FROM pg_locks WHERE pid = waits.pid AND relation = 'usage_dedupe'::regclass)";
