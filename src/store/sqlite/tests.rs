use super::*;

const BOUND: Bound = Bound { max_bytes: 1 << 30, tenant: None };
const SCHEMA: &[Migrations] = &[("test", &["CREATE TABLE t (k INTEGER PRIMARY KEY, v TEXT) STRICT"])];

fn open(directory: &Path) -> Arc<Sqlite> {
    Sqlite::open(&directory.join("t.db"), Durability::Full, BOUND, SCHEMA).unwrap()
}

async fn count(store: &Sqlite) -> i64 {
    store.read(|c| c.query_row("SELECT count(*) FROM t", [], |row| row.get(0))).await.unwrap()
}

#[tokio::test]
async fn many_callers_are_all_written_and_survive_a_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let writes = (0..1000).map(|k| {
        let store = Arc::clone(&store);
        async move { store.write(move |c| c.execute("INSERT INTO t VALUES (?1, 'v')", [k])).await }
    });
    for written in futures_join(writes).await {
        assert_eq!(written.unwrap(), 1);
    }
    assert_eq!(count(&store).await, 1000);
    store.close().await;
    assert!(matches!(store.write(|_| Ok(())).await, Err(SqliteError::Gone)));
    assert_eq!(count(&open(directory.path())).await, 1000);
}

async fn futures_join<T: Send + 'static>(
    futures: impl Iterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let mut set = tokio::task::JoinSet::new();
    for future in futures {
        set.spawn(future);
    }
    set.join_all().await
}

#[tokio::test]
async fn a_caller_that_fails_or_panics_fails_alone() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let writes = (0..300).map(|k| {
        let store = Arc::clone(&store);
        async move {
            store
                .write(move |c| {
                    c.execute("INSERT INTO t VALUES (?1, 'v')", [k])?;
                    assert!(k % 100 != 7, "a job that panics");
                    if k % 10 == 3 { c.execute("INSERT INTO t VALUES (?1, 'again')", [k]) } else { Ok(1) }
                })
                .await
                .is_ok()
        }
    });
    let written = futures_join(writes).await.into_iter().filter(|ok| *ok).count();
    assert_eq!(written, 300 - 30 - 3);
    assert_eq!(count(&store).await, 267);
}

#[tokio::test]
async fn a_database_in_use_is_refused_until_it_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let path = directory.path().join("t.db");
    assert!(matches!(Sqlite::open(&path, Durability::Full, BOUND, SCHEMA), Err(OpenError::InUse)));
    store.close().await;
    assert!(Sqlite::open(&path, Durability::Full, BOUND, SCHEMA).is_ok());
}

#[tokio::test]
async fn a_reader_cannot_write() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    assert!(store.read(|c| c.execute("INSERT INTO t VALUES (1, 'v')", [])).await.is_err());
}

/// Fills pages until there are no more: SQLite answers some of these errors by rolling back everything.
#[tokio::test]
async fn what_is_said_to_be_written_is_and_what_is_not_is_not_when_the_disk_is_full() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let limit = |pages: i64| {
        store.write(move |c| {
            c.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |row| row.get::<_, i64>(0))
        })
    };
    limit(12).await.unwrap();
    let mut stored = 0;
    for round in 0..40 {
        let writes = (0..8).map(|at| {
            let (store, k) = (Arc::clone(&store), round * 8 + at);
            async move {
                let bytes = if at == 4 { 200_000 } else { 10 };
                let text = "x".repeat(bytes);
                (k, store.write(move |c| c.execute("INSERT INTO t VALUES (?1, ?2)", (k, text))).await)
            }
        });
        for (k, written) in futures_join(writes).await {
            let found = store
                .read(move |c| {
                    c.query_row("SELECT count(*) FROM t WHERE k = ?1", [k], |row| row.get::<_, i64>(0))
                })
                .await
                .unwrap();
            assert_eq!(found, i64::from(written.is_ok()), "{k}: {written:?}");
            assert!(k % 8 != 4 || written.is_err(), "{k} has no room");
            stored += usize::from(written.is_ok());
        }
    }
    assert!(stored >= 40 * 3, "those after the one that has no room are written: {stored}");
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.db");
    let newer: &[Migrations] =
        &[("test", &["CREATE TABLE t (k INTEGER) STRICT", "CREATE TABLE u (k INTEGER) STRICT"])];
    Sqlite::open(&path, Durability::Full, BOUND, newer).unwrap().close().await;
    let refused = Sqlite::open(&path, Durability::Full, BOUND, SCHEMA).err();
    assert!(matches!(refused, Some(OpenError::Newer { owner: "test", found: 2, known: 1 })), "{refused:?}");
    assert!(Sqlite::open(&path, Durability::Full, BOUND, newer).is_ok());
}

#[tokio::test]
async fn large_writes_of_one_caller_do_not_hold_up_a_small_one() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let began = std::time::Instant::now();
    let slow = (0..40).map(|_| {
        let store = Arc::clone(&store);
        async move {
            store
                .write(|_| {
                    let until = std::time::Instant::now() + std::time::Duration::from_millis(10);
                    while std::time::Instant::now() < until {
                        std::hint::spin_loop();
                    }
                    Ok(())
                })
                .await
                .unwrap();
            std::time::Instant::now()
        }
    });
    let ended = futures_join(slow).await;
    let first = ended.into_iter().min().unwrap() - began;
    assert!(first < std::time::Duration::from_millis(200), "the first waited {first:?}");
}
