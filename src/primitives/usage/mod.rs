//! Usage: points counted once, and exact totals of them.
//!
//! - A record that was accepted is durable, counts once whatever is sent again, and is in the next read.
//! - A key that comes back with another record is a conflict, and of that call nothing is counted.
//! - Totals are exact decimals, so that any order of arrival gives the same.
//!
//! What a record is ([`Checks`]), what becomes of a group of calls ([`settle`], [`Rollup`]) and how they are counted ([`count`]) and
//! read ([`read()`]) know nothing of HTTP (`api`); `postgres` and `sqlite` have the statements.

mod amount;
mod api;
mod calendar;
mod config;
mod conflicts;
#[cfg(test)]
mod conformance;
mod count;
mod counter;
mod day;
mod fields;
mod group;
mod housekeeping;
mod key;
mod limits;
mod metadata;
mod metrics;
mod policy;
mod postgres;
mod read;
mod reconcile;
mod record;
mod rollup;
mod spool;
mod sqlite;
mod standing;
mod terms;
mod window;

pub use amount::{Amount, AmountError, Sum};
pub use calendar::{Booked, Books, Calendar};
pub use count::{Call, Days, count};
pub use counter::Counter;
pub use day::{Day, KEYS_AHEAD_DAYS, KEYS_DAYS};
pub use group::{Known, Offered, Refusal, Settled, Verdict, settle};
pub use key::{PointKey, fingerprint};
pub use limits::RateDocument;
pub use policy::{Ack, BillingDocument, KIND, Metric, MetricDocument, UsageDocument, UsagePolicy};
pub use read::{ReadError, ReadPoint, Reading, Start, SumOf, SumRow, read};
pub use reconcile::{Difference, NotCompared, ReconcileError, SumName, Told, reconcile};
pub use record::{AcceptWindow, Checks, Late, MAX_RECORDS, Point, Record, Records, Wrong};
pub use rollup::{Added, Rollup, SumKey};
pub use spool::{Requeued, RequeuedCall, requeue};
pub use terms::{Seen, Terms};
pub use window::{Range, RangeError, Source, Step, Window};

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use self::spool::Spooler;
use crate::http::Route;
use crate::leases::{Leases, Owner};
use crate::policy::Action;
use crate::primitives::write_rates::Rates;
use crate::primitives::{BuildError, Primitive, Resources};

/// The registry row.
pub const PRIMITIVE: Primitive = Primitive {
    name: "usage",
    actions: ACTIONS,
    config_schema: schemars::SchemaGenerator::subschema_for::<config::UsageConfig>,
    policy: KIND,
    redis_families: &[],
    must_not_be_evicted: false,
    migrations: &[],
    needs_store: true,
    build,
};

/// Counting records of a metric.
pub const RECORD: Action = Action::new("usage", "record");
/// Reading a metric's totals.
pub const READ: Action = Action::new("usage", "read");
/// Every action.
pub const ACTIONS: &[Action] = &[RECORD, READ];

/// For how many days records are kept, as a section that fits its schema says.
#[must_use]
pub fn retention_days(section: &Value) -> Option<u32> {
    config::UsageConfig::read(section.clone()).ok().map(|config| config.retention_days)
}

/// Where records lie that were accepted to disk, in a data directory.
#[must_use]
pub fn spool_folder(data_dir: &Path) -> PathBuf {
    data_dir.join("spool")
}

fn build(section: Value, resources: &Resources) -> Result<Vec<Route>, BuildError> {
    let config = config::UsageConfig::read(section)?;
    let store = resources.store()?;
    let leases = Leases::new(store.clone(), Owner::of_this_process());
    housekeeping::start(store.clone(), leases, config.retention_days, &resources.tasks);
    let metrics = Arc::new(metrics::UsageMetrics::new(&resources.metrics)?);
    let spooler = resources.data_dir.as_deref().map(|data| {
        let directory = spool_folder(data);
        let spool = Arc::clone(&metrics.spool);
        Spooler::start(&directory, config.spool_max_bytes, &store, spool, &resources.tasks)
            .map_err(|error| BuildError::Spool { directory, reason: error.to_string() })
    });
    let spooler = spooler.transpose()?;
    let counter = Counter::new(store.clone(), Arc::clone(&metrics), resources.tasks.clone());
    let health = resources.health.add("usage", false);
    let standing = standing::Standing::start(&store, &resources.policies, health, &resources.tasks);
    Ok(api::routes(api::Api { store, counter, spooler, rates: Rates::new(), metrics, standing }))
}
