//! STUB
use std::process::ExitCode;

#[derive(clap::Subcommand)]
pub(super) enum TokenCommand {
    /// stub
    Mint,
}

pub(super) fn run(_: &TokenCommand) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
