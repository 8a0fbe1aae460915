//! What rows take of the store, as it is counted for their tenants: their contents, and about so much for each in its table and
//! its indexes.

/// A record's, and its key's, which goes before it.
pub(super) const EVENT: i64 = 224;
/// A sum's.
pub(super) const SUM: i64 = 128;

/// A conflict's.
pub(super) const CONFLICT: i64 = 256;

/// A length in bytes.
pub(super) fn length(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
