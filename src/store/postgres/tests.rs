//! Transactions on a real PostgreSQL, directly and through PgBouncer in transaction mode.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::{join, join_all};
use rig::{PgBouncerOptions, PostgresCluster, PostgresOptions, PostgresRole, shared_postgres};
use tokio::sync::{Semaphore, watch};
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::bench::{self, Bench, bench_at};
use super::classify::{Failure, PgError};
use super::connect::StartError;
use super::metrics::PostgresMetrics;
use super::pool::{ConnectAs, Postgres};
use super::tx::{PgTx, Tenants};
use crate::tasks::Tasks;
use crate::telemetry::{HealthBoard, Registry};

const NOTES: &[&str] = &[
    "CREATE TABLE notes (tenant_id uuid NOT NULL, id bigint, text text NOT NULL, PRIMARY KEY (tenant_id, id))",
    "ALTER TABLE notes ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE notes FORCE ROW LEVEL SECURITY",
    "CREATE POLICY own ON notes USING (tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')::uuid)) \
     WITH CHECK (tenant_id = (SELECT nullif(current_setting('app.tenant_id', true), '')::uuid))",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON notes TO outrigger_app",
];
const INSERT: &str = "INSERT INTO notes (tenant_id, id, text) VALUES ($1, $2, $3)";
const TOUCH: &str = "UPDATE notes SET text = text || '.' WHERE id = $1";
/// A look that fails takes a moment, and a busy machine.
const BOUND: Duration = Duration::from_secs(20);
const TENANTS: &str = "SELECT DISTINCT tenant_id FROM notes";

/// A migrated database with notes, and so many connections to it.
async fn noted(connections: usize) -> Bench {
    let bench = bench::bench(connections).await;
    bench.database.psql(PostgresRole::Owner, NOTES).unwrap();
    bench
}

async fn insert(tx: &mut PgTx, tenant: Uuid, id: i64) -> Result<(), PgError> {
    tx.query(INSERT, &[(&tenant, Type::UUID), (&id, Type::INT8), (&"text", Type::TEXT)]).await.map(drop)
}

/// The tenants whose rows a transaction of `tenant` sees.
async fn seen(postgres: &Postgres, tenant: Uuid) -> Vec<Uuid> {
    let rows = postgres.run_for(Tenants::One(tenant), |tx| tx.query(TENANTS, &[]).boxed()).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// Commits, aborts, refused statements, dropped futures of two tenants on one connection.
async fn interleave(bench: &Bench) {
    let (postgres, tenants) = (&bench.postgres, [Uuid::from_u128(1), Uuid::from_u128(2)]);
    let mut random = fastrand::Rng::with_seed(7);
    for id in 0..300_i64 {
        let (own, other) = if random.bool() { (tenants[0], tenants[1]) } else { (tenants[1], tenants[0]) };
        match random.u8(0..5) {
            0 | 1 => postgres.run_for(Tenants::One(own), |tx| insert(tx, own, id).boxed()).await.unwrap(),
            // Another tenant's row is refused, before anything of one's own and after.
            2 => {
                let ended = postgres.run_for(Tenants::One(own), |tx| insert(tx, other, id).boxed()).await;
                assert_eq!(ended.unwrap_err().failure(), Failure::Refused);
            }
            3 => {
                let ended = postgres.run_for(Tenants::One(own), |tx| {
                    async move {
                        insert(tx, own, id).await?;
                        insert(tx, other, id).await
                    }
                    .boxed()
                });
                assert_eq!(ended.await.unwrap_err().failure(), Failure::Refused);
            }
            // Its caller leaves: while it begins, or with a row inserted. What ends soon leaves the connection as it was.
            _ => {
                let sleep =
                    if random.u8(0..8) == 0 { "SELECT pg_sleep(10)" } else { "SELECT pg_sleep(0.02)" };
                let call = postgres.run_for(Tenants::One(own), |tx| {
                    async move {
                        insert(tx, own, id).await?;
                        tx.query(sleep, &[]).await.map(drop)
                    }
                    .boxed()
                });
                let gone = Duration::from_micros(random.u64(0..3000));
                assert!(tokio::time::timeout(gone, call).await.is_err());
            }
        }
        for tenant in tenants {
            assert!(seen(postgres, tenant).await.iter().all(|found| *found == tenant), "{id}");
        }
    }
    let count = "SELECT tenant_id, count(*) FROM notes GROUP BY 1 ORDER BY 1";
    let rows = bench.database.psql(PostgresRole::Superuser, &[count]).unwrap();
    assert_eq!(rows.trim().lines().count(), 2, "both tenants stored some: {rows}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_that_share_one_connection_see_their_own_rows() {
    let bench = noted(1).await;
    interleave(&bench).await;
    assert!(bench.tasks.stop(Duration::from_secs(5)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_with_statements_that_are_prepared_once() {
    let mut bench = noted(1).await;
    let (unnamed, board) = (named(&bench).await, HealthBoard::default());
    bench.config.prepared = true;
    let health = board.add("postgres", false);
    let metrics = PostgresMetrics::new(&Registry::default()).unwrap();
    let role = ConnectAs::App(&bench.config.app);
    bench.postgres = Postgres::start(&bench.config, &role, health, &metrics, &bench.tasks).unwrap();
    interleave(&bench).await;
    assert_eq!(unnamed, 0);
    // The one that reads, the one for the tenants and the one that counts; more where no caller left at last.
    assert!(named(&bench).await >= 3);
}

/// The statements that are prepared on the one connection.
async fn named(bench: &Bench) -> i64 {
    const COUNT: &str = "SELECT count(*) FROM pg_prepared_statements WHERE NOT from_sql";
    let rows = bench.postgres.run_for(Tenants::None, |tx| tx.query(COUNT, &[]).boxed()).await.unwrap();
    rows[0].get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_through_a_pooler_that_gives_each_transaction_another_connection() {
    let servers = shared_postgres();
    let database = servers.database().unwrap();
    let bouncer = servers.bouncer(PgBouncerOptions { pool_size: 1, ..PgBouncerOptions::default() }).unwrap();
    let direct = [servers.access().address(0)];
    let bench = bench_at(&direct, &[bouncer.address()], servers.access(), database, 3).await;
    bench.database.psql(PostgresRole::Owner, NOTES).unwrap();
    interleave(&bench).await;
    assert!(bench.tasks.stop(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn a_row_is_seen_by_no_one_who_names_no_tenant() {
    let bench = noted(1).await;
    let tenant = Uuid::from_u128(1);
    bench.postgres.run_for(Tenants::One(tenant), |tx| insert(tx, tenant, 1).boxed()).await.unwrap();
    let rows = bench.database.psql(PostgresRole::App, &["SELECT count(*) FROM notes"]).unwrap();
    assert_eq!(rows.trim(), "0");
    assert_eq!(seen(&bench.postgres, tenant).await, [tenant]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadlock_is_run_again_and_both_end() {
    let bench = noted(2).await;
    let tenant = Uuid::from_u128(1);
    for id in [1, 2] {
        bench.postgres.run_for(Tenants::One(tenant), |tx| insert(tx, tenant, id).boxed()).await.unwrap();
    }
    // Each holds its first row until the other has its own, or a deadlock was found.
    let touch = |first: i64, second: i64| {
        bench.postgres.run_for(Tenants::One(tenant), move |tx| {
            async move {
                tx.query(TOUCH, &[(&first, Type::INT8)]).await?;
                tx.query("SELECT pg_sleep(0.2)", &[]).await?;
                tx.query(TOUCH, &[(&second, Type::INT8)]).await.map(drop)
            }
            .boxed()
        })
    };
    let (one, other) = join(touch(1, 2), touch(2, 1)).await;
    assert!(one.is_ok() && other.is_ok(), "{one:?} {other:?}");
    let texts = bench.database.psql(PostgresRole::Superuser, &["SELECT text FROM notes"]).unwrap();
    assert!(texts.lines().all(|text| text == "text.."), "each was touched twice: {texts}");
    let deadlocks = "SELECT deadlocks > 0 FROM pg_stat_database WHERE datname = current_database()";
    let flushed = Instant::now() + Duration::from_secs(10);
    while bench.database.psql(PostgresRole::Superuser, &[deadlocks]).unwrap().trim() != "t" {
        assert!(Instant::now() < flushed, "no deadlock came about: this showed nothing");
    }
}

#[tokio::test]
async fn connections_are_made_when_needed_and_closed_when_unused() {
    let bench = noted(4).await;
    assert_eq!(bench.postgres.connections(), 0);
    seen(&bench.postgres, Uuid::from_u128(1)).await;
    assert_eq!(bench.postgres.connections(), 1);
    let end = Instant::now() + Duration::from_secs(10);
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    while bench.postgres.connections() > 0 {
        assert!(Instant::now() < end, "an unused connection stays");
        ticks.tick().await;
    }
}

#[tokio::test]
async fn what_the_server_said_is_in_the_text_but_no_value_is() {
    let bench = noted(1).await;
    let tenant = Tenants::One(Uuid::from_u128(1));
    for (statement, expected) in [
        ("SELECT FROM nowhere", "PostgreSQL: relation \"nowhere\" does not exist (SQLSTATE 42P01)"),
        ("SELECT 'canary'::bigint", "PostgreSQL: a value is not taken (SQLSTATE 22P02)"),
    ] {
        let ended = bench.postgres.run_for(tenant.clone(), move |tx| tx.query(statement, &[]).boxed()).await;
        assert_eq!(ended.map(drop).unwrap_err().to_string(), expected);
    }
    let address = shared_postgres().access().address(0);
    let authority = shared_postgres().access().certificate().authority.clone();
    let (config, _secrets) = bench::config(&[address], "not_there", Some(authority));
    let text = Postgres::open(&config, &ConnectAs::App(&config.app)).await.map(drop).unwrap_err();
    assert!(text.contains("database \"not_there\" does not exist (SQLSTATE 3D000)"), "{text}");
}

#[tokio::test]
async fn a_server_that_is_not_there_and_one_of_another_authority_write_nothing_and_say_so() {
    let servers = shared_postgres();
    let database = servers.database().unwrap();
    let tasks = Tasks::default();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let authority = servers.access().certificate().authority.clone();
    let address = servers.access().address(0);
    for (server, ca_file) in [(nobody.to_string(), Some(authority)), (address, None)] {
        let (mut config, _secrets) = bench::config(std::slice::from_ref(&server), database.name(), ca_file);
        if config.tls.is_none() {
            config.tls = Some(serde_json::from_value(serde_json::json!({})).unwrap());
        }
        config.wait_ms = 500;
        let board = HealthBoard::default();
        let health = board.add("postgres", false);
        let metrics = PostgresMetrics::new(&Registry::default()).unwrap();
        let role = ConnectAs::App(&config.app);
        let postgres = Postgres::start(&config, &role, health, &metrics, &tasks).unwrap();
        let tenant = Tenants::One(Uuid::from_u128(1));
        let ended: Result<_, PgError> =
            postgres.run_for(tenant.clone(), |tx| tx.query("SELECT 1", &[]).boxed()).await;
        assert_eq!(ended.unwrap_err().failure(), Failure::Unavailable, "{server}");
        // The call's wait may have ended before the first look did.
        let mut ticks = tokio::time::interval(Duration::from_millis(5));
        let deadline = Instant::now() + BOUND;
        loop {
            let report = board.reports().remove(0);
            if report.advice.contains("503 until it answers") {
                break;
            }
            assert!(Instant::now() < deadline, "{server}: {report:?}");
            ticks.tick().await;
        }
    }
    let (plain, _secrets) = bench::config(&["db.example:5432".to_owned()], "any", None);
    let metrics = PostgresMetrics::new(&Registry::default()).unwrap();
    let started = Postgres::new(&plain, &ConnectAs::App(&plain.app), &metrics, &Tasks::default());
    assert!(matches!(started, Err(StartError::Plain(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_caller_that_left_had_locked_is_free_soon() {
    let bench = noted(2).await;
    let tenant = Uuid::from_u128(1);
    bench.postgres.run_for(Tenants::One(tenant), |tx| insert(tx, tenant, 1).boxed()).await.unwrap();
    let (touched, told) = tokio::sync::watch::channel(false);
    let leaves = bench.postgres.run_for(Tenants::One(tenant), |tx| {
        let touched = touched.clone();
        async move {
            tx.query(TOUCH, &[(&1_i64, Type::INT8)]).await?;
            touched.send_replace(true);
            tx.query("SELECT pg_sleep(8)", &[]).await.map(drop)
        }
        .boxed()
    });
    let mut told = told;
    tokio::select! {
        ended = leaves => panic!("{ended:?}"),
        // Once more after the row is locked, so that the sleep is under way.
        () = async { told.wait_for(|touched| *touched).await.unwrap(); tokio::task::yield_now().await } => {}
    }
    let began = Instant::now();
    bench
        .postgres
        .run_for(Tenants::One(tenant), |tx| tx.query(TOUCH, &[(&1_i64, Type::INT8)]).boxed())
        .await
        .unwrap();
    assert!(began.elapsed() < Duration::from_secs(4), "its lock stayed for {:?}", began.elapsed());
    let text = bench.database.psql(PostgresRole::Superuser, &["SELECT text FROM notes"]).unwrap();
    assert_eq!(text.trim(), "text.", "what was not committed is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_a_promoted_standby_is_found_and_has_what_was_committed() {
    let cluster = tokio::task::block_in_place(|| PostgresCluster::start(PostgresOptions::default())).unwrap();
    let addresses = [cluster.access().address(0), cluster.access().address(1)];
    let bench = bench_at(&addresses, &addresses, cluster.access(), cluster.database().unwrap(), 2).await;
    bench.database.psql(PostgresRole::Owner, NOTES).unwrap();
    let (tenant, postgres) = (Uuid::from_u128(1), &bench.postgres);
    for id in 0..20 {
        postgres.run_for(Tenants::One(tenant), |tx| insert(tx, tenant, id).boxed()).await.unwrap();
    }
    cluster.kill(cluster.primary()).unwrap();
    let lost = postgres.run_for(Tenants::One(tenant), |tx| insert(tx, tenant, 20).boxed()).await.unwrap_err();
    assert_eq!(lost.failure(), Failure::Unavailable, "{lost}");
    tokio::task::block_in_place(|| cluster.promote()).unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while let Err(error) = postgres.run_for(Tenants::One(tenant), |tx| insert(tx, tenant, 21).boxed()).await {
        assert_eq!(error.failure(), Failure::Unavailable, "{error}");
        assert!(Instant::now() < end, "the new primary is not found: {error}");
    }
    let count = postgres
        .run_for(Tenants::One(tenant), |tx| tx.query("SELECT count(*) FROM notes", &[]).boxed())
        .await
        .unwrap();
    assert_eq!(count[0].get::<_, i64>(0), 21, "the twenty before, and the one after");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_a_primary_that_hangs_is_given_up_and_the_promoted_standby_is_found() {
    let cluster = tokio::task::block_in_place(|| PostgresCluster::start(PostgresOptions::default())).unwrap();
    let addresses = [cluster.access().address(0), cluster.access().address(1)];
    let bench = bench_at(&addresses, &addresses, cluster.access(), cluster.database().unwrap(), 4).await;
    bench.database.psql(PostgresRole::Owner, NOTES).unwrap();
    let (tenant, postgres) = (Uuid::from_u128(1), &bench.postgres);
    let put = |id| postgres.run_for(Tenants::One(tenant), move |tx| insert(tx, tenant, id).boxed());
    // Four transactions are open, each on a connection of its own, and end when the primary has stopped.
    let (opened, stopped) = (Arc::new(Semaphore::new(0)), watch::Sender::new(false));
    let held = |id| {
        let (opened, stopped) = (Arc::clone(&opened), stopped.subscribe());
        postgres.run_for(Tenants::One(tenant), move |tx| {
            let (opened, mut stopped) = (Arc::clone(&opened), stopped.clone());
            async move {
                insert(tx, tenant, id).await?;
                opened.add_permits(1);
                stopped.wait_for(|stopped| *stopped).await.unwrap();
                Ok::<_, PgError>(())
            }
            .boxed()
        })
    };
    let stops = async {
        drop(opened.acquire_many(4).await.unwrap());
        tokio::task::block_in_place(|| cluster.stop(cluster.primary())).unwrap();
        let began = Instant::now();
        stopped.send_replace(true);
        tokio::task::block_in_place(|| cluster.promote()).unwrap();
        began
    };
    let (hung, began) = join(join_all((0..4).map(held)), stops).await;
    assert!(hung.iter().all(|ended| ended.is_err()), "{hung:?}");
    let mut id = 4;
    while let Err(error) = put(id).await {
        assert_eq!(error.failure(), Failure::Unavailable, "{error}");
        assert!(began.elapsed() < Duration::from_secs(30), "the new primary is not found: {error}");
        id += 1;
    }
    assert!(began.elapsed() < Duration::from_secs(20), "it took {:?}", began.elapsed());
}
