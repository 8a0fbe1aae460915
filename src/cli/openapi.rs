//! `outrigger openapi`: the description of every route, as the repository keeps it.

use std::process::ExitCode;

use clap::Args;

/// Kept equal to what a running process with every primitive serves, by a test.
const DESCRIPTION: &str = include_str!("../../docs/openapi.json");

#[derive(Args)]
pub(super) struct OpenapiArgs {
    /// On one line
    #[arg(long)]
    compact: bool,
}

pub(super) fn run(arguments: &OpenapiArgs) -> anyhow::Result<ExitCode> {
    if arguments.compact {
        println!("{}", serde_json::from_str::<serde_json::Value>(DESCRIPTION)?);
    } else {
        print!("{DESCRIPTION}");
    }
    Ok(ExitCode::SUCCESS)
}
