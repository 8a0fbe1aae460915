//! `outrigger status`: how a running process is, from its admin listener.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use super::FOUND_PROBLEMS;

#[derive(Args)]
pub(super) struct StatusArgs {
    /// The admin listener's address
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7781")]
    admin: SocketAddr,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &StatusArgs) -> anyhow::Result<ExitCode> {
    let (status, body) = get(arguments.admin, "/readyz?verbose").with_context(|| {
        format!("no outrigger answers at {}: is it running, and is this its admin address?", arguments.admin)
    })?;
    let ready = status == 200;
    if arguments.json {
        let lines: Vec<&str> = body.lines().collect();
        println!("{}", json!({"ready": ready, "status": status, "lines": lines}));
    } else {
        print!("{body}");
    }
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::from(FOUND_PROBLEMS) })
}

/// One GET, without a client library: the answer is small, local, and ends with the connection.
fn get(address: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(1 << 20).read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("not an HTTP answer")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("not an HTTP answer")?;
    Ok((status, body.to_owned()))
}
