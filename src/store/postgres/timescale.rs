//! Whether TimescaleDB keeps raw usage: decided by the migration that makes the table, by whether the extension is there then.

use sqlx::postgres::PgConnection;
use sqlx::{Row as _, query};

/// What there is of it, where it is installed in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timescale {
    /// The extension's version.
    pub version: String,
    /// Whether `usage_events` is a hypertable. It is not where the extension came later, or has the Apache licence alone.
    pub is_used: bool,
}

const LOOK: &str = "SELECT extversion, coalesce((SELECT relkind = 'r' FROM pg_class WHERE oid = to_regclass('public.usage_events')), false) \
                    FROM pg_extension WHERE extname = 'timescaledb'";

pub(super) async fn look(connection: &mut PgConnection) -> Result<Option<Timescale>, sqlx::Error> {
    let row = query(LOOK).fetch_optional(connection).await?;
    row.map(|row| Ok(Timescale { version: row.try_get(0)?, is_used: row.try_get(1)? })).transpose()
}
