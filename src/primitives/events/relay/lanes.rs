//! What a relay does for a shard, pure: which rows go into the next transaction, under which numbers, and where the
//! cursor stands with them.
//!
//! The lanes' own numbers (`seq`) have no gaps. The cursor is the place of the last row that was delivered, never the
//! store's last number: rows below that one may still be on their way to be readable. A cursor counts only once it is
//! committed in Kafka, in the transaction of its rows; who takes a shard over reads it there.

#[cfg(test)]
mod model;
mod parked;

pub use parked::{MAX_PARKED_KEYS_OF_TENANT, Parked};

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{CursorError, Origin, Row, Shard};
use crate::primitives::events::{Logged, Position};

/// Keys of a shard that may be parked at once, each for itself. More, of a hundred tenants or more, means that Kafka refuses
/// events in general.
pub const MAX_PARKED_KEYS: usize = 10_000;

/// How far a shard was delivered, as it is kept in Kafka.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// Of the store that the positions are of.
    pub epoch: Uuid,
    /// The last event that was delivered or parked.
    pub position: Position,
    /// The [`mark`] of that event; none at the start.
    pub mark: Option<Uuid>,
    /// The last number given in each lane.
    pub seqs: BTreeMap<LaneName, u64>,
    /// Parked events that an operator released and that are delivered, until the store no longer has them as parked.
    pub released: Option<Released>,
}

/// Parked events of a key that were delivered by an operator's order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Released {
    /// The order.
    pub order: i64,
    /// The key.
    pub key: OrderedKey,
    /// The events.
    pub positions: Vec<Position>,
}

impl Cursor {
    fn number(&mut self, row: Row) -> Numbered {
        let seq = self.seqs.entry((row.topic.clone(), row.lane)).or_insert(0);
        *seq += 1;
        Numbered { seq: *seq, row }
    }
}

/// A topic's lane.
pub type LaneName = (Box<str>, u16);

/// What is ordered: a key of a tenant in a topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrderedKey {
    /// The topic.
    pub topic: Box<str>,
    /// The tenant.
    pub tenant: Uuid,
    /// The event's key.
    pub key: Box<str>,
}

impl OrderedKey {
    /// The key of a row.
    #[must_use]
    pub fn of(row: &Row) -> Self {
        Self { topic: row.topic.clone(), tenant: row.event.tenant, key: row.event.key.clone() }
    }

    /// All keys of a tenant in all topics: no topic's name is empty, and no key is.
    #[must_use]
    pub fn all_of(tenant: Uuid) -> Self {
        Self { topic: "".into(), tenant, key: "".into() }
    }

    /// Whether it is [all](Self::all_of) keys of its tenant.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.topic.is_empty() && self.key.is_empty()
    }

    fn covers(&self, row: &Row) -> bool {
        if self.is_all() { row.event.tenant == self.tenant } else { Self::of(row) == *self }
    }
}

/// Tells an event from another one at the same position, as a restored store may have it: a name (UUIDv5) of its tenant
/// and attributes.
#[must_use]
pub fn mark(event: &Logged) -> Uuid {
    mark_of(event.tenant, &event.attributes)
}

pub(super) fn mark_of(tenant: Uuid, attributes: &[u8]) -> Uuid {
    Uuid::new_v5(&tenant, attributes)
}

/// A shard's delivery, from one takeover to the next.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lanes {
    shard: Shard,
    committed: Cursor,
    parked: Parked,
    /// The cursor of the transaction that is being written.
    pending: Option<Cursor>,
}

/// The next transaction.
#[derive(Debug)]
pub struct Plan {
    /// What to send, in this order.
    pub sends: Vec<Numbered>,
    /// What must be kept as parked, in this order, before the transaction is committed.
    pub parks: Vec<Row>,
    /// What to commit with it.
    pub cursor: Cursor,
}

/// A row and its number in its lane.
#[derive(Debug)]
pub struct Numbered {
    /// The row.
    pub row: Row,
    /// Counts from 1, without a gap.
    pub seq: u64,
}

/// Why a shard must not go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// The store is another one than the cursor's.
    #[error(
        "the store's epoch is {store} and the cursor in Kafka is of {cursor}: the store was restored or replaced; see \
         what Kafka has already, then run `outrigger migrate --new-epoch`"
    )]
    Epoch {
        /// The store's.
        store: Uuid,
        /// The cursor's.
        cursor: Uuid,
    },
    /// The store has not come as far as the cursor.
    #[error(
        "the store's last event is {last} and Kafka has events up to {cursor}: the store was restored to an earlier \
         time; see what Kafka has already, then run `outrigger migrate --new-epoch`"
    )]
    Behind {
        /// The store's last position.
        last: i64,
        /// The cursor's.
        cursor: i64,
    },
    /// Another event is where the cursor stands.
    #[error(
        "event {0} of the store is not the one that Kafka has: the store was restored to an earlier time and took new \
         events since; see what Kafka has already, then run `outrigger migrate --new-epoch`"
    )]
    OtherEvent(i64),
    /// The cursor in Kafka is of another kind.
    #[error(transparent)]
    Cursor(#[from] CursorError),
    /// Rows did not come in order, or are of another shard: a defect of the reader.
    #[error("defect: row {row} of lane {lane} was read after {after}")]
    Rows {
        /// The row.
        row: i64,
        /// Its lane.
        lane: u16,
        /// What was read before it.
        after: i64,
    },
    /// Kafka refuses one event after the other.
    #[error(
        "{MAX_PARKED_KEYS} keys are parked, since Kafka refuses their events: compare its limits with the events, then \
         release them (`outrigger outbox release`)"
    )]
    Parked,
}

impl Lanes {
    /// Begins where the committed cursor says; without one, at the log's start. The caller has fenced whoever wrote
    /// before, and read `cursor` and `parked` after that.
    pub fn take_over(
        shard: Shard,
        origin: &Origin,
        cursor: Option<Cursor>,
        parked: Parked,
    ) -> Result<Self, Stop> {
        let Some(committed) = cursor else {
            let committed = Cursor {
                epoch: origin.epoch,
                position: Position::START,
                mark: None,
                seqs: BTreeMap::new(),
                released: None,
            };
            return Ok(Self { shard, committed, parked, pending: None });
        };
        let committed = match origin.previous {
            // What came after the end of that epoch was lost with it; what Kafka has of that stays there.
            Some((epoch, end)) if epoch == committed.epoch => {
                Cursor { epoch: origin.epoch, position: committed.position.min(end), mark: None, ..committed }
            }
            Some(_) | None => committed,
        };
        check(&committed, origin)?;
        Ok(Self { shard, committed, parked, pending: None })
    }

    /// Where to read on.
    #[must_use]
    pub fn position(&self) -> Position {
        self.committed.position
    }

    /// Whether the store is still the one that the cursor is of; asked again after the store was away.
    pub fn recheck(&self, origin: &Origin) -> Result<(), Stop> {
        check(&self.committed, origin)
    }

    /// The transaction that carries `rows`: what was read behind [`position`](Self::position), at least one.
    pub fn plan(&mut self, rows: Vec<Row>) -> Result<Plan, Stop> {
        let mut cursor = self.committed.clone();
        let (mut sends, mut parks) = (Vec::with_capacity(rows.len()), Vec::new());
        for row in rows {
            let position = row.event.position;
            if position <= cursor.position || !self.shard.holds(row.lane) {
                let (row, after) = ((position.number(), row.lane), cursor.position.number());
                return Err(Stop::Rows { row: row.0, lane: row.1, after });
            }
            cursor.position = position;
            cursor.mark = Some(mark(&row.event));
            if self.parked.holds(&row) {
                parks.push(row);
                continue;
            }
            sends.push(cursor.number(row));
        }
        self.pending = Some(cursor.clone());
        Ok(Plan { sends, parks, cursor })
    }

    /// The transaction that carries parked rows of a key, or of all keys of a tenant, as an operator ordered: the first ones that are parked, at least
    /// one, none behind [`position`](Self::position), since what is behind it comes again and would be delivered twice.
    pub fn plan_release(&mut self, order: i64, key: &OrderedKey, rows: Vec<Row>) -> Result<Plan, Stop> {
        let mut cursor = self.committed.clone();
        let (mut sends, mut last) = (Vec::with_capacity(rows.len()), Position::START);
        for row in rows {
            let position = row.event.position;
            let is_ours = self.shard.holds(row.lane) && key.covers(&row);
            if !is_ours || position <= last || position > cursor.position || cursor.released.is_some() {
                let after = last.number();
                return Err(Stop::Rows { row: position.number(), lane: row.lane, after });
            }
            last = position;
            sends.push(cursor.number(row));
        }
        let positions = sends.iter().map(|send| send.row.event.position).collect();
        cursor.released = Some(Released { order, key: key.clone(), positions });
        self.pending = Some(cursor.clone());
        Ok(Plan { sends, parks: Vec::new(), cursor })
    }

    /// What was delivered of a parked key and may still be parked in the store: no more is released before that is
    /// [`settled`](Self::settled).
    #[must_use]
    pub fn unsettled(&self) -> Option<&Released> {
        self.committed.released.as_ref()
    }

    /// The store no longer has as parked what was delivered or given up of a key; `left` is what it still has of its tenant.
    pub fn settled(&mut self, key: &OrderedKey, left: Parked) {
        self.committed.released = None;
        self.parked.settled(key.tenant, left, self.committed.position);
    }

    /// The transaction was committed, for certain.
    pub fn committed(&mut self) {
        if let Some(cursor) = self.pending.take() {
            self.committed = cursor;
        }
    }

    /// It was not, for certain. Where nobody knows, the shard is taken over anew.
    pub fn aborted(&mut self) {
        self.pending = None;
    }

    /// Kafka refuses the event itself: from it on, its key's events are parked, and where that is one key too many all that
    /// comes of its tenant.
    pub fn refuse(&mut self, row: &Row) -> Result<(), Stop> {
        self.parked.refuse(row)
    }

    /// Keys that are parked, at the least.
    #[must_use]
    pub fn parked_keys(&self) -> usize {
        self.parked.len()
    }

    /// Whether all that comes of a tenant is parked.
    #[must_use]
    pub fn has_parked_tenant(&self, tenant: &Uuid) -> bool {
        self.parked.has_tenant(tenant)
    }
}

fn check(cursor: &Cursor, origin: &Origin) -> Result<(), Stop> {
    if cursor.epoch != origin.epoch {
        return Err(Stop::Epoch { store: origin.epoch, cursor: cursor.epoch });
    }
    if origin.last < cursor.position {
        return Err(Stop::Behind { last: origin.last.number(), cursor: cursor.position.number() });
    }
    match (origin.mark, cursor.mark) {
        (Some(store), Some(ours)) if store != ours => Err(Stop::OtherEvent(cursor.position.number())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::primitives::events::relay::rows::row;

    fn lanes() -> Lanes {
        Lanes::take_over(Shard::new(0, 2), &origin(100), None, left(&[])).unwrap()
    }

    fn origin(last: i64) -> Origin {
        Origin { epoch: Uuid::nil(), previous: None, last: Position::new(last), mark: None }
    }

    /// What the store has parked: rows, of each key the first.
    fn left(rows: &[&Row]) -> Parked {
        let keys = rows.iter().map(|row| (OrderedKey::of(row), row.event.position));
        Parked::new(keys.collect(), MAX_PARKED_KEYS_OF_TENANT)
    }

    #[test]
    fn a_lane_s_numbers_have_no_gap_and_an_abort_takes_them_back() {
        let mut lanes = lanes();
        let rows = || vec![row(3, 0, "a"), row(5, 2, "b"), row(9, 0, "a")];
        for end in [Lanes::aborted, Lanes::committed] {
            let plan = lanes.plan(rows()).unwrap();
            assert_eq!(plan.sends.iter().map(|send| send.seq).collect::<Vec<_>>(), [1, 1, 2]);
            assert_eq!(plan.cursor.position, Position::new(9));
            end(&mut lanes);
        }
        assert_eq!(lanes.position(), Position::new(9));
        assert_eq!(lanes.plan(vec![row(11, 0, "c")]).unwrap().sends[0].seq, 3);
    }

    #[test]
    fn from_a_refused_event_on_its_key_is_parked_and_the_lane_goes_on() {
        let mut lanes = lanes();
        let rows = vec![row(1, 0, "a"), row(2, 0, "a"), row(3, 0, "b"), row(4, 0, "a")];
        lanes.plan(rows.clone()).unwrap();
        lanes.aborted();
        lanes.refuse(&rows[1]).unwrap();
        let plan = lanes.plan(rows).unwrap();
        let sent: Vec<_> =
            plan.sends.iter().map(|send| (send.row.event.position.number(), send.seq)).collect();
        assert_eq!(sent, [(1, 1), (3, 2)]);
        assert_eq!(plan.parks.iter().map(|row| row.event.position.number()).collect::<Vec<_>>(), [2, 4]);
        assert_eq!(plan.cursor.position, Position::new(4));
    }

    #[test]
    fn a_released_key_goes_on_only_when_the_store_has_none_of_it_as_parked() {
        let (mut lanes, rows) = (lanes(), [row(1, 0, "a"), row(2, 0, "a"), row(3, 0, "b")]);
        lanes.refuse(&rows[0]).unwrap();
        let plan = lanes.plan(rows.to_vec()).unwrap();
        assert_eq!((plan.sends.len(), plan.parks.len()), (1, 2));
        lanes.committed();
        let key = OrderedKey::of(&rows[0]);
        let plan = lanes.plan_release(7, &key, vec![rows[0].clone()]).unwrap();
        assert_eq!((plan.sends[0].seq, plan.cursor.position), (2, Position::new(3)));
        lanes.committed();
        assert_eq!(lanes.unsettled().unwrap().positions, [Position::new(1)]);
        // Not before what was delivered is forgotten, not another key's, and not what is behind the cursor.
        assert!(lanes.plan_release(7, &key, vec![rows[1].clone()]).is_err());
        lanes.settled(&key, left(&[&rows[1]]));
        for wrong in [rows[2].clone(), row(4, 0, "a")] {
            assert!(lanes.plan_release(7, &key, vec![wrong]).is_err());
        }
        let plan = lanes.plan(vec![row(5, 0, "a")]).unwrap();
        assert_eq!((plan.sends.len(), plan.parks.len()), (0, 1), "the second one is still parked");
        lanes.aborted();
        lanes.plan_release(7, &key, vec![rows[1].clone()]).unwrap();
        lanes.committed();
        lanes.settled(&key, left(&[]));
        assert_eq!(lanes.plan(vec![row(5, 0, "a")]).unwrap().sends[0].seq, 4);
    }

    #[test]
    fn a_tenant_whose_events_kafka_refuses_does_not_stop_the_others() {
        let (mut lanes, tenant) = (lanes(), Uuid::from_u128(9));
        let of = |mut row: Row| {
            row.event.tenant = tenant;
            row
        };
        let refused = (1..=20_000).map(|at| of(row(at, 0, &format!("k{at}"))));
        for row in refused {
            assert_eq!(lanes.refuse(&row), Ok(()), "{}", row.event.position.number());
        }
        let rows = vec![row(20_001, 0, "a"), of(row(20_002, 0, "new")), row(20_003, 2, "b")];
        let plan = lanes.plan(rows).unwrap();
        let at = |rows: Vec<&Row>| rows.iter().map(|row| row.event.position.number()).collect::<Vec<_>>();
        assert_eq!(at(plan.sends.iter().map(|send| &send.row).collect()), [20_001, 20_003]);
        assert_eq!(at(plan.parks.iter().collect()), [20_002], "with all of its tenant's");
    }

    #[test]
    fn a_restored_store_stops_the_shard_and_the_command_is_named() {
        let at = |position, mark| Cursor {
            epoch: Uuid::nil(),
            position: Position::new(position),
            mark,
            seqs: BTreeMap::new(),
            released: None,
        };
        let take = |origin: &Origin, cursor| {
            Lanes::take_over(Shard::new(0, 1), origin, Some(cursor), left(&[])).map(|_| ())
        };
        let one = Some(Uuid::from_u128(1));
        assert_eq!(take(&origin(7), at(7, one)), Ok(()), "a dropped partition has no event to compare with");
        let new = Origin { epoch: Uuid::from_u128(9), ..origin(7) };
        let other = Origin { mark: Some(Uuid::from_u128(2)), ..origin(7) };
        let begun = Origin { previous: Some((Uuid::nil(), Position::new(5))), ..new.clone() };
        assert_eq!(take(&begun, at(7, one)), Ok(()), "an operator said where that epoch ended");
        let goes_on = Lanes::take_over(Shard::new(0, 1), &begun, Some(at(7, one)), left(&[])).unwrap();
        assert_eq!((goes_on.position(), goes_on.committed.epoch), (Position::new(5), Uuid::from_u128(9)));
        for (origin, expected) in [
            (new, Stop::Epoch { store: Uuid::from_u128(9), cursor: Uuid::nil() }),
            (origin(6), Stop::Behind { last: 6, cursor: 7 }),
            (other, Stop::OtherEvent(7)),
        ] {
            let stop = take(&origin, at(7, one)).unwrap_err();
            assert_eq!(stop, expected);
            assert!(stop.to_string().contains("outrigger migrate --new-epoch"), "{stop}");
        }
    }

    #[test]
    fn rows_out_of_order_or_of_another_shard_are_a_defect() {
        assert!(matches!(lanes().plan(vec![row(2, 0, "a"), row(2, 0, "a")]), Err(Stop::Rows { row: 2, .. })));
        assert!(matches!(lanes().plan(vec![row(1, 1, "a")]), Err(Stop::Rows { lane: 1, .. })));
    }
}
