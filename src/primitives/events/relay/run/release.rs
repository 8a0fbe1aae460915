//! Operators' orders for parked keys, done between two transactions.

use std::time::Duration;

use tokio::time::Instant;

use super::super::lanes::{Lanes, OrderedKey, Plan};
use super::super::record::record;
use super::super::{Order, Settled};
use super::{Next, Run, ShardEnd};
use crate::pools::kafka::TransactionFailure;
use crate::primitives::events::Position;

/// How often orders are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long orders are done before what is not parked goes on.
const ORDERS_FOR: Duration = Duration::from_secs(1);
/// Rows of one transaction; their positions stand in the cursor.
pub(super) const MAX_RELEASED: usize = 500;

impl Run<'_> {
    /// Does the next steps of orders, where it is time to look and there are some.
    pub(super) async fn orders(&mut self, lanes: &mut Lanes) -> Result<Next, ShardEnd> {
        let until = Instant::now() + ORDERS_FOR;
        while self.look_for_orders <= Instant::now() && Instant::now() < until {
            let found = self.reader.order(self.shard, lanes.position(), self.release_limit).await;
            let order = match found {
                Ok(Some(order)) => order,
                Ok(None) => {
                    self.look_for_orders = Instant::now() + LOOK_EVERY;
                    break;
                }
                // It is looked for again when the store answers.
                failed => {
                    self.settled(failed).await?;
                    break;
                }
            };
            if let Next::TakeOver = self.order(lanes, order).await? {
                return Ok(Next::TakeOver);
            }
        }
        Ok(Next::ReadOn)
    }

    async fn order(&mut self, lanes: &mut Lanes, order: Order) -> Result<Next, ShardEnd> {
        let Order { number, key, discards, rows, first } = order;
        if let Some(position) = discards {
            tracing::warn!(
                shard = self.shard.number(),
                position = position.number(),
                "a parked event is given up"
            );
            self.settle(lanes, number, &key, Settled::Discarded(position)).await?;
        } else if !rows.is_empty() {
            let plan = lanes.plan_release(number, &key, rows)?;
            return self.release(lanes, number, &key, plan).await;
        } else if first.is_none() {
            self.settle(lanes, number, &key, Settled::Released).await?;
            tracing::info!(shard = self.shard.number(), order = number, "a parked key is released");
        } else {
            // What is parked of it comes again first: a transaction that was to pass it was not committed.
            self.look_for_orders = Instant::now() + LOOK_EVERY;
        }
        Ok(Next::ReadOn)
    }

    async fn release(
        &mut self,
        lanes: &mut Lanes,
        number: i64,
        key: &OrderedKey,
        plan: Plan,
    ) -> Result<Next, ShardEnd> {
        let Plan { sends, cursor, .. } = plan;
        let mut records = Vec::with_capacity(sends.len());
        for send in &sends {
            match record(&self.prefix, send) {
                Ok(record) => records.push(record),
                Err(reason) => {
                    lanes.aborted();
                    return self
                        .refused_again(lanes, number, key, sends.len(), (send.row.event.position, reason))
                        .await;
                }
            }
        }
        let failure = match self.egress.deliver(records, &cursor).await {
            Ok(()) => {
                lanes.committed();
                let accepted: Vec<i64> = sends.iter().map(|send| send.row.event.accepted_ms).collect();
                self.metrics.committed(&accepted, 0);
                self.release_limit = self.release_limit.saturating_mul(2).min(MAX_RELEASED);
                self.backoff.reset();
                self.settle_released(lanes).await?;
                return Ok(Next::ReadOn);
            }
            Err(failure) => failure,
        };
        match failure {
            TransactionFailure::Refused { records, reason } => {
                self.metrics.refused.inc();
                lanes.aborted();
                // Among several each may be innocent: fewer go next.
                let named = match (&sends[..], &records[..]) {
                    ([alone], _) => Some(alone),
                    (_, [one]) => sends.get(*one),
                    _ => None,
                };
                let refused = named.map(|send| (send.row.event.position, reason));
                match refused {
                    Some(refused) => self.refused_again(lanes, number, key, sends.len(), refused).await,
                    None => {
                        self.release_limit = (sends.len() / 2).max(1);
                        Ok(Next::ReadOn)
                    }
                }
            }
            other => self.failed(lanes, &[], other).await,
        }
    }

    /// Kafka does not take this one, out of so many: with others before it, those go first, and the order ends with it.
    async fn refused_again(
        &mut self,
        lanes: &mut Lanes,
        number: i64,
        key: &OrderedKey,
        of: usize,
        (position, reason): (Position, String),
    ) -> Result<Next, ShardEnd> {
        if of > 1 {
            self.release_limit = (of / 2).max(1);
            return Ok(Next::ReadOn);
        }
        tracing::error!(
            shard = self.shard.number(),
            position = position.number(),
            reason,
            "kafka refuses a released event again"
        );
        self.settle(lanes, number, key, Settled::Refused(position, reason)).await?;
        self.release_limit = MAX_RELEASED;
        Ok(Next::ReadOn)
    }

    /// Has the store forget what is delivered of a parked key, also what a predecessor delivered.
    pub(super) async fn settle_released(&mut self, lanes: &mut Lanes) -> Result<(), ShardEnd> {
        let Some(released) = lanes.unsettled().cloned() else { return Ok(()) };
        self.settle(lanes, released.order, &released.key, Settled::Delivered(released.positions)).await
    }

    async fn settle(
        &mut self,
        lanes: &mut Lanes,
        number: i64,
        key: &OrderedKey,
        settled: Settled,
    ) -> Result<(), ShardEnd> {
        let (reader, shard) = (self.reader, self.shard);
        let left = loop {
            let answer = reader.settle(shard, number, key, settled.clone()).await;
            if let Some(left) = self.settled(answer).await? {
                break left;
            }
        };
        lanes.settled(key, left);
        self.metrics.parked_keys.set(i64::try_from(lanes.parked_keys()).unwrap_or(i64::MAX));
        Ok(())
    }
}
