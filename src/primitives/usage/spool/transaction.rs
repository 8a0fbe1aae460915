//! Entries counted in a transaction of their tenants.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use jiff::Timestamp;

use super::super::conflicts::{self, Conflict};
use super::super::count::{Counted, count_each, defect};
use super::super::{Call, Day, Days};
use super::entry::Accepted;
use crate::store::{Reach, Store, StoreError, Tx};

/// What a transaction counts.
pub(super) struct Portion {
    pub(super) entries: Vec<Arc<Accepted>>,
    /// Of the one entry that there is, these points alone.
    pub(super) only: Option<Range<usize>>,
    /// Whether nothing is left of it then.
    pub(super) is_end: bool,
    /// Whether keys are looked up first.
    pub(super) looks_first: bool,
}

/// Why it is not counted.
pub(super) enum CountError {
    /// Its days could not be made.
    Days(StoreError),
    /// It was not taken.
    Store(StoreError),
}

impl Portion {
    pub(super) fn points(&self) -> usize {
        let all = || self.entries.iter().map(|accepted| accepted.call.points().len()).sum();
        self.only.as_ref().map_or_else(all, ExactSizeIterator::len)
    }
}

/// Counts it, and lists what has another one's key.
pub(super) async fn count(store: &Store, days: &Days, portion: &Portion) -> Result<Counted, CountError> {
    let of: BTreeSet<Day> = portion.entries.iter().flat_map(|accepted| accepted.call.days()).collect();
    days.make(of.clone()).await.map_err(CountError::Days)?;
    let tenants = portion.entries.iter().map(|accepted| accepted.call.tenant()).collect();
    let bytes = portion.entries.iter().map(|accepted| accepted.call.bytes()).sum();
    let entries: Arc<[Arc<Accepted>]> = portion.entries.as_slice().into();
    let (only, looks_first) = (portion.only.clone(), portion.looks_first);
    let counted: Result<Counted, StoreError> = store
        .run(Reach::background_batch(tenants), bytes, move |tx| {
            let (entries, only) = (Arc::clone(&entries), only.clone());
            Box::pin(async move { count_and_list(tx, &entries, only, looks_first).await })
        })
        .await;
    counted.map_err(|error| {
        // They may be gone, with a server that was promoted or restored.
        days.forget(&of);
        CountError::Store(error)
    })
}

async fn count_and_list(
    tx: &mut Tx<'_>,
    entries: &[Arc<Accepted>],
    only: Option<Range<usize>>,
    looks_first: bool,
) -> Result<Counted, StoreError> {
    let came = |accepted: &Accepted| Timestamp::from_millisecond(accepted.accepted_ms);
    let calls = entries.iter().map(|accepted| Ok((&accepted.call, came(accepted)?)));
    let calls = calls.collect::<Result<Vec<(&Call, Timestamp)>, jiff::Error>>();
    let calls = calls.map_err(|error| defect(&error.to_string()))?;
    let counted = count_each(tx, &calls, only, looks_first).await?;
    let conflict = |(call, number): &(usize, usize)| {
        let Accepted { call, keys, .. } = &**entries.get(*call)?;
        let point = call.points().get(*number)?;
        Some(Conflict {
            tenant: call.tenant(),
            metric: &call.metric(point)?.name,
            key: keys.get(*number)?,
            point,
        })
    };
    let found: Option<Vec<Conflict<'_>>> = counted.refused.iter().map(conflict).collect();
    let found = found.ok_or_else(|| defect("a conflict of no record"))?;
    if !found.is_empty() {
        conflicts::note(tx, &found).await?;
    }
    Ok(counted)
}
