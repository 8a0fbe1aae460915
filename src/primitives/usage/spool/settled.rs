//! What is done with, for those who wait for it.

use std::collections::HashMap;

use uuid::Uuid;

use super::waiting::Located;

/// Up to where all was read, and what of it is not done with.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// What has smaller sequences was read.
    pub(super) seen_to: u64,
    /// Each tenant's first entry that is not done with.
    pub(super) first: HashMap<Uuid, First>,
    /// When the first entry of a later release was accepted, in seconds since 1970.
    pub(super) oldest_later_s: Option<u32>,
}

/// A tenant's first entry that is not done with.
#[derive(Debug, Clone, Copy)]
pub(super) struct First {
    sequence: u64,
    accepted_s: u32,
}

impl First {
    pub(super) fn of(located: &Located) -> Self {
        Self { sequence: located.sequence, accepted_s: located.accepted_s }
    }
}

impl Settled {
    /// Whether all of a tenant's entries with a smaller sequence are done with.
    pub(super) fn is_past(&self, tenant: Uuid, sequence: u64) -> bool {
        self.seen_to >= sequence && self.first.get(&tenant).is_none_or(|first| first.sequence >= sequence)
    }

    /// When the oldest entry that waits was accepted, in seconds since 1970.
    pub(super) fn oldest_s(&self) -> Option<u32> {
        self.first.values().map(|first| first.accepted_s).chain(self.oldest_later_s).min()
    }
}
