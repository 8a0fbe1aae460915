//! What a tenant has of the threads and of the file, and what it leaves to the others.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use parking_lot::Mutex as Lock;
use tokio::task::JoinSet;

use super::queue::{MAX_JOBS, OF_TENANT};
use super::*;

const A: Uuid = Uuid::from_u128(1);
const B: Uuid = Uuid::from_u128(2);
const C: Uuid = Uuid::from_u128(3);
const SCHEMA: &[Migrations] = &[(
    "test",
    &["CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB) STRICT; \
       CREATE TABLE tenant_bytes (tenant BLOB PRIMARY KEY, bytes INTEGER NOT NULL) STRICT, WITHOUT ROWID"],
)];
const PART: u64 = 10_000_000;

fn open(directory: &Path) -> Arc<Sqlite> {
    let bound = Bound { max_bytes: 2 * PART, tenant: None }.with_tenant_percent(50);
    Sqlite::open(&directory.join("t.db"), Durability::Full, bound, SCHEMA).unwrap()
}

type Ended = Result<(), SqliteError>;

/// Writes a row, and notes it.
#[allow(clippy::cast_possible_wrap, reason = "a few hundred at the most")]
async fn write(
    store: &Sqlite,
    owner: Uuid,
    is_promised: bool,
    k: usize,
    order: Arc<Lock<Vec<usize>>>,
) -> Ended {
    let work = move |mut tx: SqliteTx<'_>| {
        order.lock().push(k);
        tx.run(|c| c.execute("INSERT INTO t VALUES (?1, NULL)", [k as i64]).map(drop))
    };
    store.transact(Some(owner), (Adds::Nothing, is_promised), work).await
}

/// Holds the writer until the sender is dropped; returns once it is held.
async fn hold(store: &Arc<Sqlite>) -> (std::sync::mpsc::SyncSender<()>, JoinSet<()>) {
    let (release, held) = std::sync::mpsc::sync_channel::<()>(0);
    let (says, said) = oneshot::channel();
    let store = Arc::clone(store);
    let mut holder = JoinSet::new();
    holder.spawn(async move {
        let holding = store.write(move |_| {
            says.send(()).unwrap();
            held.recv().unwrap_err();
            Ok(())
        });
        holding.await.unwrap();
    });
    said.await.unwrap();
    (release, holder)
}

/// Spawns what waits, in this order.
async fn queue(set: &mut JoinSet<Ended>, job: impl Future<Output = Ended> + Send + 'static) {
    let (says, said) = oneshot::channel();
    set.spawn(async move {
        let mut job = std::pin::pin!(job);
        let first = futures_util::poll!(&mut job);
        says.send(()).unwrap();
        match first {
            std::task::Poll::Ready(ended) => ended,
            std::task::Poll::Pending => job.await,
        }
    });
    said.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_goes_before_the_second_of_another_tenant_s_and_who_left_is_passed_over_unless_promised() {
    let directory = tempfile::tempdir().unwrap();
    let (store, order) = (open(directory.path()), Arc::new(Lock::new(Vec::new())));
    let (held, holder) = hold(&store).await;
    let job = |owner: Uuid, is_promised: bool, k: usize| {
        let (store, order) = (Arc::clone(&store), Arc::clone(&order));
        async move { write(&store, owner, is_promised, k, order).await }
    };
    let (mut left, mut stay) = (JoinSet::new(), JoinSet::new());
    for k in 0..100 {
        queue(&mut left, job(A, false, k)).await;
    }
    queue(&mut left, job(A, true, 100)).await;
    for k in 101..200 {
        queue(&mut stay, job(A, false, k)).await;
    }
    queue(&mut stay, job(B, false, 200)).await;
    left.shutdown().await;
    drop(held);
    holder.join_all().await;
    assert!(stay.join_all().await.iter().all(Result::is_ok));
    let order = order.lock().clone();
    assert_eq!(order[..3], [100, 200, 101], "A's promised one, B's, A's next: {order:?}");
    assert_eq!(order.len(), 101);
    let rows = store.read(|c| c.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0))).await;
    assert_eq!(rows.unwrap(), 101);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_has_a_part_of_what_waits() {
    let directory = tempfile::tempdir().unwrap();
    let (store, order) = (open(directory.path()), Arc::new(Lock::new(Vec::new())));
    let (held, holder) = hold(&store).await;
    let job = |owner: Uuid, k: usize| {
        let (store, order) = (Arc::clone(&store), Arc::clone(&order));
        async move { write(&store, owner, false, k, order).await }
    };
    let mut stay = JoinSet::new();
    for k in 0..OF_TENANT.alone() as usize {
        queue(&mut stay, job(A, k)).await;
    }
    let refused = job(A, MAX_JOBS).await.unwrap_err();
    assert!(matches!(refused, SqliteError::ShareTaken), "{refused:?}");
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    queue(&mut stay, job(B, MAX_JOBS + 1)).await;
    drop(held);
    holder.join_all().await;
    let ended = stay.join_all().await;
    assert!(ended.len() == OF_TENANT.alone() as usize + 1 && ended.iter().all(Result::is_ok));
    job(A, MAX_JOBS).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_whose_callers_left_are_not_run_and_another_tenant_s_comes_soon() {
    let directory = tempfile::tempdir().unwrap();
    let (store, ran) = (open(directory.path()), Arc::new(AtomicUsize::new(0)));
    let slow = |owner: Uuid| {
        let (store, ran) = (Arc::clone(&store), Arc::clone(&ran));
        let work = move |_: SqliteTx<'_>| {
            ran.fetch_add(1, SeqCst);
            let until = Instant::now() + Duration::from_millis(20);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            Ok::<_, SqliteError>(())
        };
        async move { store.look(Some(owner), work).await }
    };
    let mut left = JoinSet::new();
    for _ in 0..1000 {
        queue(&mut left, slow(A)).await;
    }
    let began = Instant::now();
    slow(B).await.unwrap();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(1), "behind 1,000 that wait: {took:?}");
    left.shutdown().await;
    let before = ran.load(SeqCst);
    slow(A).await.unwrap();
    assert!(ran.load(SeqCst) <= before + 3, "those that had begun, and this");
    assert!(before < 200, "{before}");
}

/// Adds an entry of so many bytes for a tenant, or takes one away.
async fn keep(store: &Sqlite, tenant: Uuid, adds: Adds, bytes: i64) -> Ended {
    let work = move |mut tx: SqliteTx<'_>| {
        tx.holds(tenant, bytes);
        tx.run(|c| c.execute("INSERT INTO t (v) VALUES (zeroblob(?1))", [bytes.max(0)]).map(drop))
    };
    store.transact(Some(tenant), (adds, false), work).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_has_a_part_of_the_file_as_it_was_committed_and_goes_on_with_its_state() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = open(directory.path());
    let full = |ended: Ended| matches!(ended, Err(SqliteError::Full(Full::Share)));
    for _ in 0..9 {
        keep(&store, A, Adds::Entry(1_000_000), 1_000_000).await.unwrap();
    }
    let fails = |mut tx: SqliteTx<'_>| {
        tx.holds(A, 1_000_000);
        tx.run(|c| c.execute("INSERT INTO missing VALUES (1)", []).map(drop))
    };
    store.transact(Some(A), (Adds::Nothing, false), fails).await.unwrap_err();
    keep(&store, A, Adds::Entry(1_000_000), 1_000_000).await.unwrap();
    for _ in 0..2 {
        assert!(
            full(keep(&store, A, Adds::Entry(1), 1).await),
            "what failed did not count, and this is too much"
        );
        keep(&store, A, Adds::State(3_000_000), 1000).await.unwrap();
        keep(&store, A, Adds::Nothing, 0).await.unwrap();
        store.close().await;
        store = open(directory.path());
    }
    assert!(full(keep(&store, A, Adds::State(5_000_000), 1).await), "its state has a bound too");
    assert!(store.full().borrow().is_none(), "it is nobody else's matter");
    for _ in 0..4 {
        keep(&store, B, Adds::Entry(1_000_000), 1_000_000).await.unwrap();
    }
    assert!(
        full(keep(&store, B, Adds::Entry(1_000_000), 1_000_000).await),
        "as much as is left, and not more"
    );
    keep(&store, B, Adds::Moved(900_000), 0).await.unwrap();
    for _ in 0..3 {
        keep(&store, C, Adds::Entry(900_000), 900_000).await.unwrap();
    }
    assert!(full(keep(&store, C, Adds::Entry(900_000), 900_000).await), "two have not left it nothing");
    assert!(full(keep(&store, B, Adds::Moved(900_000), 0).await), "a quarter is left to the others");
    keep(&store, C, Adds::Nothing, -2_700_000).await.unwrap();
    keep(&store, A, Adds::Nothing, -10_002_000).await.unwrap();
    let left = store
        .read(|c| {
            c.query_row("SELECT count(*), sum(bytes) FROM tenant_bytes", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
        })
        .await;
    assert_eq!(left.unwrap(), (1, 4_000_000), "nothing is kept of who holds nothing");
    keep(&store, A, Adds::Entry(1_000_000), 1).await.unwrap();
}

/// Entries do not get the room that was promised to others; what was promised does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_promised_keeps_its_room() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let write = async |owner, adds| -> Result<(), SqliteError> {
        store.transact(owner, (adds, true), |_| Ok(())).await
    };
    let full = |ended: Result<(), SqliteError>| match ended {
        Err(SqliteError::Full(full)) => Some(full),
        ended => ended.map(|()| None).unwrap(),
    };
    let nearly_all = 2 * PART - PART / 5;
    assert_eq!(full(write(None, Adds::Entry(PART / 2)).await), None);
    store.promise(nearly_all);
    assert_eq!(
        full(write(None, Adds::Promise(0)).await),
        Some(Full::Database),
        "with what an entry's pages take"
    );
    store.promise(nearly_all - PART / 5);
    assert_eq!(full(write(Some(A), Adds::Promise(PART / 3)).await), None);
    assert_eq!(
        full(write(Some(A), Adds::Promise(PART / 2)).await),
        Some(Full::Share),
        "beside what is promised to others"
    );
    assert_eq!(full(write(Some(A), Adds::Promise(PART + 1)).await), Some(Full::Share));
    assert_eq!(full(write(None, Adds::Entry(PART / 2)).await), Some(Full::Database));
    assert_eq!(full(write(None, Adds::Promised(PART / 2)).await), None);
    store.promise(0);
    assert_eq!(full(write(None, Adds::Entry(PART / 2)).await), None);
}
