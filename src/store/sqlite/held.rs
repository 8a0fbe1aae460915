//! What each tenant holds of a database: one has a part of its bound, the less the more the others hold, so that there is always some left.
//!
//! Who writes and removes rows says how many bytes that is. A group's sums are written with it, in its transaction, so that they
//! are what was committed, also after a kill; in memory they are looked at without a statement.

use std::collections::HashMap;

use rusqlite::Connection;
use uuid::Uuid;

use super::space::{Adds, Full};
use crate::fairness::Part;

/// What a tenant's state may go over its part, in bytes: who filled it with entries goes on with what it has.
const OVER_BYTES: u64 = 4 * 1024 * 1024;

const ALL: &str = "SELECT tenant, bytes FROM tenant_bytes";
const WRITE: &str = "INSERT INTO tenant_bytes (tenant, bytes) VALUES (?1, ?2) \
                     ON CONFLICT (tenant) DO UPDATE SET bytes = excluded.bytes";
const REMOVE: &str = "DELETE FROM tenant_bytes WHERE tenant = ?1";

/// A tenant, and how many bytes more it holds, or fewer.
pub(super) type Change = (Uuid, i64);

/// What every tenant holds.
pub(super) struct Held {
    /// Of one tenant, in bytes; none where tenants are not counted.
    part: Option<Part>,
    /// What all hold, with the group that is under way.
    all: i64,
    committed: HashMap<Uuid, i64>,
    /// Of the group that is under way.
    changes: HashMap<Uuid, i64>,
}

impl Held {
    /// As it was last committed.
    pub(super) fn load(connection: &Connection, part: Option<Part>) -> rusqlite::Result<Self> {
        let mut committed = HashMap::new();
        if part.is_some() {
            let mut statement = connection.prepare(ALL)?;
            for row in statement.query_map([], |row| Ok((row.get::<_, [u8; 16]>(0)?, row.get(1)?)))? {
                let (tenant, bytes) = row?;
                committed.insert(Uuid::from_bytes(tenant), bytes);
            }
        }
        let all = committed.values().sum();
        Ok(Self { part, all, committed, changes: HashMap::new() })
    }

    /// Whether a tenant's part has room for what it adds, where so many bytes were promised to all.
    pub(super) fn take(&self, tenant: Option<Uuid>, adds: Adds, promised: u64) -> Result<(), Full> {
        let (Some(part), Some(tenant)) = (self.part, tenant) else { return Ok(()) };
        let own = |map: &HashMap<Uuid, i64>| map.get(&tenant).copied().unwrap_or_default();
        let held = own(&self.committed).saturating_add(own(&self.changes)).max(0).unsigned_abs();
        let taken = self.all.max(0).unsigned_abs().saturating_add(promised);
        let is_within = |bytes: u64, most: u64| held.saturating_add(bytes) <= most;
        // Whether the file has room is another's question.
        let is_fair = |bytes| part.is_fair(held, taken, bytes);
        let has_room = match adds {
            Adds::Nothing | Adds::Promised(_) => true,
            Adds::Entry(bytes) => is_within(bytes, part.alone()) && is_fair(bytes),
            // All that was promised to it is its own, and among what is taken.
            Adds::Promise(bytes) => {
                let own = held.saturating_add(bytes);
                is_within(bytes, part.alone()) && part.is_fair(own, taken, 0)
            }
            // What others hold does not keep it from what it has, while there is room for that.
            Adds::Moved(bytes) => {
                let is_roomy = taken.saturating_add(bytes) <= part.all() / 4 * 3;
                is_within(bytes, part.alone()) && (is_roomy || is_fair(bytes))
            }
            Adds::State(bytes) => is_within(bytes, part.alone().saturating_add(OVER_BYTES)),
        };
        if has_room { Ok(()) } else { Err(Full::Share) }
    }

    /// Notes what a job of the group did.
    pub(super) fn note(&mut self, changes: Vec<Change>) {
        if self.part.is_some() {
            for (tenant, bytes) in changes {
                *self.changes.entry(tenant).or_default() += bytes;
                self.all += bytes;
            }
        }
    }

    /// Writes the group's sums, before its commit.
    pub(super) fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        for (tenant, change) in self.changes.iter().filter(|(_, change)| **change != 0) {
            let bytes = self.committed.get(tenant).copied().unwrap_or_default() + change;
            if bytes > 0 {
                connection.prepare_cached(WRITE)?.execute((tenant.as_bytes(), bytes))?;
            } else {
                connection.prepare_cached(REMOVE)?.execute([tenant.as_bytes()])?;
            }
        }
        Ok(())
    }

    /// The group is over: its changes count where it was committed.
    pub(super) fn ended(&mut self, is_committed: bool) {
        for (tenant, change) in self.changes.drain() {
            if !is_committed {
                self.all -= change;
                continue;
            }
            let bytes = self.committed.entry(tenant).or_default();
            *bytes += change;
            if *bytes <= 0 {
                self.all -= *bytes;
                self.committed.remove(&tenant);
            }
        }
    }
}
