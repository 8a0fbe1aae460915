//! One tenant's slow transactions leave the others their connections.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::{join, join_all};
use uuid::Uuid;

use super::bench::{Bench, bench};
use super::classify::PgError;
use super::metrics::PostgresMetrics;
use super::pool::{ConnectAs, Postgres};
use super::tx::Tenants;
use crate::error::ErrorKind;
use crate::telemetry::{HealthBoard, Registry};

const A: Tenants = Tenants::One(Uuid::from_u128(1));
const B: Tenants = Tenants::One(Uuid::from_u128(2));
const C: Tenants = Tenants::One(Uuid::from_u128(3));

/// A pool of so many connections to the bench's database, with the default share.
fn pool(bench: &Bench, connections: usize, wait_ms: u64) -> (Arc<Postgres>, Registry) {
    let (mut config, registry) = (bench.config.clone(), Registry::default());
    (config.connections, config.tenant_connections, config.wait_ms) = (connections, None, wait_ms);
    let metrics = PostgresMetrics::new(&registry).unwrap();
    let health = HealthBoard::default().add("postgres", false);
    (
        Postgres::start(&config, &ConnectAs::App(&config.app), health, &metrics, &bench.tasks).unwrap(),
        registry,
    )
}

async fn slow(postgres: &Postgres, tenant: Tenants) -> Result<(), PgError> {
    postgres
        .run_for(tenant, |tx| tx.query("SELECT pg_sleep(1)", &[]).map(|rows| rows.map(drop)).boxed())
        .await
}

async fn quick(postgres: &Postgres, tenant: Tenants) -> Result<Duration, PgError> {
    let began = Instant::now();
    postgres.run_for(tenant, |tx| tx.query("SELECT 1", &[]).map(|rows| rows.map(drop)).boxed()).await?;
    Ok(began.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_slow_reads_of_one_tenant_leave_another_served() {
    let bench = bench(8).await;
    let (postgres, _registry) = pool(&bench, 8, 30_000);
    quick(&postgres, B).await.unwrap();
    let slow_ones = join_all((0..40).map(|_| slow(&postgres, A)));
    let others = async {
        // One after the other, while the forty take 10 s with four connections.
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            longest = longest.max(quick(&postgres, B).await.unwrap());
        }
        (Instant::now(), longest)
    };
    let began = Instant::now();
    let (ended, (others_ended, longest)) = join(slow_ones, others).await;
    let all = began.elapsed();
    println!(
        "40 slow ones in {all:?}; the others' longest {longest:?}, all 20 in {:?}",
        others_ended - began
    );
    assert!(ended.iter().all(Result::is_ok), "a tenant's own wait for each other: {ended:?}");
    assert!(all >= Duration::from_secs(10), "with more than four connections at once: {all:?}");
    assert!(longest < Duration::from_millis(2500), "another tenant waited for {longest:?}");
    assert!(others_ended - began < all, "the others came last: this shows nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_reads_of_two_tenants_leave_a_third_served_at_once() {
    let bench = bench(8).await;
    let (postgres, _registry) = pool(&bench, 8, 30_000);
    quick(&postgres, C).await.unwrap();
    let slow_ones =
        join_all((0..40).map(|at: u32| slow(&postgres, if at.is_multiple_of(2) { A } else { B })));
    let third = async {
        let mut longest = Duration::ZERO;
        for _ in 0..100 {
            longest = longest.max(quick(&postgres, C).await.unwrap());
        }
        longest
    };
    let (ended, longest) = join(slow_ones, third).await;
    println!("beside two that have all they may, a third one's longest took {longest:?}");
    assert!(ended.iter().all(Result::is_ok), "{ended:?}");
    assert!(longest < Duration::from_millis(900), "it waited for one of theirs to end: {longest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_its_share_a_tenant_hears_that_it_is_overloaded_and_nobody_else_does() {
    let bench = bench(4).await;
    let (postgres, registry) = pool(&bench, 4, 200);
    // The connections that tenants have are there: beside one that has two another has one.
    let made = join_all([slow(&postgres, A), slow(&postgres, A), slow(&postgres, B)]).await;
    drop(made);
    let (ended, others) =
        join(join_all((0..20).map(|_| slow(&postgres, A))), join_all((0..2).map(|_| quick(&postgres, B))))
            .await;
    let refused: Vec<_> = ended.iter().filter_map(|one| one.as_ref().err()).collect();
    assert!(refused.len() >= 16, "{ended:?}");
    for error in &refused {
        assert!(matches!(error, PgError::ShareTaken), "{error}");
        assert_eq!(error.kind(), ErrorKind::Overloaded);
    }
    assert!(others.iter().all(Result::is_ok), "{others:?}");
    let text = registry.render().unwrap();
    let counted = format!("outrigger_store_postgres_overloads_total{{role=\"app\"}} {}", refused.len());
    assert!(text.contains(&counted), "{text}");
    // What is nobody's in particular has no share.
    let all = join_all((0..4).map(|_| slow(&postgres, Tenants::None))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
}

/// The server's process of a short transaction's connection.
async fn process(postgres: &Postgres, tenant: Tenants) -> Result<i32, PgError> {
    const SHORT: &str = "SELECT pg_backend_pid(), pg_sleep(0.02)";
    let rows: Result<_, PgError> = postgres.run_for(tenant, |tx| tx.query(SHORT, &[]).boxed()).await;
    rows.map(|rows| rows[0].get(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_leave_at_once_make_nobody_connect_anew() {
    let bench = bench(4).await;
    let (postgres, _registry) = pool(&bench, 4, 5000);
    let mut before = BTreeSet::new();
    while before.len() < 3 {
        let all = join_all([A, A, B].map(|tenant| process(&postgres, tenant))).await;
        before.extend(all.into_iter().map(Result::unwrap));
    }
    let mut longest = Duration::ZERO;
    for _ in 0..30 {
        let hasty = (0..8).map(|_| tokio::time::timeout(Duration::from_millis(3), process(&postgres, A)));
        let began = Instant::now();
        let served = async { (process(&postgres, B).await.unwrap(), began.elapsed()) };
        let (left, (served, took)) = join(join_all(hasty), served).await;
        assert!(left.iter().all(Result::is_err), "{left:?}");
        assert!(before.contains(&served), "another tenant had to connect");
        longest = longest.max(took);
    }
    println!("another tenant's 20 ms took {longest:?} at the most");
    let after = join_all([A, A, B].map(|tenant| process(&postgres, tenant))).await;
    assert!(after.into_iter().all(|one| before.contains(&one.unwrap())), "a connection was closed");
}
