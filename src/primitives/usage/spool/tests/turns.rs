//! Turns between tenants, and order within each.

use super::*;

/// Records of both stores that a tenant has, and how many of them were written after another tenant's only one.
async fn written_after(stores: &Stores, name: &str) -> (i64, i64) {
    match &stores.sqlite {
        Store::Sqlite(sqlite) if name == "sqlite" => sqlite
            .read(|connection| {
                let counts = "SELECT count(*), count(*) FILTER (WHERE rowid > (SELECT rowid FROM usage_events WHERE tenant = ?2)) \
                              FROM usage_events WHERE tenant = ?1";
                connection.query_row(counts, (A.as_bytes(), B.as_bytes()), |row| Ok((row.get(0)?, row.get(1)?)))
            })
            .await
            .unwrap(),
        _ => {
            let counts = format!(
                "SELECT count(*) || ' ' || count(*) FILTER (WHERE xmin::text::bigint > \
                     (SELECT xmin::text::bigint FROM usage_events WHERE tenant_id = '{B}')) FROM usage_events WHERE tenant_id = '{A}'"
            );
            let said = stores.psql(name, PostgresRole::Superuser, &[&counts]).unwrap();
            let (all, after) = said.trim().split_once(' ').unwrap();
            (all.parse().unwrap(), after.parse().unwrap())
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_behind_another_s_many_calls_is_counted_long_before_they_are() {
    const CALLS: usize = 3000;
    let stores = Stores::new(4).await;
    for (name, store) in stores.both() {
        let directory = tempfile::tempdir().unwrap();
        // Three segments of one tenant's, and behind them one call of another's.
        let note = "x".repeat(4000);
        let padded = |key: &str, value: &str| {
            let record = json!({"metric": "calls", "value": value, "time": hour().to_string(), "idempotency_key": key,
                                "tags": {"a": note[..200], "b": note[..200]}, "metadata": {"note": note}});
            entry_with(A, &json!({ "records": [record] }))
        };
        let mut entries: Vec<_> = (0..CALLS).map(|number| padded(&format!("k{number}"), "1")).collect();
        entries.push(padded("k0", "7"));
        entries.push(entry_of(B, &[("k", "5")], hour()));
        let running = Running::on(store, directory.path());
        // Read while it is appended to, and then from the beginning.
        for entry in entries.drain(..100) {
            running.accept(entry).await;
        }
        running.stop().await;
        append(directory.path(), entries).await;
        assert!(segments(directory.path()).len() > 1, "{name}");
        count_all(store, directory.path()).await;
        let all = i64::try_from(CALLS).unwrap();
        let (counted, after) = written_after(&stores, name).await;
        assert_eq!(counted, all, "{name}");
        assert!(after >= all - 100 - 256, "{name}: {after} of {all} were counted after the other tenant's");
        assert_eq!(seen(store, A).await, (all.to_string(), vec!["k0=7".to_owned()]), "{name}: in order");
        assert_eq!(seen(store, B).await.0, "5", "{name}");
    }
}

/// Whatever PostgreSQL says of one tenant's records, the others' are counted, and who waits for its own waits for nobody else's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_whose_calls_are_not_taken_keeps_nobody_else_waiting() {
    let stores = Stores::new(4).await;
    let store = &stores.postgres;
    for (number, code) in
        ["raise_exception", "query_canceled", "insufficient_privilege"].into_iter().enumerate()
    {
        let directory = tempfile::tempdir().unwrap();
        refused::refuse(&stores, A, code);
        let running = Running::on(store, directory.path());
        for call in 0..50 {
            running.accept(entry_of(A, &[(&format!("{code} {call}"), "1")], hour())).await;
            running.accept(entry_of(B, &[(&format!("{code} {call}"), "1")], hour())).await;
        }
        running.spooler.until_counted(B).await;
        let counted = (50 * number).to_string();
        assert_eq!(seen(store, A).await.0, counted, "{code}");
        assert_eq!(seen(store, B).await.0, (50 * (number + 1)).to_string(), "{code}");
        running.until_metric("outrigger_usage_spool_tenants_held_count 1").await;
        refused::refuse_no_more(&stores);
        running.spooler.until_counted(A).await;
        assert_eq!(seen(store, A).await.0, (50 * (number + 1)).to_string(), "{code}");
        running.until_metric("outrigger_usage_spool_tenants_held_count 0").await;
        assert_eq!(running.spooler.spool.aside().unwrap(), []);
        running.stop().await;
        assert_eq!(segments(directory.path()), [""; 0].map(PathBuf::from));
    }
}

/// Segments go as they are done with, whatever is before them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_not_taken_keeps_its_own_segment_and_no_other() {
    let stores = Stores::new(4).await;
    let store = &stores.postgres;
    let directory = tempfile::tempdir().unwrap();
    refused::refuse(&stores, A, "raise_exception");
    append(directory.path(), vec![entry_of(A, &[("k", "1")], hour())]).await;
    append(directory.path(), vec![entry_of(B, &[("k1", "1")], hour())]).await;
    let running = Running::on(store, directory.path());
    running.until_metric("outrigger_usage_spool_tenants_held_count 1").await;
    running.accept(entry_of(B, &[("k2", "1")], hour())).await;
    running.spooler.until_counted(B).await;
    running.stop().await;
    assert_eq!((segments(directory.path()).len(), seen(store, B).await.0), (1, "2".to_owned()));
    refused::refuse_no_more(&stores);
    count_all(store, directory.path()).await;
    assert_eq!(seen(store, A).await.0, "1");
}
