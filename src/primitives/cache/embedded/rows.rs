//! The statements. Each function is one step of one job.

use std::collections::HashMap;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, params};

use super::leases::Leases;
use crate::primitives::cache::Write;
use crate::primitives::cache::etag::{Etag, Verdict};
use crate::primitives::cache::generation::{Generation, GenerationToken, MAX_VERSIONS};
use crate::primitives::cache::key::Scope;

/// An entry.
pub(super) struct Row {
    pub(super) stamp: [u8; 16],
    pub(super) etag: [u8; 20],
    pub(super) written_at_ms: u64,
    pub(super) expires_at_ms: u64,
    pub(super) content_type: String,
    pub(super) body: Vec<u8>,
}

/// An entry to write.
pub(super) struct PutRow {
    pub(super) entry: Vec<u8>,
    pub(super) scope: Scope,
    pub(super) version: Option<String>,
    pub(super) bytes: u64,
    pub(super) written_at_ms: u64,
    pub(super) expires_at_ms: u64,
    pub(super) gone_at_ms: u64,
    pub(super) etag: Etag,
    pub(super) write: Write,
}

/// How a write ended.
pub(super) enum Written {
    Stored,
    PreconditionFailed,
    LeaseVoid,
    TenantFull { max_bytes: u64 },
}

/// The entry under this key, whatever its state.
pub(super) fn get(connection: &Connection, entry: &[u8]) -> rusqlite::Result<Option<Row>> {
    let mut statement = connection.prepare_cached(
        "SELECT stamp, etag, written_at_ms, expires_at_ms, content_type, body FROM cache_entries WHERE entry = ?1",
    )?;
    statement
        .query_row([entry], |row| {
            Ok(Row {
                stamp: fixed(row, 0)?,
                etag: fixed(row, 1)?,
                written_at_ms: ms(row, 2)?,
                expires_at_ms: ms(row, 3)?,
                content_type: row.get(4)?,
                body: row.get(5)?,
            })
        })
        .optional()
}

/// Checks the lease, the conditions and the tenant's room, and writes, in this order.
pub(super) fn put(connection: &Connection, row: &PutRow, leases: &Leases) -> rusqlite::Result<Written> {
    if let Some(token) = &row.write.lease
        && !leases.holds(&row.scope, &row.entry, token)
    {
        return Ok(Written::LeaseVoid);
    }
    let stamp = generation(connection, &row.scope)?.stamp(row.version.as_deref());
    let current = current(connection, &row.entry)?;
    let valid = current
        .as_ref()
        .filter(|current| current.stamp == *stamp.as_bytes() && row.written_at_ms < current.expires_at_ms);
    if row.write.conditions.judge(valid.map(|current| &current.etag)) != Verdict::Holds {
        return Ok(Written::PreconditionFailed);
    }
    let before = current.map_or(0, |current| current.bytes);
    let max_bytes = row.write.max_tenant_bytes;
    if tenant_bytes(connection, &row.scope)?.saturating_sub(before).saturating_add(row.bytes) > max_bytes {
        return Ok(Written::TenantFull { max_bytes });
    }
    let mut statement = connection.prepare_cached(
        "INSERT INTO cache_entries VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
         ON CONFLICT (entry) DO UPDATE SET
             stamp = excluded.stamp, bytes = excluded.bytes, written_at_ms = excluded.written_at_ms,
             expires_at_ms = excluded.expires_at_ms, gone_at_ms = excluded.gone_at_ms,
             etag = excluded.etag, content_type = excluded.content_type, body = excluded.body",
    )?;
    statement.execute(params![
        row.entry,
        row.scope.tenant().as_bytes(),
        row.scope.namespace(),
        row.version,
        stamp.as_bytes(),
        integer(row.bytes),
        integer(row.written_at_ms),
        integer(row.expires_at_ms),
        integer(row.gone_at_ms),
        row.etag.as_bytes(),
        row.write.content_type.to_str().unwrap_or_default(),
        &*row.write.body,
    ])?;
    leases.use_up(&row.scope, &row.entry);
    Ok(Written::Stored)
}

pub(super) fn delete(connection: &Connection, entry: &[u8]) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM cache_entries WHERE entry = ?1")?.execute([entry])?;
    Ok(())
}

/// The current tokens of a scope.
pub(super) fn generation(connection: &Connection, scope: &Scope) -> rusqlite::Result<Generation> {
    let mut statement = connection.prepare_cached(
        "SELECT version, token FROM cache_generations WHERE tenant = ?1 AND namespace = ?2",
    )?;
    let mut rows = statement.query(params![scope.tenant().as_bytes(), scope.namespace()])?;
    let (mut all, mut versions) = (GenerationToken::default(), HashMap::new());
    while let Some(row) = rows.next()? {
        let version: String = row.get(0)?;
        let token = GenerationToken::from_bytes(&fixed::<8>(row, 1)?).unwrap_or_default();
        if version.is_empty() {
            all = token;
        } else {
            versions.insert(version.into(), token);
        }
    }
    Ok(Generation::new(all, versions))
}

/// Gives the scope, or one version of it, a new token. Too many versions renew the whole scope.
pub(super) fn renew_generation(
    connection: &Connection,
    scope: &Scope,
    version: Option<&str>,
    token: GenerationToken,
) -> rusqlite::Result<()> {
    let (tenant, namespace) = (scope.tenant().as_bytes(), scope.namespace());
    let versions: i64 = connection
        .prepare_cached("SELECT count(*) FROM cache_generations WHERE tenant = ?1 AND namespace = ?2")?
        .query_row(params![tenant, namespace], |row| row.get(0))?;
    let version = version.filter(|_| usize::try_from(versions).unwrap_or(usize::MAX) < MAX_VERSIONS);
    if version.is_none() {
        connection
            .prepare_cached("DELETE FROM cache_generations WHERE tenant = ?1 AND namespace = ?2")?
            .execute(params![tenant, namespace])?;
    }
    connection
        .prepare_cached("INSERT OR REPLACE INTO cache_generations VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![tenant, namespace, version.unwrap_or(""), token.to_bytes()])?;
    Ok(())
}

struct Current {
    stamp: [u8; 16],
    etag: Etag,
    expires_at_ms: u64,
    bytes: u64,
}

fn current(connection: &Connection, entry: &[u8]) -> rusqlite::Result<Option<Current>> {
    let mut statement = connection
        .prepare_cached("SELECT stamp, etag, expires_at_ms, bytes FROM cache_entries WHERE entry = ?1")?;
    statement
        .query_row([entry], |row| {
            Ok(Current {
                stamp: fixed(row, 0)?,
                etag: Etag::from_bytes(fixed(row, 1)?),
                expires_at_ms: ms(row, 2)?,
                bytes: ms(row, 3)?,
            })
        })
        .optional()
}

/// What the tenant keeps.
pub(super) fn tenant_bytes(connection: &Connection, scope: &Scope) -> rusqlite::Result<u64> {
    let mut statement = connection.prepare_cached("SELECT bytes FROM cache_bytes WHERE tenant = ?1")?;
    Ok(statement.query_row([scope.tenant().as_bytes()], |row| ms(row, 0)).optional()?.unwrap_or(0))
}

/// A blob of a known length.
pub(super) fn fixed<const N: usize>(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<[u8; N]> {
    let blob: Vec<u8> = row.get(column)?;
    blob.try_into().map_err(|_| {
        rusqlite::Error::FromSqlConversionFailure(column, Type::Blob, "a blob of a wrong length".into())
    })
}

fn ms(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}

/// SQLite's integers end at `i64::MAX`; times and sizes beyond it do not occur.
pub(super) fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
