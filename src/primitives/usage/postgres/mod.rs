//! Usage in PostgreSQL.

mod numeric;
