//! Many subscriptions, a third of whose endpoints are dead or slow: the others' deliveries take no longer for it.

use super::*;

/// What is sent in one round, to each healthy endpoint.
const EVENTS: usize = 6;
/// Rounds of each kind, in turns.
const ROUNDS: usize = 3;

/// What a thread may wait for its turn where other tests run: below it a time says nothing of the ill ones, which take 1.5 s and more.
const SCHEDULING: Duration = Duration::from_millis(5);

/// How many subscriptions there are.
fn subscriptions() -> usize {
    if std::env::var("OUTRIGGER_TEST_SIZE").is_ok_and(|size| size == "long") { 1000 } else { 120 }
}

/// The 99th percentile of the time from an event's acceptance to its arrival at a healthy endpoint.
async fn p99(bench: &Bench, well: &Receiver, round: &str, healthy: usize, ill: usize) -> Duration {
    let mut accepted = Vec::new();
    // So slow that what is measured is no queue of the test's own: it sends, receives and looks on in one process.
    let mut pace = tokio::time::interval(Duration::from_millis(4));
    for number in 0..EVENTS {
        for at in 0..healthy + ill {
            let is_healthy = at < healthy;
            let data = format!("{round}-{number}-{at}");
            let topic = if is_healthy { format!("well{at}") } else { format!("ill{}", at - healthy) };
            if is_healthy {
                accepted.push((data.clone(), Instant::now()));
            }
            bench.publish(&topic, &format!("k{number}"), &data);
            pace.tick().await;
        }
    }
    let arrived = || {
        let times = well.times();
        accepted.iter().all(|(data, _)| times.contains_key(data))
    };
    until("every event of the healthy", arrived).await;
    let times = well.times();
    let mut waits: Vec<_> = accepted.iter().map(|(data, at)| times[data].duration_since(*at)).collect();
    waits.sort_unstable();
    waits[waits.len() * 99 / 100]
}

/// The quietest round: what else runs on this machine makes one slower, and ill endpoints would slow down each.
fn quietest(times: Vec<Duration>) -> Duration {
    times.into_iter().min().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_third_of_the_endpoints_dead_or_slow_the_others_p99_is_within_twice_of_alone() {
    let all = subscriptions();
    let (ill, healthy) = (all / 3, all - all / 3);
    let (well, bad) = (Receiver::start().await, Receiver::start().await);
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let bench = Bench::new();
    let mut set: Vec<_> = (0..healthy)
        .map(|at| bench.subscription(&format!("well{at}"), &format!("http://{}/well/{at}", well.address)))
        .collect();
    for at in 0..ill {
        let url = match at % 4 {
            0 => format!("http://{}/never/{at}", bad.address),
            1 => format!("http://{free}/"),
            2 => format!("http://{}/slow/1500/{at}", bad.address),
            _ => format!("http://{}/status/500/{at}", bad.address),
        };
        let subscription = bench.subscription(&format!("ill{at}"), &url);
        let backoff = Backoff { first_ms: 5_000, max_ms: 60_000 };
        set.push(Subscription { timeout_ms: 5_000, max_attempts: 16, backoff, ..subscription });
    }
    bench.set(set);
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    p99(&bench, &well, "warm-up", healthy, 0).await;
    for round in 0..ROUNDS {
        alone.push(p99(&bench, &well, &format!("alone{round}"), healthy, 0).await);
        beside.push(p99(&bench, &well, &format!("beside{round}"), healthy, ill).await);
    }
    println!("{healthy} healthy endpoints beside {ill} dead or slow ones, P99 of acceptance to arrival:");
    println!(
        "  alone  {alone:?}\n  beside {beside:?}\n  circuits open {}",
        bench.metrics.circuits_open.get()
    );
    assert!(bad.count() > 0 && bench.metrics.attempts(Outcome::Unreachable) > 0);
    assert!(bench.metrics.circuits_open.get() > 0, "the dead ones are not tried all the time");
    let (alone, beside) = (quietest(alone), quietest(beside));
    assert!(beside <= alone.max(SCHEDULING) * 2, "{beside:?} beside the others, {alone:?} alone");
}
