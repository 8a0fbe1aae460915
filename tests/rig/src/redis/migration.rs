//! Moving a slot from one primary to another, in steps that a test can stop between.

use super::RedisCluster;
use super::config::{ADMINISTRATOR, ADMINISTRATOR_PASSWORD};
use crate::process::Error;

/// Keys that one MIGRATE takes.
const KEYS_AT_ONCE: usize = 100;

/// A slot on its way: the old owner answers for keys it still has and says ASK for the others. Dropping this
/// leaves the slot so; [`SlotMigration::finish`] ends it.
#[derive(Debug)]
#[must_use = "the slot stays half moved until `finish`"]
pub struct SlotMigration<'a> {
    cluster: &'a RedisCluster,
    slot: u16,
    from: usize,
    to: usize,
    from_id: String,
    to_id: String,
}

impl<'a> SlotMigration<'a> {
    pub(super) fn begin(cluster: &'a RedisCluster, slot: u16, to: usize) -> Result<Self, Error> {
        let nodes = cluster.nodes()?;
        let owner = nodes.iter().find(|node| node.owns(slot));
        let owner = owner.ok_or_else(|| Error::new(format!("slot {slot} has no owner")))?;
        let target = nodes.get(to).ok_or_else(|| Error::new(format!("there is no node {to}")))?;
        let (from_id, to_id) = (owner.id.clone(), target.id.clone());
        let migration = Self { cluster, slot, from: owner.index, to, from_id, to_id };
        // The target first: it must know the slot before the owner sends anyone there with ASK.
        migration.set_slot(to, "IMPORTING", &migration.from_id)?;
        migration.set_slot(owner.index, "MIGRATING", &migration.to_id)?;
        Ok(migration)
    }

    /// The owner when it began.
    pub fn from(&self) -> usize {
        self.from
    }

    /// The owner when it is done.
    pub fn to(&self) -> usize {
        self.to
    }

    /// Moves up to `at_most` keys of the slot; says how many. 0: none are left.
    pub fn move_keys(&self, at_most: usize) -> Result<usize, Error> {
        let slot = self.slot.to_string();
        let count = at_most.min(KEYS_AT_ONCE).to_string();
        let listed = self.cluster.cli_at(self.from, &["CLUSTER", "GETKEYSINSLOT", &slot, &count])?;
        let keys: Vec<&str> = listed.lines().filter(|key| !key.is_empty()).collect();
        if keys.is_empty() {
            return Ok(0);
        }
        let port = self.cluster.port(self.to).to_string();
        let mut command = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000"];
        if self.cluster.has_acl() {
            command.extend(["AUTH2", ADMINISTRATOR, ADMINISTRATOR_PASSWORD]);
        }
        command.push("KEYS");
        command.extend(&keys);
        self.cluster.cli_at(self.from, &command)?;
        Ok(keys.len())
    }

    /// Moves what is left and tells every primary that runs who owns the slot now.
    pub fn finish(self) -> Result<(), Error> {
        while self.move_keys(KEYS_AT_ONCE)? > 0 {}
        // The new owner first: if the old one forgot the slot before, nobody would answer for it.
        self.set_slot(self.to, "NODE", &self.to_id)?;
        self.set_slot(self.from, "NODE", &self.to_id)?;
        for node in self.cluster.running_primaries()? {
            if node != self.to && node != self.from {
                self.set_slot(node, "NODE", &self.to_id)?;
            }
        }
        Ok(())
    }

    fn set_slot(&self, node: usize, state: &str, id: &str) -> Result<(), Error> {
        self.cluster.cli_at(node, &["CLUSTER", "SETSLOT", &self.slot.to_string(), state, id]).map(drop)
    }
}
