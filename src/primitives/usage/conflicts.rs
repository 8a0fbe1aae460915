//! Records that were accepted to disk and could not be counted: their keys are others'. They are listed, and nothing of them counts.

use jiff::Timestamp;
use uuid::Uuid;

use super::{Point, postgres, sqlite};
use crate::names::Name;
use crate::store::{StoreError, Tx};

/// One that is found.
pub(super) struct Conflict<'c> {
    pub(super) tenant: Uuid,
    pub(super) metric: &'c Name,
    pub(super) key: &'c str,
    pub(super) point: &'c Point,
}

/// One that is listed, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    /// When it was found, in microseconds since 1970.
    pub(super) found_us: i64,
    pub(super) key: String,
    pub(super) fingerprint: i64,
    pub(super) time: Timestamp,
    /// As it is read: an exact decimal.
    pub(super) value: String,
    /// JSON objects.
    pub(super) tags: Option<String>,
    pub(super) metadata: Option<String>,
}

/// A place in the list: what comes behind it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Behind {
    pub(super) found_us: i64,
    pub(super) key: String,
    pub(super) fingerprint: i64,
}

impl Behind {
    /// What was found from an instant on.
    pub(super) fn all_from(time: Timestamp) -> Self {
        Self { found_us: time.as_microsecond(), key: String::new(), fingerprint: i64::MIN }
    }
}

/// Lists them, each once however often it comes.
pub(super) async fn note(tx: &mut Tx<'_>, found: &[Conflict<'_>]) -> Result<(), StoreError> {
    match tx {
        Tx::Postgres(tx) => postgres::note_conflicts(tx, found).await,
        Tx::Sqlite(tx) => sqlite::note_conflicts(tx, found, Timestamp::now()),
    }
}

/// Those of a tenant's metric behind a place, so many at the most.
pub(super) async fn list(
    tx: &mut Tx<'_>,
    (tenant, metric): (Uuid, &Name),
    behind: &Behind,
    limit: i64,
) -> Result<Vec<Listed>, StoreError> {
    match tx {
        Tx::Postgres(tx) => postgres::conflicts(tx, tenant, metric, behind, limit).await,
        Tx::Sqlite(tx) => sqlite::conflicts(tx, tenant, metric, behind, limit),
    }
}
