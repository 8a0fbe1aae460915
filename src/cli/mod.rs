//! The command line: one file per subcommand.

mod check;
mod demo;
mod dev;
mod log;
mod migrate;
mod openapi;
mod outbox;
mod probe;
mod serve;
mod status;
mod token;
mod usage;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

/// Something was wrong with what was looked at: a token, a configuration, a backend.
pub const FOUND_PROBLEMS: u8 = 1;
/// The command line itself is wrong.
pub const USAGE: u8 = 2;
/// A socket cannot be bound, or data cannot be opened.
pub const CANNOT_START: u8 = 3;
/// What was looked at is well, and not all could be looked at.
pub const INCOMPLETE: u8 = 4;

#[derive(Parser)]
#[command(name = "outrigger", version, about = "A data-access sidecar", long_about = None)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve with embedded backends: needs nothing else, prints tokens and curl lines
    Dev(dev::DevArgs),
    /// Serve as the sidecar that a configuration describes
    Serve(serve::ServeArgs),
    /// Serve, and run a command beside it once ready
    Run(serve::RunArgs),
    /// Check a configuration, its policies and its backends
    Check(check::CheckArgs),
    /// Bring the database of `store: postgres` to this program's version
    Migrate(migrate::MigrateArgs),
    /// Show what is on its way out of the event log
    #[command(subcommand)]
    Outbox(outbox::OutboxCommand),
    /// Check totals of usage against their records, and count what was put aside
    #[command(subcommand)]
    Usage(usage::UsageCommand),
    /// Make or explain tokens
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Show how a running process is
    Status(status::StatusArgs),
    /// Print the OpenAPI description
    Openapi(openapi::OpenapiArgs),
    /// Print a shell's completion script
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Where to listen, overriding the configuration.
#[derive(Args, Default)]
struct ListenArgs {
    /// The API's address; port 0 takes a free one
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// The admin listener's address (loopback)
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
    /// The unix socket's path
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Written once the process is ready: {"pid","api","admin","socket"}
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
}

/// Runs the command line and returns the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Dev(arguments) => dev::run(arguments),
        Command::Serve(arguments) => serve::serve(arguments),
        Command::Run(arguments) => serve::run(arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Migrate(arguments) => migrate::run(&arguments),
        Command::Outbox(command) => outbox::run(&command),
        Command::Usage(command) => usage::run(&command),
        Command::Token(command) => token::run(&command),
        Command::Status(arguments) => status::run(&arguments),
        Command::Openapi(arguments) => openapi::run(&arguments),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "outrigger", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(CANNOT_START)
    })
}

/// The runtime of every command that talks to the network.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}
