//! What one call asks of its buckets.

use std::sync::Arc;

use smallvec::SmallVec;
use uuid::Uuid;

use super::{RateLimitError, Rule};
use crate::policy::Permit;

/// A limit and a key of a tenant. Made of a [`Permit`], so that there is no other way to name a tenant's bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// `<limit>:<key>`; a limit's name has no colon.
    id: Box<str>,
    limit_bytes: usize,
}

impl Bucket {
    fn new(limit: &str, key: &str) -> Self {
        let mut id = String::with_capacity(limit.len() + 1 + key.len());
        id.push_str(limit);
        id.push(':');
        id.push_str(key);
        Self { id: id.into_boxed_str(), limit_bytes: limit.len() }
    }

    /// `<limit>:<key>`: what tells the bucket from the tenant's others.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The limit's name.
    #[must_use]
    pub fn limit(&self) -> &str {
        &self.id[..self.limit_bytes]
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.id[self.limit_bytes + 1..]
    }
}

/// What is asked of one bucket.
#[derive(Debug, Clone)]
pub struct Ask {
    bucket: Bucket,
    rule: Arc<Rule>,
    cost: u64,
}

impl Ask {
    /// The bucket.
    #[must_use]
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// What holds for it.
    #[must_use]
    pub fn rule(&self) -> &Arc<Rule> {
        &self.rule
    }

    /// How many tokens; 0 looks.
    #[must_use]
    pub fn cost(&self) -> u64 {
        self.cost
    }

    /// The id of the bucket that new keys of this rule share while their tenant has too many keys: a NUL, which
    /// no key has, and the rule's pattern.
    #[must_use]
    pub fn overflow_id(&self) -> String {
        format!("{}:\0{}", self.rule.limit, self.rule.pattern)
    }
}

/// What one call asks, of one tenant's buckets, each bucket once.
#[derive(Debug, Clone)]
pub struct Asks {
    tenant: Option<Uuid>,
    max_keys: usize,
    asks: SmallVec<[Ask; 1]>,
}

impl Asks {
    /// Nothing yet, for a tenant that may have `max_keys` keys in use.
    #[must_use]
    pub fn new(max_keys: usize) -> Self {
        Self { tenant: None, max_keys, asks: SmallVec::new() }
    }

    /// Adds a check and returns the index of its ask: checks of the same limit and key are one ask, and their
    /// costs add up.
    pub fn add(
        &mut self,
        permit: &Permit,
        rule: &Arc<Rule>,
        key: &str,
        cost: u64,
    ) -> Result<usize, RateLimitError> {
        self.add_for(*permit.tenant().as_uuid(), permit.name().as_str(), rule, key, cost)
    }

    pub(super) fn add_for(
        &mut self,
        tenant: Uuid,
        limit: &str,
        rule: &Arc<Rule>,
        key: &str,
        cost: u64,
    ) -> Result<usize, RateLimitError> {
        if *self.tenant.get_or_insert(tenant) != tenant {
            return Err(RateLimitError::TwoTenants);
        }
        let same = |ask: &Ask| ask.bucket.limit() == limit && ask.bucket.key() == key;
        let index = self.asks.iter().position(same).unwrap_or(self.asks.len());
        let total = self.asks.get(index).map_or(0, |ask| ask.cost).saturating_add(cost);
        let burst = rule.quota.burst();
        if total > burst {
            return Err(RateLimitError::OverBurst { burst });
        }
        match self.asks.get_mut(index) {
            Some(ask) => ask.cost = total,
            None => {
                self.asks.push(Ask { bucket: Bucket::new(limit, key), rule: Arc::clone(rule), cost: total })
            }
        }
        Ok(index)
    }

    /// The tenant; nil where nothing is asked.
    #[must_use]
    pub fn tenant(&self) -> Uuid {
        self.tenant.unwrap_or_default()
    }

    /// How many keys the tenant may have in use.
    #[must_use]
    pub fn max_keys(&self) -> usize {
        self.max_keys
    }

    /// Each ask.
    #[must_use]
    pub fn as_slice(&self) -> &[Ask] {
        &self.asks
    }
}
