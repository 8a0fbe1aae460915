//! Migrations, rights and row-level security, as the database's own catalogue has them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::join;
use rig::{PostgresRole, shared_postgres};
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::bench::{self, bench};
use super::classify::{Failure, PgError};
use super::metrics::PostgresMetrics;
use super::migrate::{self, Epoch, MigrationError, Settings, migrate};
use super::pool::{ConnectAs, Postgres};
use super::schema::inspect;
use super::tx::Tenants;
use crate::config::PostgresConfig;
use crate::error::ErrorKind;
use crate::tasks::Tasks;
use crate::telemetry::{BackendState, HealthBoard, Registry};

const NOBODY: Tenants = Tenants::None;
/// A later program's step.
const PRETEND: &str = "INSERT INTO _sqlx_migrations VALUES (4, 'next', now(), true, 'x', 0)";

fn start(config: &PostgresConfig, board: &HealthBoard, tasks: &Tasks) -> std::sync::Arc<Postgres> {
    let metrics = PostgresMetrics::new(&Registry::default()).unwrap();
    let role = ConnectAs::App(&config.app);
    Postgres::start(config, &role, board.add("postgres", false), &metrics, tasks).unwrap()
}

/// What a call hears now.
async fn call(postgres: &Postgres) -> Result<(), PgError> {
    postgres.run_for(NOBODY, |tx| tx.query("SELECT 1", &[]).map(|rows| rows.map(drop)).boxed()).await
}

/// Waits until the board says so.
async fn until(board: &HealthBoard, state: BackendState, words: &str) {
    let end = Instant::now() + Duration::from_secs(20);
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    loop {
        let report = board.reports().remove(0);
        if report.state == state && report.advice.contains(words) {
            return;
        }
        assert!(Instant::now() < end, "{report:?}");
        ticks.tick().await;
    }
}

#[tokio::test]
async fn a_database_that_was_not_migrated_is_refused_with_the_command_and_served_once_it_was() {
    let servers = shared_postgres();
    let database = servers.database().unwrap();
    let authority = servers.access().certificate().authority.clone();
    let (config, _secrets) = bench::config(&[servers.access().address(0)], database.name(), Some(authority));
    let (board, tasks) = (HealthBoard::default(), Tasks::default());
    let postgres = start(&config, &board, &tasks);
    let refused = call(&postgres).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::BackendUnavailable);
    assert!(refused.to_string().contains("run `outrigger migrate --config FILE`"), "{refused}");
    until(&board, BackendState::Down, "outrigger migrate").await;

    let planned = migrate(&config, &Settings::default(), Epoch::Same, true).await.unwrap();
    assert_eq!((planned.from, planned.steps.len()), (0, usize::try_from(migrate::KNOWN).unwrap()));
    assert!(call(&postgres).await.is_err(), "a dry run changes nothing");
    let (one, other) = join(
        migrate(&config, &Settings::default(), Epoch::Same, false),
        migrate(&config, &Settings::default(), Epoch::Same, false),
    )
    .await;
    assert!(one.is_ok() && other.is_ok(), "two at once: {one:?} {other:?}");
    assert_eq!(migrate(&config, &Settings::default(), Epoch::Same, false).await.unwrap().steps, [""; 0]);
    until(&board, BackendState::Up, "").await;
    call(&postgres).await.unwrap();
}

#[tokio::test]
async fn a_schema_one_version_ahead_is_served_and_two_ahead_is_not() {
    let bench = bench(1).await;
    call(&bench.postgres).await.unwrap();
    bench.database.psql(PostgresRole::Owner, &[PRETEND]).unwrap();
    let (board, tasks) = (HealthBoard::default(), Tasks::default());
    call(&start(&bench.config, &board, &tasks)).await.unwrap();
    let next = "UPDATE _sqlx_migrations SET version = 5 WHERE version = 4";
    bench.database.psql(PostgresRole::Owner, &[next]).unwrap();
    let refused = call(&start(&bench.config, &board, &tasks)).await.unwrap_err();
    assert!(refused.to_string().contains("use a newer one"), "{refused}");
}

#[tokio::test]
async fn a_step_that_was_applied_and_is_another_now_is_refused() {
    let bench = bench(1).await;
    let changed = "UPDATE _sqlx_migrations SET checksum = 'x' WHERE version = 1";
    bench.database.psql(PostgresRole::Owner, &[changed]).unwrap();
    assert!(matches!(
        migrate(&bench.config, &Settings::default(), Epoch::Same, false).await,
        Err(MigrationError::Step(_))
    ));
}

#[tokio::test]
async fn a_role_that_row_level_security_does_not_hold_is_refused() {
    let bench = bench(1).await;
    let mut config = bench.config.clone();
    config.app = config.owner.clone().unwrap();
    assert!(matches!(
        migrate(&config, &Settings::default(), Epoch::Same, false).await,
        Err(MigrationError::Role { .. })
    ));
    let (board, tasks) = (HealthBoard::default(), Tasks::default());
    let refused = call(&start(&config, &board, &tasks)).await.unwrap_err();
    assert!(refused.to_string().contains("row-level security would not hold"), "{refused}");
    config.app = config.relay.clone().unwrap();
    let same = migrate(&config, &Settings::default(), Epoch::Same, false).await.unwrap_err();
    assert!(same.to_string().contains("two roles apart"), "{same}");
    config.app.user = "nobody".to_owned();
    let missing = migrate(&config, &Settings::default(), Epoch::Same, false).await.unwrap_err();
    assert!(missing.to_string().contains("CREATE ROLE"), "{missing}");
}

#[tokio::test]
async fn every_table_of_tenants_is_under_forced_row_level_security_and_the_application_owns_nothing() {
    let bench = bench(1).await;
    let ask = |sql: &str| bench.database.psql(PostgresRole::Superuser, &[sql]).unwrap();
    check_rights(&ask, &["usage_events_float -"]);
}

/// Of all tables, and of the views, which are these.
pub(super) fn check_rights(ask: &dyn Fn(&str) -> String, views: &[&str]) {
    let lines = |text: String| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let of_tenants = "SELECT relname FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid \
                      WHERE attname = 'tenant_id' AND relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace";
    let open = ask(&format!("{of_tenants} AND NOT (relrowsecurity AND relforcerowsecurity)"));
    // Raw usage, which the application does not reach.
    assert_eq!(open.trim(), "usage_events", "without forced row-level security");
    let tables = lines(ask(of_tenants));
    assert!(tables.len() > 3 && tables.contains("events"), "{tables:?}");

    // Every other table, and what the application may do there.
    let others = format!(
        "SELECT relname || ' ' || coalesce((SELECT string_agg(privilege_type, ',' ORDER BY privilege_type) \
         FROM aclexplode(relacl) JOIN pg_roles ON pg_roles.oid = grantee WHERE rolname = 'outrigger_app'), '-') \
         FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace AND relname NOT IN ({of_tenants})"
    );
    let expected = [
        "_sqlx_migrations SELECT",
        "event_relays -",
        "event_subscriptions SELECT",
        "event_topic_limits SELECT",
        "leases INSERT,SELECT",
        "outrigger_store SELECT",
        "usage_dedupe -",
        "usage_tags -",
    ];
    assert_eq!(lines(ask(&others)), expected.map(str::to_owned).into());

    // A view reads with the rights of its owner.
    let of_views = "SELECT relname || ' ' || coalesce((SELECT string_agg(privilege_type, ',') FROM aclexplode(relacl) \
                    LEFT JOIN pg_roles ON pg_roles.oid = grantee WHERE rolname IN ('outrigger_app', 'outrigger_relay') OR grantee = 0), '-') \
                    FROM pg_class WHERE relkind IN ('v', 'm') AND relnamespace = 'public'::regnamespace";
    assert_eq!(lines(ask(of_views)), views.iter().map(|&view| view.to_owned()).collect());

    let owned = "SELECT count(*) FROM pg_shdepend JOIN pg_roles ON refobjid = pg_roles.oid \
                 WHERE deptype = 'o' AND rolname = 'outrigger_app'";
    assert_eq!(ask(owned).trim(), "0");
    let above = "SELECT rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb FROM pg_roles WHERE rolname = 'outrigger_app'";
    assert_eq!(ask(above).trim(), "f");
    // Partitions are reached through their table alone.
    let direct = "SELECT count(*) FROM pg_class, aclexplode(relacl) JOIN pg_roles ON pg_roles.oid = grantee \
                  WHERE relispartition AND rolname = 'outrigger_app'";
    assert_eq!(ask(direct).trim(), "0");
}

#[tokio::test]
async fn the_application_locks_no_table_begins_no_subscription_elsewhere_and_keeps_no_lease_for_good() {
    let bench = bench(1).await;
    let app = |sql: &str| bench.database.psql(PostgresRole::App, &[sql]);
    let tables = "SELECT relname FROM pg_class WHERE relkind = 'p' AND relnamespace = 'public'::regnamespace \
                  UNION SELECT 'leases' UNION SELECT 'event_groups' UNION SELECT 'event_subscriptions' UNION SELECT 'outrigger_store'";
    let tables = bench.database.psql(PostgresRole::Superuser, &[tables]).unwrap();
    assert!(tables.lines().count() >= 6, "{tables}");
    for table in tables.lines() {
        let locked = app(&format!("BEGIN; LOCK TABLE {table} IN SHARE MODE; COMMIT"));
        assert!(locked.unwrap_err().to_string().contains("permission denied"), "{table}");
    }
    let event = "INSERT INTO events (id, accepted_at, tenant_id, topic, lane, key, type, attributes, form) VALUES \
                 (nextval('events_id_seq'), date_trunc('day', now()) - interval '1 h', gen_random_uuid(), 't', 0, 'k', 'x', '', 0)";
    bench.database.psql(PostgresRole::Superuser, &[event]).unwrap();
    let elsewhere = [
        "SELECT outrigger_begin_subscription('early', 0)",
        "SELECT outrigger_begin_subscription('late', 1000)",
        "INSERT INTO event_subscriptions (name, position) VALUES ('early', 0)",
        "UPDATE event_subscriptions SET position = 0",
    ];
    for refused in elsewhere {
        assert!(app(refused).is_err(), "{refused}");
    }
    let begun = |name: &str, here: &str| {
        app(&format!("SELECT outrigger_begin_subscription('{name}', {here})"))
            .map(|text| text.trim().to_owned())
    };
    let last = app("SELECT last_value FROM events_id_seq").unwrap().trim().to_owned();
    assert_eq!(begun("now", &last).unwrap(), last);
    assert_eq!(begun("now", "0").unwrap(), last, "begun once");
    app("INSERT INTO leases VALUES ('l', NULL, 1, now() + interval '1 min')").unwrap();
    for refused in [
        "UPDATE leases SET until = now() + interval '100 years'",
        "UPDATE leases SET epoch = 9223372036854775807",
        "UPDATE leases SET epoch = 0",
        "INSERT INTO leases VALUES ('m', NULL, 1, now() + interval '11 min')",
        "INSERT INTO leases VALUES ('m', NULL, 2, now())",
        "INSERT INTO leases VALUES ('relay/shard/0', NULL, 1, now())",
        "DELETE FROM leases",
    ] {
        assert!(app(refused).is_err(), "{refused}");
    }
    app("UPDATE leases SET epoch = epoch + 1, until = now() + interval '9 min'").unwrap();
}

#[tokio::test]
async fn a_database_that_any_role_may_connect_to_is_closed_by_migrate_and_check_says_so_before() {
    let bench = bench(1).await;
    let name = bench.database.name();
    let open = |role| bench.database.psql(role, &[&format!("GRANT CONNECT ON DATABASE {name} TO PUBLIC")]);
    let closed =
        |warnings: &[String]| !warnings.iter().any(|text| text.contains("REVOKE CONNECT ON DATABASE"));
    assert!(closed(&inspect(&bench.config).await.unwrap().warnings));
    open(PostgresRole::Owner).unwrap();
    let found = inspect(&bench.config).await.unwrap();
    assert!(!closed(&found.warnings) && found.problem.is_none(), "{found:?}");
    migrate(&bench.config, &Settings::default(), Epoch::Same, false).await.unwrap();
    assert!(closed(&inspect(&bench.config).await.unwrap().warnings));
    // The owner of the tables is not always the one of the database: then check says what to run.
    bench
        .database
        .psql(
            PostgresRole::Superuser,
            &[
                &format!("ALTER DATABASE {name} OWNER TO postgres"),
                "GRANT ALL ON SCHEMA public TO outrigger_owner",
            ],
        )
        .unwrap();
    open(PostgresRole::Superuser).unwrap();
    migrate(&bench.config, &Settings::default(), Epoch::Same, false).await.unwrap();
    let warnings = inspect(&bench.config).await.unwrap().warnings;
    let advice = warnings.iter().find(|text| text.contains("GRANT CONNECT")).unwrap();
    let statements = advice.rsplit_once("of the database: ").unwrap().1;
    bench.database.psql(PostgresRole::Superuser, &[statements]).unwrap();
    assert!(closed(&inspect(&bench.config).await.unwrap().warnings));
}

const EVENT: &str = "INSERT INTO events (id, accepted_at, tenant_id, topic, lane, key, type, attributes, form) \
                     SELECT nextval('events_id_seq'), now(), tenant, 't', 0, 'k', 'made', '{}', 0 FROM unnest($1::uuid[]) tenant";

#[tokio::test]
async fn a_batch_writes_for_its_tenants_alone_and_reads_nothing() {
    let bench = bench(1).await;
    let tenants: Vec<Uuid> = (1..=3).map(Uuid::from_u128).collect();
    let (both, own) = (tenants[..2].to_vec(), Tenants::One(tenants[0]));
    let insert = |tenants: Tenants, rows: Vec<Uuid>| {
        bench.postgres.run_for(tenants, move |tx| {
            let rows = rows.clone();
            async move { tx.query(EVENT, &[(&rows, Type::UUID_ARRAY)]).await.map(drop) }.boxed()
        })
    };
    insert(Tenants::Batch(both.clone()), both.clone()).await.unwrap();
    for refused in [
        insert(Tenants::Batch(both.clone()), tenants.clone()).await,
        insert(Tenants::One(tenants[0]), both.clone()).await,
        insert(Tenants::None, both.clone()).await,
    ] {
        assert_eq!(refused.unwrap_err().failure(), Failure::Refused);
    }
    let seen = |who: Tenants| {
        bench.postgres.run_for(who, |tx| {
            async move {
                let rows = tx.query("SELECT tenant_id FROM events", &[]).await?;
                Ok::<Vec<Uuid>, PgError>(rows.iter().map(|row| row.get(0)).collect())
            }
            .boxed()
        })
    };
    assert_eq!(seen(own).await.unwrap(), [tenants[0]]);
    assert_eq!(seen(Tenants::Batch(both)).await.unwrap().len(), 0);
    assert_eq!(seen(NOBODY).await.unwrap().len(), 0);
    for table in ["events", "event_dedupe", "event_groups"] {
        let none =
            bench.database.psql(PostgresRole::App, &[&format!("SELECT count(*) FROM {table}")]).unwrap();
        assert_eq!(none.trim(), "0", "{table}: whoever names no tenant sees no rows");
    }
}
