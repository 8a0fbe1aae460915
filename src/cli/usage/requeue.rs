//! `outrigger usage requeue`: calls that were put aside, back into the spool.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use super::super::outbox::{load, problem};
use super::super::{FOUND_PROBLEMS, runtime};
use crate::primitives::usage::{Requeued, requeue, spool_folder};

#[derive(Args)]
pub(in super::super) struct RequeueArgs {
    /// The configuration, with `data_dir`; the process that uses it must have ended
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Files of `data_dir/spool/refused`, by name; without one all of them
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Says what is there, and does nothing
    #[arg(long)]
    dry_run: bool,
    /// A line of JSON for each file: {"file","requeued","tenant","accepted_at","records"}, or {"file","requeued":false,"why"} where
    /// it was left
    #[arg(long)]
    json: bool,
}

pub(super) fn requeued(arguments: &RequeueArgs) -> anyhow::Result<ExitCode> {
    let Some(config) = load(&arguments.config) else { return Ok(ExitCode::from(FOUND_PROBLEMS)) };
    let Some(data_dir) = &config.data_dir else {
        return problem("the configuration has no `data_dir`: nothing is accepted to disk by it");
    };
    let (mut back, mut left) = (0_usize, 0_usize);
    let tell = |one: &Requeued| {
        *(if one.call.is_ok() { &mut back } else { &mut left }) += 1;
        println!("{}", if arguments.json { as_json(one, arguments) } else { in_words(one, arguments) });
    };
    let ended =
        runtime()?.block_on(requeue(&spool_folder(data_dir), &arguments.names, arguments.dry_run, tell));
    if !arguments.json {
        let done = if arguments.dry_run {
            "can be taken back"
        } else {
            "are in the spool again, and counted by the next process"
        };
        println!("{back} calls {done}; {left} files were left");
    }
    match ended.context("not all was looked at") {
        Ok(()) if left == 0 => Ok(ExitCode::SUCCESS),
        Ok(()) => Ok(ExitCode::from(FOUND_PROBLEMS)),
        Err(error) => problem(&format!("{error:#}")),
    }
}

fn in_words(one: &Requeued, arguments: &RequeueArgs) -> String {
    let Requeued { file, call } = one;
    let done = if arguments.dry_run { "can be taken back" } else { "taken back" };
    match call {
        Ok(call) => {
            let (tenant, accepted, records) = (call.tenant, call.accepted, call.records);
            format!("{file}: {done}: tenant {tenant}, {records} records, accepted at {accepted}")
        }
        Err(why) => format!("{file}: left: {why}"),
    }
}

fn as_json(one: &Requeued, arguments: &RequeueArgs) -> String {
    let Requeued { file, call } = one;
    let line = match call {
        Ok(call) => json!({
            "file": file, "requeued": !arguments.dry_run, "tenant": call.tenant, "accepted_at": call.accepted.to_string(),
            "records": call.records,
        }),
        Err(why) => json!({"file": file, "requeued": false, "why": why}),
    };
    line.to_string()
}
