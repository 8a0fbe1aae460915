//! The PostgreSQL servers that the tests share, and PgBouncer before the primary.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use crate::certificate::Certificate;
use crate::pgbouncer::{PgBouncer, PgBouncerOptions};
use crate::ports::shared_first;
use crate::postgres::access::{self, PostgresAccess, PostgresRole};
use crate::postgres::config::PostgresOptions;
use crate::postgres::database::{self, Database};
use crate::postgres::{PostgresCluster, check_synchronous, shared_folder};
use crate::process::{Error, wait_until};
use crate::recorded::Recorded;
use crate::shared::{Kind, from_environment, require};

const PORT_VARIABLE: &str = "RIG_POSTGRES_PORT";
/// Above the first port of all.
const PORT_OFFSET: u16 = 10;
/// `on`: commits wait for the disk, as a measurement must have it.
const FSYNC_VARIABLE: &str = "RIG_POSTGRES_FSYNC";
/// The database of `.rig/env`; tests take one of their own.
const DATABASE: &str = "outrigger";

pub(crate) const KIND: Kind = Kind { name: "postgres", start, env_lines, check };

/// The shared servers. Tests leave them as they are: one that kills, stops or reconfigures a server starts a
/// [`PostgresCluster`].
#[derive(Clone, Debug)]
pub struct SharedPostgres {
    access: PostgresAccess,
    bouncer_port: u16,
}

impl SharedPostgres {
    /// Addresses, certificate, connection strings: server 0 is the primary, 1 its synchronous standby.
    pub fn access(&self) -> &PostgresAccess {
        &self.access
    }

    /// A new database, dropped with the value.
    pub fn database(&self) -> Result<Database, Error> {
        Database::create(&self.access, &Arc::new(AtomicUsize::new(0)), true)
    }

    /// A connection string through the shared PgBouncer.
    pub fn bouncer_url(&self, role: PostgresRole, database: &str) -> String {
        access::url(self.bouncer_port, role, database)
    }

    /// A PgBouncer of the test's own before the primary.
    pub fn bouncer(&self, options: PgBouncerOptions) -> Result<PgBouncer, Error> {
        PgBouncer::start_before(&self.access, 0, options)
    }
}

/// The shared servers, which are started where they are not up (2 to 4 s).
///
/// # Panics
/// When they cannot be started: a missing server fails a test, it skips none.
pub fn shared_postgres() -> SharedPostgres {
    require(&KIND);
    found().unwrap_or_else(|error| panic!("no PostgreSQL for this test: {error}"))
}

fn found() -> Result<SharedPostgres, Error> {
    let first = shared_first(PORT_VARIABLE, PORT_OFFSET)?;
    let certificate = Certificate::of(&shared_folder(first)?.join("tls"));
    let access = PostgresAccess { ports: [first, first + 1], certificate };
    Ok(SharedPostgres { access, bouncer_port: first + 2 })
}

fn start(_: &Path) -> Result<Vec<Recorded>, Error> {
    let first = shared_first(PORT_VARIABLE, PORT_OFFSET)?;
    let options = PostgresOptions { fsync: fsync(), ..PostgresOptions::default() };
    let cluster = PostgresCluster::start_outliving(options, first)?;
    write_passwords(&shared_folder(first)?)?;
    database::create(cluster.access(), 0, DATABASE)?;
    let bouncer = PgBouncer::start_outliving(cluster.access(), first + 2)?;
    let mut recorded = cluster.release()?;
    recorded.extend(bouncer.release()?);
    Ok(recorded)
}

/// The roles' passwords as files, since a configuration names its secrets and does not hold them.
fn write_passwords(folder: &Path) -> Result<(), Error> {
    let folder = folder.join("passwords");
    let written = std::fs::create_dir_all(&folder).and_then(|()| {
        let roles = [PostgresRole::Owner, PostgresRole::App, PostgresRole::Relay];
        roles.iter().try_for_each(|role| std::fs::write(folder.join(role.name()), role.password()))
    });
    written.map_err(|error| Error::new(format!("{}: {error}", folder.display())))
}

fn fsync() -> bool {
    from_environment(FSYNC_VARIABLE).is_some_and(|value| value == "on")
}

fn env_lines() -> Result<Vec<String>, Error> {
    let SharedPostgres { access, bouncer_port } = found()?;
    let app = PostgresRole::App;
    Ok(vec![
        format!("POSTGRES_URL={}", access.url(0, app, DATABASE)),
        format!("POSTGRES_OWNER_URL={}", access.url(0, PostgresRole::Owner, DATABASE)),
        format!("POSTGRES_ADMIN_URL={}", access.url(0, PostgresRole::Superuser, DATABASE)),
        format!("POSTGRES_RELAY_URL={}", access.url(0, PostgresRole::Relay, DATABASE)),
        format!("POSTGRES_STANDBY_URL={}", access.url(1, app, DATABASE)),
        format!("PGBOUNCER_URL={}", access::url(bouncer_port, app, DATABASE)),
        format!("POSTGRES_CA_FILE={}", access.certificate.authority.display()),
        // Servers that were started otherwise are not the ones that are wanted.
        format!("{FSYNC_VARIABLE}={}", if fsync() { "on" } else { "off" }),
    ])
}

fn check() -> Result<(), Error> {
    let SharedPostgres { access, bouncer_port } = found()?;
    wait_until("the shared PostgreSQL servers", Duration::from_secs(5), String::new, || {
        check_synchronous(&access, 0)?;
        let command = access::psql(bouncer_port, PostgresRole::App, DATABASE, &access.certificate);
        access::output(command, &["SELECT 1"]).map(drop).map_err(|error| format!("PgBouncer: {error}"))
    })
}
