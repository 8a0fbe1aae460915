//! `rig up`: starts the servers that the tests share, and leaves them running. `rig down`: ends exactly those.

use std::process::ExitCode;

const USAGE: &str = "\
usage: rig up|down|status|env
  up      starts every server that the tests share (a Redis Cluster of six), data under .rig/, addresses in
          .rig/env; does nothing when they are up and well. They go on running after this command: end them
          with `rig down`. RIG_REDIS_PORT is the first Redis port (default 17001).
  down    ends exactly the servers that `up` started
  status  lists them
  env     prints their addresses as shell lines";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["up"] => rig::up(),
        ["down"] => rig::down(),
        ["status"] => rig::status(),
        ["env"] => Ok(rig::env_lines().iter().map(|(name, value)| format!("{name}={value}\n")).collect()),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(text) => {
            println!("{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("rig: {error}");
            ExitCode::FAILURE
        }
    }
}
