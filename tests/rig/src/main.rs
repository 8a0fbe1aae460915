//! `rig up`: starts the servers that the tests share, and leaves them running. `rig down`: ends exactly those.

use std::process::ExitCode;

const USAGE: &str = "\
usage: rig up|down [redis] [postgres] [kafka] | status | env
  up      starts the servers that the tests share: a Redis Cluster of six, PostgreSQL with a synchronous standby and
          PgBouncer, three Kafka brokers; data under .rig/, addresses in .rig/env. Does nothing for a kind that is up
          and well. They go on running after this command: end them with `rig down`.
          RIG_REDIS_PORT is the first port (default 17001); PostgreSQL's are 10 above it, or RIG_POSTGRES_PORT,
          Kafka's 20 above it, or RIG_KAFKA_PORT. RIG_POSTGRES_FSYNC=on makes commits wait for the disk.
  down    ends exactly the servers that `up`, or a test, started
  status  lists them
  env     prints their addresses as shell lines";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["up", kinds @ ..] => rig::up(kinds),
        ["down", kinds @ ..] => rig::down(kinds),
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
