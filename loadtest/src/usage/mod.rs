//! Usage on PostgreSQL: records counted once, beside the same rows without deduplication and sums; with more and more kept; and read.

mod cli;
mod contender;
mod kept;
mod report;
mod spool;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use cli::Part;
pub(crate) use cli::UsageArgs;
use contender::{Caller, Target, Way};
use report::{KeptRow, UsageReport, WriteRow, WriteTable};

use crate::contender::{Launch, Server};
use crate::events::database::Database;
use crate::events::load::{Processes, Turn, saturate};
use crate::progress::Progress;
use crate::rounds::order;
use crate::{Scratch, process};

/// Marks of the table in a document.
const MARK: &str = "loadtest usage";
/// Records of a call.
const BATCH: u64 = 1000;
const CALLERS: [u64; 3] = [1, 8, 64];
const METRICS: u64 = 10_000;
const TABLES: &str = "CREATE TABLE direct_usage (LIKE usage_events INCLUDING DEFAULTS)";

/// Turns of one contender, and the bytes of log that each record took.
type Turns = Vec<(Turn, f64)>;

struct Bench<'a> {
    arguments: &'a UsageArgs,
    folder: &'a Path,
    target: Target,
    outrigger: Server,
    before: Option<Server>,
    postmaster: Option<u32>,
    ids: Arc<AtomicU64>,
    progress: Progress,
}

/// Measures and reports.
///
/// # Errors
/// A server does not start or refuses a call.
pub(crate) fn run(arguments: &UsageArgs) -> Result<()> {
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
    arguments.on.deliver(MARK, &report.render(), &report)
}

impl<'a> Bench<'a> {
    async fn new(arguments: &'a UsageArgs, folder: &'a Path) -> Result<Self> {
        let on = &arguments.on;
        let progress = Progress::new(on.progress, Duration::ZERO);
        progress.note("making and migrating the database");
        let database = Database::fresh(on, TABLES).await?;
        let launch = Launch::on_postgres(on, &on.outrigger_bin, folder);
        let outrigger = launch.start()?;
        let token = launch.mint_token()?;
        let other = folder.join("before");
        let before = on.before.as_deref();
        let before = before.map(|binary| Launch::before(on, binary, &other).start()).transpose()?;
        let target = Target {
            database,
            api: outrigger.ready.api,
            before: before.as_ref().map(|server| server.ready.api),
            token,
            tenant: on.tenant.parse().context("--tenant")?,
            metrics: 1,
        };
        let postmaster = target.database.postmaster().await?;
        let ids = Arc::new(AtomicU64::new(1));
        Ok(Self { arguments, folder, postmaster, target, outrigger, before, ids, progress })
    }

    async fn measure(&self) -> Result<UsageReport> {
        let mut report = UsageReport {
            machine: process::machine(),
            took_s: 0.0,
            settings: self.target.database.settings().await?,
            write: Vec::new(),
            spool: Vec::new(),
            kept: Vec::new(),
        };
        let wants = |part: Part| self.arguments.parts.contains(&part);
        if wants(Part::Write) {
            for callers in CALLERS {
                report.write.push(self.write(callers).await?);
            }
        }
        if wants(Part::Metrics) {
            report.write.push(self.metrics().await?);
        }
        if wants(Part::Spool) {
            report.spool = spool::measure(self).await?;
        }
        if wants(Part::Kept) {
            report.kept = self.kept().await?;
        }
        Ok(report)
    }

    /// Contenders in turn, the order rotated from round to round.
    async fn write(&self, callers: u64) -> Result<WriteTable> {
        let mut ways = vec![Way::Copy, Way::Unnest, Way::Outrigger];
        ways.extend(self.before.is_some().then_some(Way::Before));
        let label = format!("batches of {BATCH}, {callers} callers");
        let mut turns: Vec<Turns> = ways.iter().map(|_| Vec::new()).collect();
        let rounds = self.arguments.on.rounds as usize;
        for round in 0..rounds {
            for place in order(ways.len(), round) {
                let Some((way, turns)) = ways.get(place).zip(turns.get_mut(place)) else { continue };
                self.progress.turn(&label, round + 1, rounds, way.name());
                let turn = self.turn(&self.target, *way, callers, self.processes(*way));
                turns.push(turn.await.with_context(|| way.name())?);
            }
        }
        let first = turns.first().map_or(&[][..], Vec::as_slice);
        let rows = ways.iter().zip(&turns).map(|(way, turns)| WriteRow::of(way.name(), turns, first));
        Ok(WriteTable { label, has_goal: callers > 1, rows: rows.collect::<Result<_>>()? })
    }

    /// One hot metric and ten thousand, by two servers in turn.
    async fn metrics(&self) -> Result<WriteTable> {
        let folder = self.folder.join("metrics");
        let names: String = (0..METRICS).map(|number| format!("  m{number:06}: {{}}\n")).collect();
        let policy = format!("kind: usage\nmetrics:\n  api_calls: {{group_by: [endpoint]}}\n{names}");
        let config = with_policy(&self.arguments.on.outrigger_config, &folder, &policy, |text| text)?;
        let on = &self.arguments.on;
        let many = Launch::on_postgres(on, &on.outrigger_bin, &folder).with_config(&config).start()?;
        let target = Target { api: many.ready.api, metrics: METRICS, ..self.target.clone() };
        let one = Target { api: many.ready.api, metrics: 1, ..self.target.clone() };
        let (mut hot, mut spread) = (Vec::new(), Vec::new());
        for round in 0..on.rounds {
            self.progress.note(&format!("metrics, round {}", round + 1));
            let processes = Processes { server: Some(many.ready.pid), postmaster: self.postmaster };
            hot.push(self.turn(&one, Way::Outrigger, 8, processes).await?);
            spread.push(self.turn(&target, Way::Outrigger, 8, processes).await?);
        }
        many.stop()?;
        let rows = vec![
            WriteRow::of("one metric", &hot, &hot)?,
            WriteRow::of(&format!("{METRICS} metrics"), &spread, &hot)?,
        ];
        let label = format!("batches of {BATCH}, 8 callers, one hot metric or {METRICS}");
        Ok(WriteTable { label, has_goal: false, rows })
    }

    async fn turn(
        &self,
        target: &Target,
        way: Way,
        callers: u64,
        processes: Processes,
    ) -> Result<(Turn, f64)> {
        let callers = Caller::all(target, way, callers, BATCH).await?;
        let milliseconds = Duration::from_millis;
        let (warm_up, measured) =
            (milliseconds(self.arguments.on.warm_up_ms), milliseconds(self.arguments.on.measured_ms));
        let (wal, sent) = (kept::wal_bytes(&target.database).await?, self.ids.load(Ordering::Relaxed));
        let turn = saturate(callers, &self.ids, warm_up, measured, processes).await?;
        let wal = kept::wal_bytes(&target.database).await? - wal;
        let sent = self.ids.load(Ordering::Relaxed) - sent;
        Ok((turn, wal / sent.max(1) as f64))
    }

    fn processes(&self, way: Way) -> Processes {
        let server = match way {
            Way::Copy | Way::Unnest => None,
            Way::Outrigger => Some(self.outrigger.ready.pid),
            Way::Before => self.before.as_ref().map(|server| server.ready.pid),
        };
        Processes { server, postmaster: self.postmaster }
    }

    /// The same with more and more records kept, and how long readings take.
    async fn kept(&self) -> Result<Vec<KeptRow>> {
        self.progress.note("a year of hours of a thousand tenants");
        kept::fill_sums(&self.target).await?;
        let (mut rows, mut have) = (Vec::new(), 0);
        for wanted in &self.arguments.kept {
            self.progress.note(&format!("filling up to {wanted} records"));
            kept::fill(&self.target, have, *wanted).await?;
            have = *wanted;
            self.progress.note(&format!("{wanted} records kept"));
            let mut turns = Vec::new();
            for _ in 0..self.arguments.on.rounds {
                turns.push(self.turn(&self.target, Way::Outrigger, 8, self.processes(Way::Outrigger)).await?);
            }
            rows.push(KeptRow {
                kept: *wanted,
                write: WriteRow::of("outrigger", &turns, &turns)?,
                year: kept::year_of_hours(&self.target).await?,
                month: kept::month_of_days(&self.target).await?,
            });
        }
        Ok(rows)
    }
}

/// The configuration with another policy of usage, in this folder, and changed in another way.
fn with_policy(
    config: &Path,
    folder: &Path,
    policy: &str,
    change: impl FnOnce(String) -> String,
) -> Result<PathBuf> {
    let policies = folder.join("policies");
    fs::create_dir_all(&policies)?;
    let home = config.canonicalize()?;
    let home = home.parent().context("--outrigger-config")?;
    for entry in fs::read_dir(home.join("policies"))? {
        let path = entry?.path();
        fs::copy(&path, policies.join(path.file_name().context("a policy")?))?;
    }
    fs::write(policies.join("usage.yaml"), policy)?;
    let above = home.parent().context("--outrigger-config")?;
    let text = fs::read_to_string(config)?
        .replace("policies: policies", &format!("policies: {}", policies.display()))
        .replace("../", &format!("{}/", above.display()));
    let path = folder.join("proxy.yaml");
    fs::write(&path, change(text))?;
    Ok(path)
}
