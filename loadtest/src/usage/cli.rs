//! Options of `loadtest usage`.

use clap::{Args, ValueEnum};

use crate::events::OnPostgres;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Records counted a second, closed loop, contenders in turn
    Write,
    /// One hot metric, and ten thousand
    Metrics,
    /// Records accepted to disk, and counted after
    Spool,
    /// The same with more and more records kept, and readings
    Kept,
}

/// Options of `usage`.
#[derive(Clone, Debug, Args)]
pub(crate) struct UsageArgs {
    #[command(flatten)]
    pub(crate) on: OnPostgres,
    /// What is measured
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Write, Part::Metrics, Part::Spool, Part::Kept])]
    pub(crate) parts: Vec<Part>,
    /// How many records are kept, step by step
    #[arg(long, value_delimiter = ',', default_values_t = [1_000_000, 10_000_000, 30_000_000])]
    pub(crate) kept: Vec<u64>,
}
