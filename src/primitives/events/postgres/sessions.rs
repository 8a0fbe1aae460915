//! The order of steps that readers rely on, held by scripts of three sessions: random load does not find two steps that
//! were swapped. Every script is run with the steps swapped too, and one of them must then lose an event.

use std::sync::Arc;

use rig::{PostgresCluster, PostgresOptions, PostgresRole};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::append::FLOOR;
use super::head::{STEPS, of_steps};
use crate::config::SecretSource;
use crate::policy::Permit;
use crate::primitives::events::bench::{Callers, event};
use crate::primitives::events::{Audience, Batch, Position, ReadFrom, Scan, append, page, place};
use crate::store::bench::Stores;
use crate::store::postgres::bench::bench_at;
use crate::store::postgres::{ConnectAs, Postgres, PostgresMetrics};
use crate::store::{Store, StoreError, Tx};
use crate::telemetry::{HealthBoard, Registry};

const TENANT: u128 = 1;
const DRAW: &str = "INSERT INTO events (id, accepted_at, tenant_id, topic, lane, key, type, attributes, form, data) \
                    VALUES (nextval('events_id_seq'), now(), $1, 'leads', 0, 'k', 'made', '{}', 2, 'slow') RETURNING id";
const ROWS: &str = "SELECT id FROM events WHERE id > 0 AND tenant_id = $1 ORDER BY id";

/// A reader's steps, in the order in which they are right.
const SEQUENCE: usize = 0;
const FLOORS: usize = 1;
const READ: usize = 2;
const RIGHT: [usize; 3] = [SEQUENCE, FLOORS, READ];

type Asked = (&'static str, oneshot::Sender<Vec<Row>>);

/// A transaction that does what the script says, when it says so, and commits at the end.
struct Session {
    asks: mpsc::Sender<Asked>,
    ends: JoinHandle<()>,
}

impl Session {
    #[allow(clippy::disallowed_methods, reason = "a session of the script, which waits for it")]
    fn begin(store: &Store, permit: &Permit) -> Self {
        let (asks, asked) = mpsc::channel::<Asked>(1);
        let (store, permit, asked) = (store.clone(), permit.clone(), Arc::new(Mutex::new(asked)));
        let ends = tokio::spawn(async move {
            let done: Result<(), StoreError> = store
                .run(&permit, 0, move |tx| {
                    let asked = Arc::clone(&asked);
                    Box::pin(async move {
                        let Tx::Postgres(tx) = tx else { panic!("a session of PostgreSQL") };
                        let tenant = Uuid::from_u128(TENANT);
                        while let Some((statement, answer)) = asked.lock().await.recv().await {
                            let own = [(&tenant as _, Type::UUID)];
                            let parameters = if statement.contains("$1") { &own[..] } else { &[] };
                            answer.send(tx.query(statement, parameters).await?).unwrap();
                        }
                        Ok(())
                    })
                })
                .await;
            done.unwrap();
        });
        Self { asks, ends }
    }

    async fn query(&self, statement: &'static str) -> Vec<Row> {
        let (answer, answered) = oneshot::channel();
        self.asks.send((statement, answer)).await.unwrap();
        answered.await.unwrap()
    }

    async fn commit(self) {
        drop(self.asks);
        self.ends.await.unwrap();
    }
}

/// A writer that is slow, and its two steps in this order.
struct Writer {
    session: Session,
    steps: [&'static str; 2],
    id: i64,
}

impl Writer {
    async fn step(&mut self, at: usize) {
        let rows = self.session.query(self.steps[at]).await;
        if self.steps[at] == DRAW {
            self.id = rows[0].get(0);
        }
    }
}

/// A reader, and its three steps in this order.
struct Reader {
    session: Session,
    order: [usize; 3],
    found: [Vec<Row>; 3],
}

impl Reader {
    async fn step(&mut self, at: usize) {
        let step = self.order[at];
        let statement = [STEPS[0].0, STEPS[1].0, ROWS][step];
        self.found[step] = self.session.query(statement).await;
    }

    /// The ids that it delivers.
    async fn end(self) -> Vec<i64> {
        self.session.commit().await;
        let [sequence, floors, rows] = self.found;
        let limit = of_steps(&[sequence, floors]).unwrap().number();
        rows.iter().map(|row| row.get(0)).filter(|id| *id <= limit).collect()
    }
}

struct Bench {
    store: Store,
    _stores: Option<Stores>,
    callers: Callers,
    permit: Permit,
    reader: Audience,
}

impl Bench {
    async fn new() -> Self {
        let stores = Stores::new(4).await;
        Self::on(stores.postgres.clone(), Some(stores)).await
    }

    async fn on(store: Store, stores: Option<Stores>) -> Self {
        let callers = Callers::new("  leads: {}\n");
        let permit = callers.publisher(TENANT, "leads").await;
        let reader = callers.reader(TENANT, "leads").await;
        Self { store, _stores: stores, callers, permit, reader }
    }

    /// A writer that is quick, and done.
    async fn publish(&self) {
        assert!(self.tries_to_publish().await);
    }

    async fn tries_to_publish(&self) -> bool {
        let id = Uuid::new_v4().to_string();
        let batch: Arc<Batch> = Arc::new(self.callers.batch(TENANT, "leads", vec![event(&id, "k")]).await);
        let done: Result<_, StoreError> = self
            .store
            .run(&self.permit, 0, move |tx| {
                let batch = Arc::clone(&batch);
                Box::pin(async move { append(tx, &batch).await })
            })
            .await;
        done.is_ok_and(|appended| appended.accepted == 1)
    }

    /// Whether the slow writer's event is read neither by the reader nor by one that goes on from its last event.
    async fn loses(&self, script: usize, order: [usize; 3], steps: [&'static str; 2]) -> bool {
        let begin = || Session::begin(&self.store, &self.permit);
        let mut writer = Writer { session: begin(), steps, id: 0 };
        let mut reader = Reader { session: begin(), order, found: Default::default() };
        match script {
            // A writer begins, and another ends, after the reader's first step.
            0 => {
                reader.step(0).await;
                writer.step(0).await;
                writer.step(1).await;
                self.publish().await;
                reader.step(1).await;
                reader.step(2).await;
                writer.session.commit().await;
            }
            // A writer ends before the reader's last step.
            1 => {
                writer.step(0).await;
                writer.step(1).await;
                self.publish().await;
                reader.step(0).await;
                reader.step(1).await;
                writer.session.commit().await;
                reader.step(2).await;
            }
            // A reader comes between the writer's two steps, another writer before it.
            _ => {
                writer.step(0).await;
                self.publish().await;
                for at in 0..3 {
                    reader.step(at).await;
                }
                writer.step(1).await;
                writer.session.commit().await;
            }
        }
        let read = reader.end().await;
        let cursor = read.iter().copied().max().unwrap_or(0);
        !read.contains(&writer.id) && writer.id <= cursor
    }

    /// Which of the scripts lose an event.
    async fn losing(&self, order: [usize; 3], steps: [&'static str; 2]) -> Vec<usize> {
        let mut losing = Vec::new();
        for script in 0..3 {
            if self.loses(script, order, steps).await {
                losing.push(script);
            }
        }
        losing
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_is_lost_by_the_order_of_steps_and_each_swap_of_two_loses_one() {
    let bench = Bench::new().await;
    assert_eq!(bench.losing(RIGHT, [FLOOR, DRAW]).await, [0; 0]);
    // The floors before the sequence; the rows before the floors, or before both; the writer's floor after it drew.
    assert_eq!(bench.losing([FLOORS, SEQUENCE, READ], [FLOOR, DRAW]).await, [0]);
    assert_eq!(bench.losing([SEQUENCE, READ, FLOORS], [FLOOR, DRAW]).await, [1]);
    assert_eq!(bench.losing([READ, SEQUENCE, FLOORS], [FLOOR, DRAW]).await, [1]);
    assert_eq!(bench.losing(RIGHT, [DRAW, FLOOR]).await, [2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_makes_and_drops_partitions_holds_nobody_s_reading_up() {
    let bench = Bench::new().await;
    bench.publish().await;
    let store = &bench.store;
    let place = || place(store, &bench.reader, ReadFrom::Latest);
    let before = place().await.unwrap();
    // What `outrigger_keep_partitions` holds until its transaction ends.
    let keeper = Session::begin(store, &bench.permit);
    keeper.query("SELECT pg_advisory_xact_lock(1869968498, 0)").await;
    assert_eq!(place().await.unwrap(), before, "`latest` is where it was");
    bench.publish().await;
    let scan = Scan { after: before, ..Scan::new(&bench.reader) };
    assert_eq!(page(store, &bench.reader, &scan).await.unwrap().events.len(), 1);
    keeper.commit().await;
}

/// Who may connect may take any advisory lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_floor_of_a_role_that_may_not_insert_holds_nobody_s_reading_up() {
    let bench = Bench::new().await;
    let database = &bench._stores.as_ref().unwrap()._database;
    let name = format!("stranger_of_{}", database.database.name());
    let superuser =
        |statements: &[&str]| database.database.psql(PostgresRole::Superuser, statements).unwrap();
    superuser(&[
        &format!("CREATE ROLE {name} LOGIN PASSWORD 'strange'"),
        &format!("GRANT CONNECT ON DATABASE {} TO {name}", database.database.name()),
        &format!("GRANT SELECT ON _sqlx_migrations, outrigger_store TO {name}"),
    ]);
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("password"), "strange").unwrap();
    let mut config = database.config.clone();
    let password = SecretSource::File(directory.path().join("password"));
    config.app = crate::config::PostgresRole { user: name.clone(), password };
    let metrics = PostgresMetrics::new(&Registry::default()).unwrap();
    let health = HealthBoard::default().add("postgres", false);
    let role = ConnectAs::App(&config.app);
    let stranger = Postgres::start(&config, &role, health, &metrics, &database.tasks).unwrap();

    let stranger = Session::begin(&Store::Postgres(stranger), &bench.permit);
    stranger.query("SELECT pg_advisory_xact_lock_shared(1869968498, 0)").await;
    bench.publish().await;
    let read =
        || async { page(&bench.store, &bench.reader, &Scan::new(&bench.reader)).await.unwrap().events.len() };
    assert_eq!(read().await, 1, "the stranger's lock is no floor");
    // A writer's is.
    let writer = Session::begin(&bench.store, &bench.permit);
    writer.query(FLOOR).await;
    bench.publish().await;
    assert_eq!(read().await, 1);
    writer.commit().await;
    assert_eq!(read().await, 2);
    stranger.commit().await;
    superuser(&[&format!("DROP OWNED BY {name}")]);
}

/// A number that was drawn and not used may be unknown to the standby: there the sequence gives it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_nobody_goes_on_above_numbers_that_a_promoted_standby_gives_again() {
    // A transaction that is rolled back waits for no one, and what it logged stays in memory for so long.
    let settings = vec![("wal_writer_delay".to_owned(), "10s".to_owned())];
    let options = PostgresOptions { settings, ..PostgresOptions::default() };
    let cluster = tokio::task::block_in_place(|| PostgresCluster::start(options)).unwrap();
    let servers = [cluster.access().address(0), cluster.access().address(1)];
    let database = cluster.database().unwrap();
    let database = bench_at(&servers, &servers, cluster.access(), database, 4).await;
    let last = || {
        let last = database.database.psql(PostgresRole::Superuser, &["SELECT last_value FROM events_id_seq"]);
        last.unwrap().trim().parse::<i64>().unwrap()
    };
    let bench = Bench::on(Store::Postgres(Arc::clone(&database.postgres)), None).await;
    bench.publish().await;
    let draws = "BEGIN; SELECT count(nextval('events_id_seq')) FROM generate_series(1, 1000); ROLLBACK";
    database.database.psql(PostgresRole::Superuser, &[draws]).unwrap();
    let drawn = last();
    let (postgres, reader) = (&bench.store, &bench.reader);
    let mut goes_on = Vec::new();
    for kinds in [vec![], vec!["made".to_owned()], vec!["made".to_owned(), "other".to_owned()]] {
        let scan = Scan { kinds, ..Scan::new(reader) };
        let page = page(postgres, reader, &scan).await.unwrap();
        goes_on.push(Scan { after: page.next, ..scan });
    }
    let far = ReadFrom::Time(253_402_300_799_000);
    for from in [ReadFrom::Latest, far] {
        goes_on.push(Scan { after: place(postgres, reader, from).await.unwrap(), ..Scan::new(reader) });
    }
    let above = Scan { after: Position::new(drawn), ..Scan::new(reader) };
    tokio::task::block_in_place(|| cluster.kill(0).and_then(|()| cluster.promote())).unwrap();
    assert!(last() < drawn, "the sequence did not go back: this shows nothing");
    while !bench.tries_to_publish().await {}
    let missed = page(postgres, reader, &above).await.unwrap().events;
    assert!(
        missed.is_empty(),
        "who goes on from the sequence's last value misses nothing: this shows nothing"
    );
    for scan in goes_on {
        let found = page(postgres, reader, &scan).await.unwrap().events;
        assert_eq!(
            found.len(),
            1,
            "after {:?}, of {:?}: what came after the promotion is missed",
            scan.after,
            scan.kinds
        );
    }
}
