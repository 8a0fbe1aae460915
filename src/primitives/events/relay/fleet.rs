//! Shards among the relays of a fleet: each relay takes its part, renews what it has, and gives back what is over it.
//!
//! A relay shows that it is there by a lease of its own; the shards divided by those that are there, rounded up, is what
//! one takes. A relay that stops gives everything back, and the others have it with their next round.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::{Id, JoinSet};
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;

use super::postgres::PostgresLog;
use super::{RelayMetrics, Shard, ShardEnd, run_shard};
use crate::leases::{Lease, Leases, Owner};
use crate::pools::kafka::Kafka;
use crate::primitives::events::arrivals::Arrivals;
use crate::store::postgres::PgError;
use crate::store::{Reach, Store, StoreError, Tx};
use crate::tasks::Tasks;

/// How long a lease is good without a renewal. A relay that dies delays its shards for so long.
const LEASE: Duration = Duration::from_secs(6);
/// Between two rounds.
const ROUND: Duration = Duration::from_millis(1500);
/// How long before its end a lease counts as lost, so that nobody works on the last of it.
const MARGIN: Duration = Duration::from_secs(1);
/// How long a shard that needs an operator is left alone before it is tried again.
const AFTER_STOP: Duration = Duration::from_secs(10);

const PRESENT: &str =
    "SELECT count(*) FROM leases WHERE name LIKE 'relay/member/%' AND until > clock_timestamp()";
/// Members that went without a word.
const FORGET: &str =
    "DELETE FROM leases WHERE name LIKE 'relay/member/%' AND until < clock_timestamp() - interval '1 hour'";

/// One process's part of the relays.
pub(in super::super) struct Relay {
    store: Store,
    leases: Leases,
    kafka: Arc<Kafka>,
    arrivals: Arc<Arrivals>,
    metrics: Arc<RelayMetrics>,
    shards: u16,
    stopping: CancellationToken,
}

/// A shard that this process delivers.
struct Held {
    lease: Lease,
    lost: CancellationToken,
    run: Id,
}

impl Relay {
    /// Starts to relay, until the process stops.
    pub(in super::super) fn start(
        store: Store,
        kafka: Arc<Kafka>,
        metrics: RelayMetrics,
        shards: u16,
        tasks: &Tasks,
    ) {
        let relay = Self {
            leases: Leases::new(store.clone(), Owner::of_this_process()),
            // Nobody pulls here.
            arrivals: Arrivals::new(store.clone(), 0, tasks.clone()),
            store,
            kafka,
            metrics: Arc::new(metrics),
            shards,
            stopping: tasks.stopping().clone(),
        };
        tasks.spawn("relay", async move { relay.run().await });
    }

    async fn run(&self) {
        let (mut held, mut runs) = (BTreeMap::<u16, Held>::new(), JoinSet::new());
        let mut not_before: BTreeMap<u16, Instant> = BTreeMap::new();
        // Kept, so that the head of the log is looked at all the time.
        let _waiter = self.arrivals.watcher();
        while !self.stopping.is_cancelled() {
            let round = tokio::time::sleep(ROUND);
            if let Err(error) = self.round(&mut held, &mut runs, &not_before).await {
                tracing::warn!(%error, "a relay's leases cannot be renewed");
            }
            self.metrics.shards.set(i64::try_from(held.len()).unwrap_or(i64::MAX));
            for mine in held.values().filter(|mine| mine.lease.until() < Instant::now() + MARGIN) {
                mine.lost.cancel();
            }
            tokio::pin!(round);
            loop {
                tokio::select! {
                    () = self.stopping.cancelled() => break,
                    () = &mut round => break,
                    Some(ended) = runs.join_next(), if !runs.is_empty() => match ended {
                        Ok((number, end)) => {
                            if waits_after(&end) {
                                tracing::error!(shard = number, %end, "a shard is not relayed");
                                not_before.insert(number, Instant::now() + AFTER_STOP);
                            }
                            self.forget(number, &mut held).await;
                        }
                        Err(defect) => {
                            let numbers = held.iter().filter(|(_, mine)| mine.run == defect.id());
                            for number in numbers.map(|(number, _)| *number).collect::<Vec<_>>() {
                                tracing::error!(shard = number, %defect, "a shard is not relayed");
                                not_before.insert(number, Instant::now() + AFTER_STOP);
                                self.forget(number, &mut held).await;
                            }
                        }
                    },
                }
            }
        }
        for mine in held.values() {
            mine.lost.cancel();
        }
        while runs.join_next().await.is_some() {}
        for (_, mine) in held {
            self.give_back(mine.lease).await;
        }
    }

    /// Renews, takes what is free up to this relay's part, and gives back what is over it.
    async fn round(
        &self,
        held: &mut BTreeMap<u16, Held>,
        runs: &mut JoinSet<(u16, ShardEnd)>,
        not_before: &BTreeMap<u16, Instant>,
    ) -> Result<(), StoreError> {
        let member = format!("relay/member/{}", self.leases.owner());
        self.leases.take(&member, LEASE).await?;
        let present = self.present().await?.max(1);
        let part = usize::from(self.shards).div_ceil(present);
        for (number, mine) in held.iter_mut() {
            match self.leases.take(&name(*number), LEASE).await? {
                Some(lease) if lease.epoch() == mine.lease.epoch() => mine.lease = lease,
                Some(_) | None => mine.lost.cancel(),
            }
        }
        // The last ones: the first are the ones that a relay that came later looks for last.
        for mine in held.values().skip(part) {
            mine.lost.cancel();
        }
        let now = Instant::now();
        for number in 0..self.shards {
            let waits = not_before.get(&number).is_some_and(|until| *until > now);
            if held.len() >= part || held.contains_key(&number) || waits {
                continue;
            }
            if let Some(lease) = self.leases.take(&name(number), LEASE).await? {
                let lost = CancellationToken::new();
                let told = lost.clone();
                let log = PostgresLog::new(self.store.clone(), Arc::clone(&self.arrivals), lease.clone());
                let (kafka, metrics) = (Arc::clone(&self.kafka), Arc::clone(&self.metrics));
                let shard = Shard::new(number, self.shards);
                #[allow(clippy::disallowed_methods, reason = "waited for by the relay's own task")]
                let run =
                    runs.spawn(async move { (number, run_shard(&log, kafka, shard, &told, &metrics).await) });
                held.insert(number, Held { lease, lost, run: run.id() });
            }
        }
        Ok(())
    }

    /// Others may have the shard.
    async fn forget(&self, number: u16, held: &mut BTreeMap<u16, Held>) {
        if let Some(mine) = held.remove(&number) {
            self.give_back(mine.lease).await;
        }
    }

    async fn give_back(&self, lease: Lease) {
        if let Err(error) = self.leases.release(lease).await {
            tracing::debug!(%error, "a lease could not be given back: it runs out");
        }
    }

    /// How many relays there are.
    async fn present(&self) -> Result<usize, StoreError> {
        let count: Result<i64, StoreError> = self
            .store
            .run(Reach::nobody(), 0, |tx| {
                Box::pin(async move {
                    let Tx::Postgres(tx) = tx else { return Ok(1) };
                    tx.query(FORGET, &[] as &[(_, Type)]).await?;
                    let rows = tx.query(PRESENT, &[]).await?;
                    let row = rows.first().ok_or(PgError::Ended)?;
                    Ok(row.try_get(0).map_err(PgError::of_row)?)
                })
            })
            .await;
        Ok(usize::try_from(count?).unwrap_or(1))
    }
}

/// Whether the shard needs an operator; after any other end it is anybody's at once.
fn waits_after(end: &ShardEnd) -> bool {
    match end {
        ShardEnd::LeaseLost | ShardEnd::Fenced(_) => false,
        ShardEnd::Stopped(_) | ShardEnd::Failed(_) | ShardEnd::Thread(_) => true,
    }
}

fn name(shard: u16) -> String {
    format!("relay/shard/{shard}")
}
