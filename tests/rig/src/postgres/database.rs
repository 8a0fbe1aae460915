//! A database for one test.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::postgres::access::{PostgresAccess, PostgresRole};
use crate::postgres::session::HeldSession;
use crate::process::Error;

/// A database that `outrigger_owner` owns and only Outrigger's roles may enter. It has a name that no other has, and
/// is dropped with this value, or with its cluster.
#[derive(Debug)]
pub struct Database {
    name: String,
    access: PostgresAccess,
    primary: Arc<AtomicUsize>,
    /// On servers that others use too.
    drop_it: bool,
}

impl Database {
    pub(crate) fn create(
        access: &PostgresAccess,
        primary: &Arc<AtomicUsize>,
        drop_it: bool,
    ) -> Result<Self, Error> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let name = format!("test_{}_{count}_{:x}", std::process::id(), now & 0xffff_ffff_ffff);
        let database = Self { name, access: access.clone(), primary: Arc::clone(primary), drop_it };
        create(access, database.index(), &database.name)?;
        Ok(database)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Connection string for the server that is the primary now.
    pub fn url(&self, role: PostgresRole) -> String {
        self.access.url(self.index(), role, &self.name)
    }

    /// Connection string for the other server: reads only, and what was acknowledged may be a moment late there
    /// (`synchronous_commit = on` waits until it is on the standby's disk, not until it can be read).
    pub fn standby_url(&self, role: PostgresRole) -> String {
        self.access.url(1 - self.index(), role, &self.name)
    }

    /// Runs statements on the primary, each in a transaction of its own; the rows as `psql` prints them, fields
    /// parted by `|`.
    pub fn psql(&self, role: PostgresRole, sql: &[&str]) -> Result<String, Error> {
        self.access.psql(self.index(), role, &self.name, sql)
    }

    /// A session on the primary that runs these statements and stays open.
    pub fn hold(&self, role: PostgresRole, statements: &str) -> Result<HeldSession, Error> {
        HeldSession::begin(self.access.psql_command(self.index(), role, &self.name), statements)
    }

    fn index(&self) -> usize {
        self.primary.load(Ordering::SeqCst)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if !self.drop_it {
            return;
        }
        let statement = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        let dropped = self.access.psql(self.index(), PostgresRole::Superuser, "postgres", &[&statement]);
        if let Err(error) = dropped {
            eprintln!("rig: {error}");
        }
    }
}

/// Makes a database with this name.
pub(crate) fn create(access: &PostgresAccess, index: usize, name: &str) -> Result<(), Error> {
    let owner = PostgresRole::Owner.name();
    let others = format!("{}, {}", PostgresRole::App.name(), PostgresRole::Relay.name());
    let statements = [
        format!("CREATE DATABASE {name} OWNER {owner}"),
        format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC"),
        format!("GRANT CONNECT ON DATABASE {name} TO {others}"),
    ];
    let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
    access.psql(index, PostgresRole::Superuser, "postgres", &statements).map(drop)
}
