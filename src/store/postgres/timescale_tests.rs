//! What a migration makes of a database with TimescaleDB. No pool is open: the server has one session at a time.

use rig::{PostgresRole, TimescaleServer};

use super::bench;
use super::migrate::{Epoch, Migrated, Settings, Timescale, migrate};
use super::schema_tests::check_rights;

const KIND: &str = "SELECT relkind FROM pg_class WHERE oid = 'usage_events'::regclass";
const POLICIES: &str = "SELECT proc_name, config - 'hypertable_id' - 'mat_hypertable_id', schedule_interval \
                        FROM timescaledb_information.jobs WHERE owner::text = 'outrigger_owner' ORDER BY 1";

async fn migrated(server: &TimescaleServer) -> Migrated {
    let (config, _secrets) = bench::config(&[server.address()], server.database(), None);
    migrate(&config, &Settings::default(), Epoch::Same, false).await.unwrap()
}

#[tokio::test]
async fn with_timescaledb_raw_usage_is_a_hypertable_with_its_policies_and_rights_are_what_they_are_without() {
    let server = TimescaleServer::start().unwrap();
    let ask = |sql: &str| server.psql(PostgresRole::Superuser, &[sql]).unwrap();
    let first = migrated(&server).await;
    assert!(first.steps.len() > 2, "{first:?}");
    let found = first.timescale.unwrap();
    assert!(found.is_used && found.version.starts_with("2."), "{found:?}");
    let policies = ask(POLICIES);
    let expected = [
        r#"policy_compression|{"compress_after": "91 days"}|12:00:00"#,
        r#"policy_refresh_continuous_aggregate|{"end_offset": "01:00:00", "start_offset": "95 days"}|06:00:00"#,
    ];
    assert_eq!(policies.lines().collect::<Vec<_>>(), expected);
    check_rights(&ask, &["daily_usage -", "usage_events_float -"]);
    // What an operator changed of a policy stays.
    ask(
        "SELECT alter_job(job_id, scheduled => false) FROM timescaledb_information.jobs WHERE proc_name = 'policy_compression'",
    );
    assert_eq!(migrated(&server).await.steps, [""; 0]);
    let scheduled =
        "SELECT scheduled FROM timescaledb_information.jobs WHERE proc_name = 'policy_compression'";
    assert_eq!(ask(scheduled).trim(), "f");
    assert_eq!(ask(POLICIES), policies);
}

#[tokio::test]
async fn where_the_extension_comes_later_raw_usage_stays_in_partitions_and_migrate_says_so() {
    let server = TimescaleServer::start().unwrap();
    let ask = |sql: &str| server.psql(PostgresRole::Superuser, &[sql]).unwrap();
    ask("DROP EXTENSION timescaledb");
    assert_eq!(migrated(&server).await.timescale, None);
    assert_eq!(ask(KIND).trim(), "p");
    ask("CREATE EXTENSION timescaledb");
    let again = migrated(&server).await;
    assert_eq!(again.steps, [""; 0]);
    assert!(matches!(again.timescale, Some(Timescale { is_used: false, .. })), "{again:?}");
    assert_eq!(ask(KIND).trim(), "p");
    check_rights(&ask, &["usage_events_float -"]);
    let kept = "SELECT made || ' ' || dropped || ' ' || kept FROM outrigger_keep_usage_partitions()";
    assert_eq!(ask(kept).trim(), "3 0 0");
    let days = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'usage_events'::regclass";
    assert_eq!(ask(days).trim(), "3");
}
