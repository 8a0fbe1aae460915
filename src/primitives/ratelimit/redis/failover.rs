//! What four processes admit together, and what one admits on a cluster that has forgotten tokens.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rig::{Options, RedisCluster};

use super::super::conformance::{asks, rule};
use super::tests::source_on;
use super::*;
use crate::telemetry::BackendState;

const REQUESTS: u64 = 1000;
const PER_MS: u64 = 500;
const BURST: u64 = 1500;

#[derive(Default)]
struct Counts {
    exact: AtomicU64,
    degraded: AtomicU64,
    denied: AtomicU64,
}

/// A source as a process has it some time after its start: it has seen the whole cluster.
async fn ready_source(cluster: &RedisCluster, tasks: &Tasks) -> Arc<RedisSource> {
    source_on(&cluster.addresses(), BackendState::Up, tasks, 20).await
}

/// Calls of four processes on one bucket for some time; how long that was.
async fn hammer(cluster: &RedisCluster, tenant: Uuid, counts: &Arc<Counts>, time: Duration) -> Duration {
    let tasks = Tasks::default();
    let mut sources = Vec::new();
    for _ in 0..4 {
        sources.push(ready_source(cluster, &tasks).await);
    }
    let began = Instant::now();
    let mut callers = tokio::task::JoinSet::new();
    for source in sources.iter().cycle().take(16) {
        let (source, counts) = (Arc::clone(source), Arc::clone(counts));
        let rule = rule("api", REQUESTS, PER_MS, BURST);
        callers.spawn(async move {
            while began.elapsed() < time {
                let outcome = source.take(&asks(tenant, 10, &[(&rule, "/shared", 1)])).outcome().await;
                let counter = match (outcome.allowed, outcome.source) {
                    (false, _) => &counts.denied,
                    (true, Source::Backend) => &counts.exact,
                    (true, _) => &counts.degraded,
                };
                counter.fetch_add(1, Relaxed);
                tokio::task::yield_now().await;
            }
        });
    }
    callers.join_all().await;
    let took = began.elapsed();
    assert!(tasks.stop(Duration::from_secs(5)).await);
    took
}

fn allowed_in(took: Duration) -> u64 {
    BURST + u64::try_from(took.as_millis()).unwrap() * REQUESTS / PER_MS
}

fn print(counts: &Counts, took: Duration) {
    println!(
        "{} exact of {} in {took:?}; {} degraded, {} denied",
        counts.exact.load(Relaxed),
        allowed_in(took),
        counts.degraded.load(Relaxed),
        counts.denied.load(Relaxed),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_four_processes_share_one_limit_to_the_token() {
    let cluster = RedisCluster::start(Options::default()).unwrap();
    let counts = Arc::new(Counts::default());
    let took = hammer(&cluster, Uuid::new_v4(), &counts, Duration::from_secs(3)).await;
    print(&counts, took);
    let exact = counts.exact.load(Relaxed);
    assert!(exact <= allowed_in(took) && counts.denied.load(Relaxed) > 100);
}

/// The worst case, made certain: a replica that has none of the tokens taken becomes primary within a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_tokens_lost_at_a_failover_are_given_again_as_degraded_only() {
    let cluster = RedisCluster::start(Options::default()).unwrap();
    let tasks = Tasks::default();
    let (tenant, slow) = (Uuid::new_v4(), rule("api", 1, 60_000, 50));
    let slot = cluster.slot_of(&format!("{{{tenant}}}")).unwrap();
    let source = ready_source(&cluster, &tasks).await;
    let primary = cluster.primary_of(slot).unwrap();
    let replica = cluster.replica_of(primary).unwrap();
    cluster.stop(replica).unwrap();
    cluster.cli_at(primary, &["CLIENT", "KILL", "TYPE", "REPLICA"]).unwrap();
    let all = source.take(&asks(tenant, 10, &[(&slow, "k", 50)])).outcome().await;
    assert_eq!((all.allowed, all.source), (true, Source::Backend));
    assert!(!source.take(&asks(tenant, 10, &[(&slow, "k", 1)])).outcome().await.allowed);
    cluster.kill(primary).unwrap();
    cluster.cont(replica).unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    // Until Redis answers again, the process counts its share alone.
    let mut first = source.take(&asks(tenant, 10, &[(&slow, "k", 1)])).outcome().await;
    while first.source == Source::Local {
        assert!(Instant::now() < end, "redis did not answer again");
        ticks.tick().await;
        first = source.take(&asks(tenant, 10, &[(&slow, "k", 1)])).outcome().await;
    }
    assert_eq!((first.allowed, first.source), (true, Source::Recovering), "the replica had every token");
    let again = source.take(&asks(tenant, 10, &[(&slow, "k", 49)])).outcome().await;
    assert_eq!((again.allowed, again.source), (true, Source::Recovering));
    // What would be full again by now whatever was lost is exact.
    let quick = rule("quick", 1000, 100, 1);
    let exact = source.take(&asks(tenant, 10, &[(&quick, "k", 1)])).outcome().await;
    assert_eq!((exact.allowed, exact.source), (true, Source::Backend));
    assert!(tasks.stop(Duration::from_secs(5)).await);
}

/// One look of a process that has just started.
async fn first_look(cluster: &RedisCluster, tenant: Uuid) -> Source {
    let tasks = Tasks::default();
    let source = source_on(&cluster.addresses(), BackendState::Up, &tasks, 1000).await;
    let slow = rule("api", 1, 60_000, 50);
    let outcome = source.take(&asks(tenant, 10, &[(&slow, "k", 0)])).outcome().await;
    assert!(tasks.stop(Duration::from_secs(5)).await);
    outcome.source
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_a_process_that_starts_knows_of_what_happened_before() {
    let cluster = RedisCluster::start(Options::default()).unwrap();
    let tenant = Uuid::new_v4();
    let slot = cluster.slot_of(&format!("{{{tenant}}}")).unwrap();
    // The record's own primary: what is known must survive it.
    let keeper = cluster.slot_of("outrigger:rate-limit-histories").unwrap();
    let elsewhere = std::iter::repeat_with(Uuid::new_v4).find(|other| {
        let primary = |slot| cluster.primary_of(slot).unwrap();
        primary(cluster.slot_of(&format!("{{{other}}}")).unwrap()) != primary(keeper)
    });
    let elsewhere = elsewhere.unwrap();
    for _ in 0..2 {
        assert_eq!(first_look(&cluster, tenant).await, Source::Backend);
    }
    cluster.kill(cluster.primary_of(keeper).unwrap()).unwrap();
    cluster.wait_ok().unwrap();
    assert_eq!(first_look(&cluster, elsewhere).await, Source::Backend, "its primary is as it was");
    let replica = cluster.replica_of(cluster.primary_of(slot).unwrap());
    if let Ok(replica) = replica {
        cluster.failover(replica).unwrap();
    }
    assert_eq!(first_look(&cluster, tenant).await, Source::Recovering);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_a_process_that_starts_after_the_whole_cluster_was_killed_says_degraded() {
    let cluster = RedisCluster::start(Options::default()).unwrap();
    let tenant = Uuid::new_v4();
    assert_eq!(first_look(&cluster, tenant).await, Source::Backend);
    for node in 0..rig::NODES {
        cluster.kill(node).unwrap();
    }
    cluster.start_all().unwrap();
    for _ in 0..2 {
        assert_eq!(first_look(&cluster, tenant).await, Source::Recovering);
    }
}
