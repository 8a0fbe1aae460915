//! What all who count in one store count by: in which zone days begin, when months close, and by which tags there are sums.
//!
//! The store says it, and not each process's policy: sidecars of a fleet have different editions of theirs for a while, and a total must not
//! depend on who counted. A policy says what is wanted: the first one who counts puts its zone and periods into the store, and a tag that is not there
//! is added by the first call that has it. Whose policy has another zone counts nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::tz::TimeZone;
use parking_lot::Mutex;
use uuid::Uuid;

use super::{Calendar, Call, Metric, UsagePolicy, postgres, sqlite};
use crate::names::Name;
use crate::policy::{Permit, PolicySource};
use crate::store::{Reach, Store, StoreError, Tx};

/// How often it is asked again, since somebody took away meanwhile what was to be there.
const ATTEMPTS: usize = 4;

/// What is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Another one with each change, on PostgreSQL.
    pub(super) edition: Uuid,
    /// As IANA names it.
    pub(super) time_zone: String,
    /// How long after its end a month closes, in milliseconds, or never.
    pub(super) close_after_ms: Option<u64>,
    /// The tags by whose values there are sums, sorted, by each metric of which something was counted.
    tags: BTreeMap<String, Vec<String>>,
}

impl Terms {
    /// Tags come with their metrics before them; an empty one is the metric's own.
    pub(super) fn new(
        edition: Uuid,
        (time_zone, close_after_ms): (String, Option<u64>),
        tags: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let mut by_metric: BTreeMap<String, Vec<String>> = BTreeMap::new();
        tags.into_iter().for_each(|(metric, tag)| {
            by_metric.entry(metric).or_default().extend(Some(tag).filter(|tag| !tag.is_empty()))
        });
        by_metric.values_mut().for_each(|tags| tags.sort_unstable());
        Self { edition, time_zone, close_after_ms, tags: by_metric }
    }

    /// The tags by whose values a metric's records are summed up.
    #[must_use]
    pub fn tags(&self, metric: &str) -> &[String] {
        self.tags.get(metric).map_or(&[], Vec::as_slice)
    }

    /// Its days and months.
    pub fn calendar(&self) -> Result<Calendar, StoreError> {
        calendar(&self.time_zone, self.close_after_ms)
    }

    /// Whether all that calls want is in force.
    fn cover(&self, wanted: &Wanted<'_>) -> bool {
        let is_there = |(metric, tag): &(&str, &str)| {
            self.tags.get(*metric).is_some_and(|tags| tag.is_empty() || tags.iter().any(|known| known == tag))
        };
        (wanted.any_zone || self.time_zone == wanted.time_zone) && wanted.tags.iter().all(is_there)
    }
}

/// A calendar of terms that are kept.
pub(super) fn calendar(time_zone: &str, close_after_ms: Option<u64>) -> Result<Calendar, StoreError> {
    let zone = TimeZone::get(time_zone);
    let zone = zone.map_err(|_| {
        StoreError::Corrupt(format!("the time zone `{time_zone}`, which this program has not"))
    })?;
    Ok(Calendar::new(zone, close_after_ms))
}

/// What calls of one policy want to be counted by.
#[derive(Debug)]
pub(super) struct Wanted<'c> {
    pub(super) time_zone: &'c str,
    pub(super) close_after_ms: Option<u64>,
    /// Of their metrics, each with its metric before it, and an empty one of each metric.
    pub(super) tags: BTreeSet<(&'c str, &'c str)>,
    /// Whether they were promised to be counted, under a policy of an earlier time: in whatever zone it is, and what that policy said of
    /// anything else changes nothing any more.
    pub(super) any_zone: bool,
}

impl<'c> Wanted<'c> {
    fn of(first: &'c Call, calls: impl Iterator<Item = &'c Call>, any_zone: bool) -> Self {
        let calendar = first.calendar();
        let metrics = calls.flat_map(Call::metrics).map(|metric| &**metric);
        let (time_zone, close_after_ms) = (calendar.zone_name(), calendar.close_after_ms());
        Self { time_zone, close_after_ms, tags: tags(metrics), any_zone }
    }

    /// All that a policy says.
    fn of_policy(policy: &'c UsagePolicy) -> Self {
        let calendar = policy.calendar();
        let metrics = policy.metrics().map(|metric| &**metric);
        let (time_zone, close_after_ms) = (calendar.zone_name(), calendar.close_after_ms());
        Self { time_zone, close_after_ms, tags: tags(metrics), any_zone: false }
    }

    pub(super) fn close_after_ms(&self) -> Option<i64> {
        self.close_after_ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX))
    }
}

/// The tags of metrics, each with its metric before it, and an empty one of each metric.
fn tags<'c>(metrics: impl Iterator<Item = &'c Metric>) -> BTreeSet<(&'c str, &'c str)> {
    let of = |metric: &'c Metric| {
        let declared = metric.group_by.iter().map(Name::as_str);
        std::iter::once("").chain(declared).map(|tag| (metric.name.as_str(), tag))
    };
    metrics.flat_map(of).collect()
}

/// The terms that a process has seen last, so that it need not ask for them in each transaction: whoever counts on PostgreSQL names their
/// edition, and is refused where another one is in force.
#[derive(Debug, Default)]
pub struct Seen(Mutex<Option<Arc<Terms>>>);

impl Seen {
    fn get(&self) -> Option<Arc<Terms>> {
        self.0.lock().clone()
    }

    fn set(&self, terms: &Arc<Terms>) {
        *self.0.lock() = Some(Arc::clone(terms));
    }

    /// They may be others now.
    pub(super) fn forget(&self) {
        self.0.lock().take();
    }
}

/// The terms by which calls are counted in this transaction; what they want and is not there is put into force, where that may be.
pub(super) async fn in_force(
    tx: &mut Tx<'_>,
    calls: &[&Call],
    seen: Option<&Seen>,
    any_zone: bool,
) -> Result<Arc<Terms>, StoreError> {
    let mut terms = seen.filter(|_| matches!(tx, Tx::Postgres(_))).and_then(Seen::get);
    let mut zones: BTreeSet<&str> = BTreeSet::new();
    for first in calls {
        let zone = first.calendar().zone_name();
        // One policy's, mostly: two where it changed while they waited.
        if !zones.insert(zone) {
            continue;
        }
        let of_zone = calls.iter().copied().filter(|call| any_zone || call.calendar().zone_name() == zone);
        let wanted = Wanted::of(first, of_zone, any_zone);
        if terms.as_ref().is_none_or(|terms| !terms.cover(&wanted)) {
            let asked = Arc::new(ask(tx, &wanted).await?);
            seen.iter().for_each(|seen| seen.set(&asked));
            terms = Some(asked);
        }
        if any_zone {
            break;
        }
    }
    terms.ok_or(StoreError::Contended)
}

/// Has what a call wants in force before it is counted: on PostgreSQL who changes the terms holds up all who count until its end.
pub(super) async fn prepare(
    store: &Store,
    permit: &Permit,
    call: &Call,
    seen: &Arc<Seen>,
) -> Result<(), StoreError> {
    let covers = |terms: Arc<Terms>| terms.cover(&Wanted::of(call, std::iter::once(call), false));
    if matches!(store, Store::Sqlite(_)) || seen.get().is_some_and(covers) {
        return Ok(());
    }
    let wants = Arc::new(call.without_points());
    let seen = Arc::clone(seen);
    store
        .run(permit, 0, move |tx| {
            let (wants, seen) = (Arc::clone(&wants), Arc::clone(&seen));
            Box::pin(async move { in_force(tx, &[&wants], Some(&seen), false).await.map(|_| ()) })
        })
        .await
}

async fn ask(tx: &mut Tx<'_>, wanted: &Wanted<'_>) -> Result<Terms, StoreError> {
    for _ in 0..ATTEMPTS {
        let terms = match tx {
            Tx::Postgres(tx) => postgres::terms(tx, wanted).await?,
            Tx::Sqlite(tx) => sqlite::terms(tx, wanted)?,
        };
        if terms.time_zone != wanted.time_zone && !wanted.any_zone || terms.cover(wanted) {
            return Ok(terms);
        }
    }
    Err(StoreError::Contended)
}

/// In which zone days begin and when months close, as the store has them; nothing where nobody has counted.
pub(super) type Kept = Option<(String, Option<u64>)>;

/// What the store has, in a transaction that reads.
pub(super) async fn kept(tx: &mut Tx<'_>) -> Result<Kept, StoreError> {
    match tx {
        Tx::Postgres(tx) => postgres::kept_terms(tx).await,
        Tx::Sqlite(tx) => sqlite::kept_terms(tx),
    }
}

/// Puts what a policy says into force where that is this process's to do: on the embedded store.
pub(super) async fn put(store: &Store, policies: &PolicySource) -> Result<(), StoreError> {
    if let Store::Postgres(_) = store {
        return Ok(());
    }
    let policies = policies.clone();
    store
        .run(Reach::nobody(), 0, move |tx| {
            let policies = policies.clone();
            Box::pin(async move {
                match (tx, policies.current().get::<UsagePolicy>()) {
                    (Tx::Sqlite(tx), Some(policy)) => sqlite::put_terms(tx, &Wanted::of_policy(policy)),
                    _ => Ok(()),
                }
            })
        })
        .await
}

/// What the store has.
pub(super) async fn look(store: &Store) -> Result<Kept, StoreError> {
    store.read(Reach::nobody(), |tx| Box::pin(kept(tx))).await
}
