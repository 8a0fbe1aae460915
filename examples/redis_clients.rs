//! GETs a second through Outrigger's slot router and through the `redis` crate's own cluster client, in turns, on one
//! cluster: the figures of `docs/decisions/004-own-slot-router.md`.
//!
//! `make servers`, then `cargo run --release --example redis_clients`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Context;
use outrigger::config::RedisInstance;
use outrigger::pools::redis::{RedisMetrics, RedisPool, Slot};
use outrigger::tasks::Tasks;
use outrigger::telemetry::{HealthBoard, Registry};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;

const ROUNDS: usize = 11;
const ROUND: Duration = Duration::from_millis(500);
const KEYS: usize = 1000;
const BUDGET: Duration = Duration::from_secs(1);

#[derive(Clone)]
enum Contender {
    Router(Arc<RedisPool>),
    /// One client, or several in turn.
    Cluster(Vec<ClusterConnection>),
}

impl Contender {
    async fn get(&mut self, number: usize) -> anyhow::Result<()> {
        let key = format!("outrigger:clients:{}", number % KEYS);
        let mut command = redis::cmd("GET");
        command.arg(&key);
        match self {
            Self::Router(pool) => {
                pool.command(Slot::of(key.as_bytes()), &command, BUDGET).await?;
            }
            Self::Cluster(clients) => {
                let place = number % clients.len();
                let client = clients.get_mut(place).context("no client")?;
                command.query_async::<Option<Vec<u8>>>(client).await?;
            }
        }
        Ok(())
    }
}

/// Processor time of this process so far, in seconds. Unlike the rate it hardly depends on what else runs.
fn processor_seconds() -> anyhow::Result<f64> {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().context("no fields")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / TICKS_PER_SECOND)
}

/// What one contender did with one number of tasks.
#[derive(Default)]
struct Tally {
    rates: Vec<f64>,
    operations: f64,
    processor_seconds: f64,
}

/// Lets `tasks` tasks run for a round.
async fn measure(contender: &Contender, tasks: usize, tally: &mut Tally) -> anyhow::Result<()> {
    let used = processor_seconds()?;
    let (over, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut running = tokio::task::JoinSet::new();
    let began = Instant::now();
    for task in 0..tasks {
        let (mut contender, over, count) = (contender.clone(), Arc::clone(&over), Arc::clone(&count));
        running.spawn(async move {
            let mut number = task * 7919;
            while !over.load(Relaxed) {
                contender.get(number).await?;
                number += 1;
                count.fetch_add(1, Relaxed);
            }
            anyhow::Ok(())
        });
    }
    tokio::time::sleep(ROUND).await;
    over.store(true, Relaxed);
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    #[allow(clippy::cast_precision_loss, reason = "a count for people")]
    let operations = count.load(Relaxed) as f64;
    tally.rates.push(operations / began.elapsed().as_secs_f64());
    tally.operations += operations;
    tally.processor_seconds += processor_seconds()? - used;
    Ok(())
}

async fn cluster(nodes: &[String], clients: usize) -> anyhow::Result<Contender> {
    let urls = nodes.iter().map(|node| format!("redis://{node}"));
    let settings = TcpSettings::default().set_nodelay(true);
    let client = ClusterClientBuilder::new(urls).tcp_settings(settings).build()?;
    let mut connections = Vec::new();
    for _ in 0..clients {
        connections.push(client.get_async_connection().await?);
    }
    Ok(Contender::Cluster(connections))
}

fn router(nodes: &[String], connections: usize, tasks: &Tasks) -> anyhow::Result<Contender> {
    let config = serde_json::json!({"nodes": nodes, "connections": connections});
    let instance: RedisInstance = serde_json::from_value(config)?;
    let metrics = RedisMetrics::new(&Registry::default())?;
    let health = HealthBoard::default().add("redis.main", false);
    Ok(Contender::Router(RedisPool::new("main", instance, health, &metrics, tasks)?))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let nodes = rig::shared_redis_nodes();
    let process_tasks = Tasks::default();
    let contenders = [
        ("slot router, 1 connection a node", router(&nodes, 1, &process_tasks)?),
        ("slot router, 2 connections a node", router(&nodes, 2, &process_tasks)?),
        ("cluster client, 1", cluster(&nodes, 1).await?),
        ("cluster client, 2 in turn", cluster(&nodes, 2).await?),
    ];
    println!(
        "| GETs a second, median of {ROUNDS}; client's processor time for one | 64 tasks | 256 tasks |\n|---|---|---|"
    );
    let mut tallies: Vec<[Tally; 2]> = contenders.iter().map(|_| Default::default()).collect();
    for _ in 0..ROUNDS {
        for (place, tasks) in [64, 256].into_iter().enumerate() {
            for ((_, contender), tallies) in contenders.iter().zip(&mut tallies) {
                measure(contender, tasks, &mut tallies[place]).await?;
            }
        }
    }
    for ((name, _), tallies) in contenders.iter().zip(&mut tallies) {
        print!("| {name} ");
        for tally in tallies {
            tally.rates.sort_by(f64::total_cmp);
            let each = tally.processor_seconds / tally.operations * 1e6;
            print!("| {:.0}; {each:.1} us ", tally.rates[ROUNDS / 2]);
        }
        println!("|");
    }
    Ok(())
}
