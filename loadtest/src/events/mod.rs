//! Events on PostgreSQL: accepted, pulled and kept, beside the same work done directly.

mod cli;
mod consumer;
mod contender;
pub(crate) mod database;
pub(crate) mod http;
mod kafka;
mod kept;
mod ledger;
pub(crate) mod load;
pub(crate) mod message;
pub(crate) mod report;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use cli::Part;
pub(crate) use cli::{EventsArgs, OnPostgres};
use contender::{Caller, Target, Way};
use database::Database;
use kafka::Brokers;
use ledger::Ledger;
use load::{Processes, Turn, at_rate, saturate};
use report::{AcceptRow, AcceptTable, EventsReport, KafkaTable, KeptRow, Latency, PullRow};

use crate::contender::{Launch, Server};
use crate::progress::Progress;
use crate::rounds::order;
use crate::{Scratch, process};

/// Marks of the table in a document.
const MARK: &str = "loadtest events";
/// Callers that publish one event a call.
const SINGLE: (u64, u64) = (64, 1);
/// Callers that publish a batch.
const BATCHES: (u64, u64) = (16, 100);
/// Events that wait for a relay that starts.
const BACKLOG: u64 = 200_000;
/// How long consumers may take for what is left when the publishers have ended.
const CATCH_UP: Duration = Duration::from_secs(60);

/// An events table of the same shape without deduplication and row-level security, and the outbox that each
/// application has of its own.
const TABLES: &str = "
    CREATE SEQUENCE direct_events_id_seq;
    CREATE TABLE direct_events (LIKE events INCLUDING DEFAULTS);
    ALTER TABLE direct_events ADD PRIMARY KEY (id, accepted_at);
    CREATE INDEX ON direct_events (tenant_id, topic, id);
    CREATE TABLE outbox (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, accepted_at timestamptz NOT NULL DEFAULT now(),
        tenant_id uuid NOT NULL, topic text NOT NULL, key text NOT NULL, type text NOT NULL,
        event_id bigint NOT NULL, attributes bytea NOT NULL, data bytea)";

/// What every measurement needs.
struct Bench<'a> {
    arguments: &'a EventsArgs,
    folder: &'a Path,
    target: Target,
    outrigger: Server,
    before: Option<Server>,
    postmaster: Option<u32>,
    ids: Arc<AtomicU64>,
    groups: AtomicU64,
    progress: Progress,
}

/// Measures and reports.
///
/// # Errors
/// A server does not start or refuses a call, or an event was not pulled exactly once.
pub(crate) fn run(arguments: &EventsArgs) -> Result<()> {
    crate::interrupt::watch()?;
    let scratch = Scratch::new()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let began = Instant::now();
    let mut report = runtime.block_on(async {
        let bench = Bench::new(arguments, &scratch.0).await?;
        let report = bench.measure().await;
        bench.progress.clear();
        let report = report?;
        bench.outrigger.stop()?;
        bench.before.map_or(Ok(()), Server::stop)?;
        Ok::<_, anyhow::Error>(report)
    })?;
    report.took_s = began.elapsed().as_secs_f64();
    arguments.on.deliver(MARK, &report.render(), &report)?;
    match report.wrong() {
        0 => Ok(()),
        wrong => bail!("{wrong} events were not pulled exactly once in their order: see the table"),
    }
}

impl<'a> Bench<'a> {
    async fn new(arguments: &'a EventsArgs, folder: &'a Path) -> Result<Self> {
        let progress = Progress::new(arguments.on.progress, Duration::ZERO);
        progress.note("making and migrating the database");
        let database = Database::fresh(&arguments.on, TABLES).await?;
        let launch = Launch::on_postgres(&arguments.on, &arguments.on.outrigger_bin, folder);
        let outrigger = launch.start()?;
        let token = launch.mint_token()?;
        let other = folder.join("before");
        let before = arguments.on.before.as_deref();
        let before =
            before.map(|binary| Launch::before(&arguments.on, binary, &other).start()).transpose()?;
        let tenant = arguments.on.tenant.parse().context("--tenant")?;
        let target = Target {
            postmaster: database.postmaster().await?,
            database,
            api: outrigger.ready.api,
            before: before.as_ref().map(|server| server.ready.api),
            token,
            tenant,
            topic: arguments.topic.clone(),
            brokers: Brokers::new(&arguments.brokers, &arguments.topic, tenant),
        };
        Ok(Self {
            arguments,
            folder,
            postmaster: target.postmaster,
            target,
            outrigger,
            before,
            ids: Arc::new(AtomicU64::new(1)),
            groups: AtomicU64::new(1),
            progress,
        })
    }

    async fn measure(&self) -> Result<EventsReport> {
        let mut report = EventsReport {
            machine: process::machine(),
            took_s: 0.0,
            settings: self.target.database.settings().await?,
            accept: Vec::new(),
            pull: Vec::new(),
            kafka: None,
            kept: Vec::new(),
        };
        let wants = |part: Part| self.arguments.parts.contains(&part);
        if wants(Part::Accept) {
            let label = "one by one, 64 callers";
            let ways = [Way::Direct, Way::DirectBatched, Way::Outbox, Way::Outrigger, Way::OutriggerPlain];
            report.accept.push(self.accept(label, &ways, SINGLE).await?);
            let label = "in batches of 100, 16 callers";
            let ways = [Way::Direct, Way::DirectBatched, Way::Outrigger];
            report.accept.push(self.accept(label, &ways, BATCHES).await?);
        }
        if wants(Part::Pull) {
            report.pull = self.pulls().await?;
        }
        if wants(Part::Kafka) {
            report.kafka = Some(self.kafka().await?);
        }
        if wants(Part::Kept) {
            report.kept = self.kept().await?;
        }
        Ok(report)
    }

    /// Contenders in turn, the order rotated from round to round.
    async fn accept(&self, label: &str, ways: &[Way], load: (u64, u64)) -> Result<AcceptTable> {
        let mut ways = ways.to_vec();
        ways.extend(self.before.is_some().then_some(Way::Before));
        let mut turns: Vec<Vec<Turn>> = ways.iter().map(|_| Vec::new()).collect();
        let rounds = self.arguments.on.rounds as usize;
        for round in 0..rounds {
            for place in order(ways.len(), round) {
                let Some((way, turns)) = ways.get(place).zip(turns.get_mut(place)) else { continue };
                self.progress.turn(label, round + 1, rounds, way.name());
                turns.push(self.turn(*way, load).await.with_context(|| way.name())?);
            }
        }
        let cpus = process::machine().cpus;
        let turns: Vec<Vec<&Turn>> = turns.iter().map(|turns| turns.iter().collect()).collect();
        let first = turns.first().map_or(&[][..], Vec::as_slice);
        let rows: Result<Vec<AcceptRow>> = ways
            .iter()
            .zip(&turns)
            .map(|(way, turns)| AcceptRow::of(way.name(), turns, first, cpus))
            .collect();
        Ok(AcceptTable { label: label.to_owned(), has_goal: load == BATCHES, rows: rows? })
    }

    async fn turn(&self, way: Way, (callers, events): (u64, u64)) -> Result<Turn> {
        let callers = Caller::all(&self.target, way, callers, events).await?;
        let milliseconds = Duration::from_millis;
        let (warm_up, measured) =
            (milliseconds(self.arguments.on.warm_up_ms), milliseconds(self.arguments.on.measured_ms));
        saturate(callers, &self.ids, warm_up, measured, self.processes(way)).await
    }

    fn processes(&self, way: Way) -> Processes {
        let server = match way {
            Way::Direct | Way::DirectBatched | Way::Outbox | Way::Kafka => None,
            Way::Outrigger | Way::OutriggerPlain | Way::Relay => Some(self.outrigger.ready.pid),
            Way::Before => self.before.as_ref().map(|server| server.ready.pid),
        };
        Processes { server, postmaster: self.postmaster }
    }

    /// Half and full load, one and four consumers.
    async fn pulls(&self) -> Result<Vec<PullRow>> {
        let mut rows = Vec::new();
        for way in [Way::Outbox, Way::Outrigger] {
            let load = if way == Way::Outbox { SINGLE } else { BATCHES };
            for consumers in [1, 4] {
                let full = match self.arguments.full_rate {
                    Some(rate) => rate,
                    None => self.while_pulled(way, load, consumers).await?,
                };
                for rate in [full / 2.0, full] {
                    rows.push(self.pulled(way, load, rate, consumers).await?);
                }
            }
        }
        Ok(rows)
    }

    /// What waits while no relay runs, and then half and full load.
    async fn kafka(&self) -> Result<KafkaTable> {
        self.progress.note("making Kafka's topics");
        self.target.brokers.remove_topics().await?;
        let folder = self.folder.join("relay");
        let launch = Launch::on_postgres(&self.arguments.on, &self.arguments.on.outrigger_bin, &folder)
            .with_config(&self.arguments.relay_config);
        launch.migrate()?;
        let bare = self.turn(Way::Kafka, BATCHES).await?;
        let (relay, backlog_per_s) = self.backlog(&launch).await?;
        let mut rows = Vec::new();
        for way in [Way::Kafka, Way::Relay] {
            let full = match self.arguments.full_rate {
                Some(rate) => rate,
                None => self.while_pulled(way, BATCHES, 1).await?,
            };
            for rate in [full / 2.0, full] {
                rows.push(self.pulled(way, BATCHES, rate, 1).await?);
            }
        }
        relay.stop()?;
        Ok(KafkaTable { bare_per_s: bare.events_per_s(), backlog_per_s, rows })
    }

    /// How many events a second a relay delivers that finds some waiting; its start and takeover count.
    async fn backlog(&self, launch: &Launch<'_>) -> Result<(Server, f64)> {
        self.progress.note("a backlog");
        let first = self.ids.fetch_add(BACKLOG, Ordering::Relaxed);
        let ledger = Arc::new(Ledger::new(first, usize::try_from(BACKLOG)?));
        let mut callers = JoinSet::new();
        for mut caller in Caller::all(&self.target, Way::Outrigger, BATCHES.0, BATCHES.1).await? {
            let ledger = Arc::clone(&ledger);
            callers.spawn(async move {
                while let Some(first) = ledger.draw(BATCHES.1) {
                    caller.publish(first).await?;
                    ledger.accepted(first, BATCHES.1);
                }
                Ok::<_, anyhow::Error>(())
            });
        }
        while let Some(done) = callers.join_next().await {
            done??;
        }
        let over = CancellationToken::new();
        let mut running = self.target.brokers.read(&ledger, &over)?;
        let began = Instant::now();
        let relay = launch.start()?;
        while ledger.in_hand() < BACKLOG && began.elapsed() < CATCH_UP {
            if let Some(ended) = running.try_join_next() {
                ended??;
                bail!("a reader of Kafka ended by itself");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let took = began.elapsed();
        over.cancel();
        while let Some(done) = running.join_next().await {
            done??;
        }
        if ledger.in_hand() < BACKLOG {
            bail!("of a backlog of {BACKLOG} events {} are in Kafka after {took:.1?}", ledger.in_hand());
        }
        Ok((relay, BACKLOG as f64 / took.as_secs_f64()))
    }

    /// What is accepted a second, with every caller always calling, while consumers pull; or what they pull, where that is less: more
    /// would only wait longer and longer.
    async fn while_pulled(&self, way: Way, load: (u64, u64), consumers: usize) -> Result<f64> {
        self.progress.note(&format!("{}: full load with {consumers} consumers", way.name()));
        let nobodys = Arc::new(Ledger::new(0, 0));
        let over = CancellationToken::new();
        let mut running = self.receive(way, consumers, &nobodys, &over).await?;
        let callers = Caller::all(&self.target, way, load.0, load.1).await?;
        let (time, began) = (Duration::from_secs(3), Instant::now());
        let turn = saturate(callers, &self.ids, time / 3, time, self.processes(way)).await?;
        let pulled = nobodys.of_others() as f64 / began.elapsed().as_secs_f64();
        over.cancel();
        while let Some(done) = running.join_next().await {
            done??;
        }
        Ok(turn.events_per_s().min(pulled))
    }

    async fn receive(
        &self,
        way: Way,
        consumers: usize,
        ledger: &Arc<Ledger>,
        over: &CancellationToken,
    ) -> Result<JoinSet<Result<()>>> {
        if matches!(way, Way::Kafka | Way::Relay) {
            return self.target.brokers.read(ledger, over);
        }
        if way == Way::Outbox {
            self.target.database.connect().await?.batch_execute("TRUNCATE outbox").await?;
            return consumer::poll(&self.target.database, consumers, ledger, over).await;
        }
        let group = format!("g{}", self.groups.fetch_add(1, Ordering::Relaxed));
        consumer::at_head(&self.target, &group).await?;
        Ok(consumer::pull(&self.target, &group, consumers, ledger, over))
    }

    /// An open loop, every event followed.
    async fn pulled(&self, way: Way, load: (u64, u64), rate: f64, consumers: usize) -> Result<PullRow> {
        self.progress.note(&format!("{}: {rate:.0} events/s, {consumers} consumers", way.name()));
        let during = Duration::from_secs(self.arguments.open_loop_s);
        let events = (rate * during.as_secs_f64()) as u64;
        let first = self.ids.fetch_add(events, Ordering::Relaxed);
        let ledger = Arc::new(Ledger::new(first, usize::try_from(events)?));
        let over = CancellationToken::new();
        let mut running = self.receive(way, consumers, &ledger, &over).await?;
        let callers = Caller::all(&self.target, way, load.0, load.1).await?;
        let turn = at_rate(callers, &ledger, rate, during, self.processes(way)).await?;
        let accepted = turn.tally.completed * turn.events;
        let behind = accepted.saturating_sub(ledger.in_hand());
        let until = Instant::now() + CATCH_UP;
        while ledger.in_hand() < accepted && Instant::now() < until {
            if let Some(ended) = running.try_join_next() {
                ended??;
                bail!("a consumer ended by itself");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        over.cancel();
        while let Some(done) = running.join_next().await {
            done??;
        }
        let (found, latencies) = ledger.close();
        let row = PullRow {
            name: way.name().to_owned(),
            consumers,
            offered: rate,
            accepted_per_s: turn.events_per_s(),
            accept: Latency::of(&turn.tally.latency_ns),
            pulled: Latency::of(&latencies),
            behind,
            missing: 0,
            repeated: 0,
            out_of_order: 0,
        };
        Ok(row.with(found))
    }

    /// The same work with more and more events kept.
    async fn kept(&self) -> Result<Vec<KeptRow>> {
        let mut rows = Vec::new();
        let planned = self.arguments.kept.iter().copied().max().unwrap_or(0);
        let mut rate = self.arguments.full_rate.map(|rate| rate / 2.0);
        for wanted in &self.arguments.kept {
            self.progress.note(&format!("filling up to {wanted} events"));
            let have = kept::count(&self.target.database).await?;
            kept::fill(&self.target, have, *wanted, planned).await?;
            self.progress.note(&format!("{wanted} events kept"));
            let (mut single, mut batches) = (Vec::new(), Vec::new());
            for _ in 0..self.arguments.on.rounds {
                single.push(self.turn(Way::Outrigger, SINGLE).await?.events_per_s());
                batches.push(self.turn(Way::Outrigger, BATCHES).await?.events_per_s());
            }
            let batches_per_s = crate::report::statistics::median(&batches);
            let half = *rate.get_or_insert(batches_per_s / 2.0);
            let pulled = self.pulled(Way::Outrigger, BATCHES, half, 1).await?;
            rows.push(KeptRow {
                kept: *wanted,
                one_by_one_per_s: crate::report::statistics::median(&single),
                batches_per_s,
                pulled: pulled.pulled,
                first_page_ms: kept::first_page_ms(&self.target).await?,
                read_per_s: kept::read_per_s(&self.target).await?,
            });
        }
        Ok(rows)
    }
}
