//! Options of `loadtest events`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::report::markdown;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Events accepted a second, closed loop, contenders in turn
    Accept,
    /// Accepted to pulled, open loop at a half and the whole of what is accepted
    Pull,
    /// Accepted to committed in Kafka, beside a bare transactional producer
    Kafka,
    /// The same work with more and more events kept
    Kept,
}

/// Options of what is measured on PostgreSQL.
#[derive(Clone, Debug, Args)]
pub(crate) struct OnPostgres {
    /// Outrigger's binary (a release build)
    #[arg(long, value_name = "PATH")]
    pub(crate) outrigger_bin: PathBuf,
    /// Its configuration; `--database` is the one that it names
    #[arg(long, value_name = "PATH", default_value = "loadtest/postgres.yaml")]
    pub(crate) outrigger_config: PathBuf,
    /// Folder whose key signs tokens that this configuration accepts
    #[arg(long, value_name = "DIR", default_value = ".rig/identity")]
    pub(crate) identity: PathBuf,
    /// Another build of Outrigger, which takes turns with the first: for a change's effect
    #[arg(long, value_name = "PATH")]
    pub(crate) before: Option<PathBuf>,
    /// The configuration of that build, without it the first one's
    #[arg(long, value_name = "PATH")]
    pub(crate) before_config: Option<PathBuf>,
    /// A superuser's connection string for the primary; its database is not used
    #[arg(long, env = "POSTGRES_ADMIN_URL", hide_env_values = true)]
    pub(crate) admin_url: String,
    /// The authority that signed the server's certificate, PEM
    #[arg(long, env = "POSTGRES_CA_FILE")]
    pub(crate) ca_file: PathBuf,
    /// The database: dropped, made and migrated at the beginning
    #[arg(long, default_value = "loadtest")]
    pub(crate) database: String,
    /// Whose events or records they are, a UUID
    #[arg(long, default_value = "0198c0de-0000-7000-8000-00000000010a")]
    pub(crate) tenant: String,
    /// Turns of each contender
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rounds: u32,
    /// Unmeasured part of a turn
    #[arg(long, default_value_t = 300)]
    pub(crate) warm_up_ms: u64,
    /// Measured part of a turn
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u64).range(10..=600_000))]
    pub(crate) measured_ms: u64,
    /// Write the whole report as JSON
    #[arg(long, value_name = "PATH")]
    pub(crate) json: Option<PathBuf>,
    /// Replace the table between its marks, such as <!-- loadtest events --> and <!-- /loadtest events -->, in this file
    #[arg(long, value_name = "PATH")]
    pub(crate) markdown: Option<PathBuf>,
    /// A progress line on stderr even where it is no terminal
    #[arg(long)]
    pub(crate) progress: bool,
}

impl OnPostgres {
    /// Prints a table, and writes it and the report where they are wanted.
    ///
    /// # Errors
    /// A file cannot be written, or has no place for the table.
    pub(crate) fn deliver(&self, mark: &str, table: &str, report: &impl Serialize) -> Result<()> {
        print!("{table}");
        if let Some(path) = &self.markdown {
            let document = fs::read_to_string(path).with_context(|| path.display().to_string())?;
            fs::write(path, markdown::replace_table(&document, mark, table)?)?;
        }
        if let Some(path) = &self.json {
            fs::write(path, serde_json::to_string_pretty(report)? + "\n")?;
        }
        Ok(())
    }
}

/// Options of `events`.
#[derive(Clone, Debug, Args)]
pub(crate) struct EventsArgs {
    #[command(flatten)]
    pub(crate) on: OnPostgres,
    /// The relay's configuration, with the same database and the topics' prefix `loadtest`
    #[arg(long, value_name = "PATH", default_value = "loadtest/kafka.yaml")]
    pub(crate) relay_config: PathBuf,
    /// Kafka's brokers, as that configuration names them
    #[arg(long, env = "KAFKA_BROKERS", value_name = "HOST:PORT,...", default_value = "127.0.0.1:17021")]
    pub(crate) brokers: String,
    /// A topic of the policies
    #[arg(long, default_value = "leads")]
    pub(crate) topic: String,
    /// What is measured
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Accept, Part::Pull, Part::Kafka, Part::Kept])]
    pub(crate) parts: Vec<Part>,
    /// How long each open loop publishes, in seconds
    #[arg(long, default_value_t = 8)]
    pub(crate) open_loop_s: u64,
    /// Full load of the open loops in events/s; without it what was accepted in batches while consumers pulled
    #[arg(long)]
    pub(crate) full_rate: Option<f64>,
    /// How many events are kept, step by step
    #[arg(long, value_delimiter = ',', default_values_t = [1_000_000, 10_000_000])]
    pub(crate) kept: Vec<u64>,
}
