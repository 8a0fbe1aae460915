//! What a pull takes beside what it delivers again: new events, and those of tenants that were passed over.

use std::collections::HashMap;

use uuid::Uuid;

use super::{Group, GroupError, MAX_BYTES};
use crate::primitives::events::audience::{Audience, Sees};
use crate::primitives::events::groups::Pull;
use crate::primitives::events::read::{self, Scan};
use crate::primitives::events::{Logged, Position};
use crate::store::Tx;

/// Steps of the log that one pull looks through at the most, with the group's row locked.
const STEPS: usize = 4;
/// Tenants whose events that were passed over one pull looks for at the most.
const TENANTS: usize = 4;

impl Group {
    /// Takes events into a pull. Whether it found none, and there is more than it looked through.
    pub(super) async fn take(
        &self,
        tx: &mut Tx<'_>,
        pull: &mut Pull<'_>,
        readable: Position,
        events: &mut HashMap<Position, Logged>,
    ) -> Result<bool, GroupError> {
        let mut more = false;
        if pull.begins_with_new() {
            more = self.take_new(tx, pull, readable, events).await?;
            self.take_behind(tx, pull, events).await?;
        } else {
            self.take_behind(tx, pull, events).await?;
            more |= self.take_new(tx, pull, readable, events).await?;
        }
        Ok((more || pull.behind().is_some()) && pull.leases().is_empty())
    }

    /// Takes new events. Whether there is more of the log than it looked through.
    ///
    /// A service's topic may be a small part of the log: where many of everyone's events are none of it, the group's place is
    /// moved past them, though not for every few of them, since that is a write.
    async fn take_new(
        &self,
        tx: &mut Tx<'_>,
        pull: &mut Pull<'_>,
        readable: Position,
        events: &mut HashMap<Position, Logged>,
    ) -> Result<bool, GroupError> {
        let is_fleet = matches!(self.audience, Audience::Fleet(_));
        let (mut looked, mut more, mut steps) = (pull.position(), false, 0);
        while pull.wanted() > 0 {
            let scan = Scan {
                after: looked,
                max_rows: u32::try_from(pull.wanted()).unwrap_or(u32::MAX),
                max_bytes: MAX_BYTES,
                without: pull.deferred(),
                ..Scan::new(&self.audience)
            };
            let step = read::step(tx, &scan, readable).await?;
            let new = read::rows(tx, &scan, step.to).await?;
            let none_left = new.len() < scan.max_rows as usize;
            let last = new.last().map(|event| event.position);
            let keys: Vec<_> = new
                .iter()
                .map(|event| {
                    let tenant = if is_fleet { event.tenant } else { Uuid::nil() };
                    (event.position, self.key_hash(event), tenant)
                })
                .collect();
            pull.take(&keys)?;
            // It may have stopped before the last.
            let is_whole =
                none_left && read::bytes(&new) < MAX_BYTES && last.is_none_or(|last| last <= pull.position());
            events.extend(new.into_iter().map(|event| (event.position, event)));
            looked = if is_whole { pull.position().max(step.next) } else { pull.position() };
            more = !(is_whole && step.is_last);
            // A service's whole page may have been passed over.
            steps += usize::from(none_left || is_fleet);
            if !pull.leases().is_empty() || !more || steps == STEPS || (none_left && !is_whole) {
                break;
            }
        }
        let passed = looked.number().saturating_sub(pull.position().number());
        if is_fleet && passed >= read::STEP / 2 {
            pull.pass(looked);
        }
        Ok(more && pull.wanted() > 0)
    }

    /// Takes events of tenants that were passed over and have less than their share now, by each one's own index.
    async fn take_behind(
        &self,
        tx: &mut Tx<'_>,
        pull: &mut Pull<'_>,
        events: &mut HashMap<Position, Logged>,
    ) -> Result<(), GroupError> {
        for _ in 0..TENANTS {
            let taken: usize =
                events.values().map(|event| event.attributes.len() + event.data.bytes().len()).sum();
            let left = MAX_BYTES.saturating_sub(i64::try_from(taken).unwrap_or(i64::MAX));
            let Some(behind) = pull.behind().filter(|_| left > 0) else { break };
            let scan = Scan {
                sees: Sees::One(behind.tenant),
                after: behind.after,
                max_rows: u32::try_from(behind.max).unwrap_or(u32::MAX),
                max_bytes: left,
                ..Scan::new(&self.audience)
            };
            // What the service may not see any more is passed over for good, as new events of that tenant are.
            let is_seen = self.audience.sees().covers(&behind.tenant);
            let found = if is_seen { read::rows(tx, &scan, pull.position()).await? } else { Vec::new() };
            let are_all = found.len() < behind.max && read::bytes(&found) < left;
            let keys: Vec<_> = found.iter().map(|event| (event.position, self.key_hash(event))).collect();
            pull.take_behind(&behind, &keys, are_all)?;
            events.extend(found.into_iter().map(|event| (event.position, event)));
        }
        Ok(())
    }
}
