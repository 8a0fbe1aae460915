//! Entries that are not taken: tried again later, or put aside.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::super::ASIDE;
use super::{Drain, DrainError, Round};
use crate::digest;
use crate::store::{Store, StoreError};

/// Of a file whose tenant cannot be read.
const UNKNOWN: &str = "unknown";
const TOO_OLD: &str =
    "it was in the spool for so long that it may have been counted, and its keys are no longer kept";
/// Between two attempts at a tenant's call, where the others' can be counted.
const FIRST_REST: Duration = Duration::from_secs(1);
const LAST_REST: Duration = Duration::from_secs(30);

impl Drain {
    /// An entry was refused for what it is: the second time that is believed.
    pub(super) async fn refused(
        &mut self,
        error: &StoreError,
        is_of_days: bool,
        (tenant, sequence): (Uuid, u64),
    ) -> Result<Round, DrainError> {
        let doubt = self.doubts.entry(tenant).or_default();
        if doubt.refused.replace(sequence) != Some(sequence) {
            // The days of a server that was promoted or restored may be missing: they are made before the next attempt.
            self.ahead.lock().put_back(tenant);
            return Ok(Round::Done);
        }
        let is_kept = {
            let mut ahead = self.ahead.lock();
            ahead.hand().front().is_some_and(|one| one.is_kept(self.clock.today()))
        };
        if is_of_days && is_kept {
            // The store's clock says what this machine's does not.
            self.rest(
                tenant,
                &format!("{error}, and it is by this machine's clock: set the one that is wrong"),
            );
            return Ok(Round::Done);
        }
        self.refuse(&error.to_string()).await
    }

    /// A tenant's entries are tried again later, while the others' are counted.
    pub(super) fn rest(&mut self, tenant: Uuid, why: &str) {
        let doubt = self.doubts.entry(tenant).or_default();
        doubt.rest = (doubt.rest * 2).clamp(FIRST_REST, LAST_REST);
        let rests_s = doubt.rest.as_secs();
        tracing::error!(
            why,
            rests_s,
            "a tenant's usage that was accepted to disk is not counted yet, and is tried again; the others' is"
        );
        self.ahead.lock().rest(tenant, Instant::now() + doubt.rest);
    }

    /// The keys of the first one may be gone by this machine's clock: what is gone is what the store's says.
    pub(super) async fn ask(&mut self) -> Result<(), DrainError> {
        let today = self.clock.today_of(&self.store).await?;
        let is_old = {
            let mut ahead = self.ahead.lock();
            let Some(first) = ahead.hand().front_mut() else { return Ok(()) };
            first.is_young = !first.is_old(today);
            !first.is_young
        };
        if is_old {
            match &self.store {
                // Both clocks say it.
                Store::Postgres(_) => self.refuse_for_sure(TOO_OLD).await?,
                Store::Sqlite(_) => self.refuse(TOO_OLD).await?,
            };
        }
        Ok(())
    }

    /// Puts the first one aside, unless others' were refused too since one was counted: then something else is wrong than an entry.
    pub(super) async fn refuse(&mut self, why: &str) -> Result<Round, DrainError> {
        let tenant = self.ahead.lock().hand().front().map(|one| one.tenant);
        let Some(tenant) = tenant else { return Ok(Round::Done) };
        self.refused_in_a_row.insert(tenant);
        if self.refused_in_a_row.len() > 1 {
            self.rest(tenant, &format!("calls of several tenants in a row are refused, and none is put aside before one is counted: {why}"));
            return Ok(Round::Done);
        }
        self.refuse_for_sure(why).await
    }

    /// Puts the first one aside. Where that fails, as on a disk that is full, the others are counted: that makes room.
    pub(super) async fn refuse_for_sure(&mut self, why: &str) -> Result<Round, DrainError> {
        let first = self
            .ahead
            .lock()
            .hand()
            .front()
            .map(|one| (one.tenant, one.located.sequence, one.payload.clone()));
        let Some((tenant, sequence, payload)) = first else { return Ok(Round::Done) };
        if let Err(error) = self.put_aside(tenant, sequence, payload, why).await {
            self.rest(tenant, &format!("a call that is refused ({why}) cannot be put aside: {error}"));
            return Ok(Round::Done);
        }
        self.done(1);
        self.remove_done().await;
        Ok(Round::Done)
    }

    /// Keeps an entry that cannot be counted, as it is, in a file of its own: `outrigger usage requeue` takes it back. It stays in its
    /// tenant's part of the spool.
    async fn put_aside(
        &self,
        tenant: Uuid,
        sequence: u64,
        payload: Vec<u8>,
        why: &str,
    ) -> Result<(), DrainError> {
        let owner = if tenant.is_nil() { UNKNOWN.to_owned() } else { tenant.to_string() };
        // After a kill the same one may come again; another one never has its name.
        let digest = u64::from_be_bytes(digest::first(digest::of_parts([&payload]).as_ref()));
        let name = format!("{owner}.{sequence:020}.{digest:016x}.{}", ASIDE);
        let (spool, bytes) = (Arc::clone(&self.spool), payload.len() as u64);
        let written = tokio::task::spawn_blocking(move || spool.put_aside(&name, &payload));
        let path = written.await.map_err(io::Error::other)??;
        self.shares.add_aside(tenant, bytes);
        let file = path.display();
        tracing::error!(%file, tenant = owner, why, "usage that was accepted to disk cannot be counted, and is kept in this file");
        self.metrics.refused();
        Ok(())
    }
}
