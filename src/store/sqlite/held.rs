//! What each tenant holds of a database: one tenant has a part of its bound, and leaves the rest to the others.
//!
//! Who writes and removes rows says how many bytes that is. A group's sums are written with it, in its transaction, so that they
//! are what was committed, also after a kill; in memory they are looked at without a statement.

use std::collections::HashMap;

use rusqlite::Connection;
use uuid::Uuid;

use super::space::{Adds, Full};

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
    /// Of one tenant at the most, in bytes; none where tenants are not counted.
    most: Option<u64>,
    committed: HashMap<Uuid, i64>,
    /// Of the group that is under way.
    changes: HashMap<Uuid, i64>,
}

impl Held {
    /// As it was last committed.
    pub(super) fn load(connection: &Connection, most: Option<u64>) -> rusqlite::Result<Self> {
        let mut committed = HashMap::new();
        if most.is_some() {
            let mut statement = connection.prepare(ALL)?;
            for row in statement.query_map([], |row| Ok((row.get::<_, [u8; 16]>(0)?, row.get(1)?)))? {
                let (tenant, bytes) = row?;
                committed.insert(Uuid::from_bytes(tenant), bytes);
            }
        }
        Ok(Self { most, committed, changes: HashMap::new() })
    }

    /// Whether a tenant's part has room for what it adds.
    pub(super) fn take(&self, tenant: Option<Uuid>, adds: Adds) -> Result<(), Full> {
        let (Some(most), Some(tenant)) = (self.most, tenant) else { return Ok(()) };
        let (bytes, most) = match adds {
            Adds::Nothing | Adds::Promised(_) => return Ok(()),
            Adds::Entry(bytes) | Adds::Promise(bytes) => (bytes, most),
            Adds::State(bytes) => (bytes, most.saturating_add(OVER_BYTES)),
        };
        let own = |map: &HashMap<Uuid, i64>| map.get(&tenant).copied().unwrap_or_default();
        let held = own(&self.committed).saturating_add(own(&self.changes)).max(0).unsigned_abs();
        if held.saturating_add(bytes) > most { Err(Full::Share) } else { Ok(()) }
    }

    /// Notes what a job of the group did.
    pub(super) fn note(&mut self, changes: Vec<Change>) {
        if self.most.is_some() {
            for (tenant, bytes) in changes {
                *self.changes.entry(tenant).or_default() += bytes;
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
        for (tenant, change) in self.changes.drain().filter(|_| is_committed) {
            let bytes = self.committed.entry(tenant).or_default();
            *bytes += change;
            if *bytes <= 0 {
                self.committed.remove(&tenant);
            }
        }
    }
}
