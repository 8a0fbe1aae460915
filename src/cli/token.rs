//! `outrigger token`: development tokens made, any token explained.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Value, json};

use super::{FOUND_PROBLEMS, runtime};
use crate::config::{Identity, ProxyConfig};
use crate::identity::dev::{ADMIN_SCOPE, DEFAULT_TIER, DevIdentity, KEY_FILE, KEY_SET_FILE, TokenRequest};
use crate::identity::{Explanation, Inspector, Principal, TenantId};
use crate::primitives;

/// The longest that a development token lives.
const MAX_TTL: Duration = Duration::from_secs(366 * 24 * 3600);
/// More is no token.
const MAX_INPUT_BYTES: u64 = 64 * 1024;

#[derive(clap::Subcommand)]
pub(super) enum TokenCommand {
    /// Print a development token
    Mint(MintArgs),
    /// Show every check of a token, passed or not; exit 1 where it would be refused
    Inspect(InspectArgs),
}

#[derive(Args)]
pub(super) struct MintArgs {
    /// The data directory, or the identity directory itself (the one with jwks.json); a key is made if there is none
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The tenant, a UUID; without it the token is a service token
    #[arg(long, value_name = "UUID", conflicts_with = "service", value_parser = parse_tenant)]
    tenant: Option<TenantId>,
    /// A service token: one without a tenant
    #[arg(long)]
    service: bool,
    /// The subject
    #[arg(long)]
    subject: String,
    /// A scope, or several between spaces; may be repeated [default: tenant:admin]
    #[arg(long)]
    scope: Vec<String>,
    /// A role; may be repeated
    #[arg(long)]
    role: Vec<String>,
    /// The tenant's tier
    #[arg(long, default_value = DEFAULT_TIER)]
    tier: String,
    /// How long it lives: 90s, 15m, 1h, 7d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_ttl)]
    ttl: Duration,
}

#[derive(Args)]
pub(super) struct InspectArgs {
    /// The token; `-` reads it from standard input, where it stays out of the shell's history
    #[arg(default_value = "-")]
    token: String,
    /// A data or identity directory: as `outrigger dev` with it would decide
    #[arg(long, value_name = "DIR", conflicts_with = "config", required_unless_present = "config")]
    data: Option<PathBuf>,
    /// A configuration: as `outrigger serve` with it would decide
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &TokenCommand) -> anyhow::Result<ExitCode> {
    match command {
        TokenCommand::Mint(arguments) => mint(arguments),
        TokenCommand::Inspect(arguments) => inspect(arguments),
    }
}

/// The identity directory that `--data` means: itself where it is called `identity` or holds a key or key
/// set, else `identity` in it.
fn identity_directory(data: &Path) -> PathBuf {
    let named_so = data.file_name().is_some_and(|name| name == "identity");
    let holds_one = [KEY_FILE, KEY_SET_FILE].iter().any(|name| data.join(name).exists());
    if named_so || holds_one { data.to_owned() } else { data.join("identity") }
}

fn mint(arguments: &MintArgs) -> anyhow::Result<ExitCode> {
    let identity = DevIdentity::open_or_create(&identity_directory(&arguments.data))?;
    let default = [ADMIN_SCOPE.to_owned()];
    let scopes = if arguments.scope.is_empty() { &default[..] } else { &arguments.scope };
    let token = identity.mint(&TokenRequest {
        tenant: arguments.tenant,
        subject: &arguments.subject,
        scopes,
        roles: &arguments.role,
        tier: &arguments.tier,
        ttl: arguments.ttl,
    })?;
    println!("{token}");
    Ok(ExitCode::SUCCESS)
}

fn inspect(arguments: &InspectArgs) -> anyhow::Result<ExitCode> {
    let identity = match (&arguments.data, &arguments.config) {
        (_, Some(path)) => match ProxyConfig::load(path, &primitives::sections()) {
            Ok(config) => config.identity,
            Err(report) => {
                eprint!("{report}");
                return Ok(ExitCode::from(FOUND_PROBLEMS));
            }
        },
        (Some(data), None) => Identity::development(&identity_directory(data)),
        (None, None) => bail!("say whose token it should be: --data DIR or --config FILE"),
    };
    let text = if arguments.token == "-" { read_input()? } else { arguments.token.clone() };
    let token = text.trim();
    let token = token.strip_prefix("Bearer ").unwrap_or(token);
    let inspector = runtime()?.block_on(Inspector::load(&identity))?;
    let explanation = inspector.explain(token);
    if arguments.json {
        println!("{:#}", as_json(&explanation))
    } else {
        print!("{}", as_text(&explanation))
    }
    let accepted = explanation.principal().is_some();
    Ok(if accepted { ExitCode::SUCCESS } else { ExitCode::from(FOUND_PROBLEMS) })
}

fn read_input() -> anyhow::Result<String> {
    let mut text = String::new();
    let input = std::io::stdin().lock().take(MAX_INPUT_BYTES);
    std::io::BufReader::new(input).read_to_string(&mut text).context("cannot read the token")?;
    Ok(text)
}

fn as_text(explanation: &Explanation) -> String {
    let mut lines: Vec<String> = explanation
        .checks()
        .iter()
        .map(|check| {
            let mark = if check.passed { "ok" } else { "FAILED" };
            format!("{mark:<7} {:<22} {}", check.name, check.detail).trim_end().to_owned()
        })
        .collect();
    lines.push(match explanation.principal() {
        Some(principal) => format!("accepted: {}", describe(principal)),
        None => "refused".to_owned(),
    });
    lines.join("\n") + "\n"
}

fn describe(principal: &Principal) -> String {
    let tenant = principal.tenant().map_or("none (a service token)".to_owned(), |tenant| tenant.to_string());
    format!(
        "issuer {}, subject {}, tenant {tenant}, scopes [{}], roles [{}], tier {}",
        principal.issuer(),
        principal.subject(),
        principal.scopes().join(", "),
        principal.roles().join(", "),
        principal.tier().unwrap_or("none")
    )
}

fn as_json(explanation: &Explanation) -> Value {
    let checks = explanation.checks().iter();
    let checks: Vec<Value> = checks
        .map(|check| json!({"name": check.name, "passed": check.passed, "detail": check.detail}))
        .collect();
    let principal = explanation.principal().map(|principal| {
        json!({
            "issuer": principal.issuer(),
            "subject": &**principal.subject(),
            "tenant": principal.tenant().map(|tenant| tenant.to_string()),
            "scopes": principal.scopes(),
            "roles": principal.roles(),
            "tier": principal.tier(),
        })
    });
    json!({"accepted": principal.is_some(), "checks": checks, "principal": principal})
}

fn parse_tenant(text: &str) -> Result<TenantId, String> {
    TenantId::parse(text).ok_or_else(|| "a tenant is a UUID in lower case with hyphens".to_owned())
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let wrong = || "a time is a number and a unit: 90s, 15m, 1h, 7d; 366d at the most".to_owned();
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(wrong()),
    };
    if !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let ttl = number.checked_mul(seconds).map(Duration::from_secs);
    ttl.filter(|ttl| !ttl.is_zero() && *ttl <= MAX_TTL).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_and_a_unit() {
        for (text, seconds) in [
            ("90s", Some(90)),
            ("15m", Some(900)),
            ("1h", Some(3600)),
            ("7d", Some(604_800)),
            ("366d", Some(31_622_400)),
            ("367d", None),
            ("0s", None),
            ("1", None),
            ("h", None),
            ("+1h", None),
            ("1.5h", None),
            ("-1h", None),
            ("1é", None),
            ("99999999999999999999d", None),
            ("", None),
        ] {
            assert_eq!(parse_ttl(text).ok().map(|ttl| ttl.as_secs()), seconds, "{text}");
        }
    }

    #[test]
    fn data_names_the_data_directory_or_the_identity_directory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert_eq!(identity_directory(path), path.join("identity"));
        assert_eq!(identity_directory(&path.join("identity")), path.join("identity"));
        std::fs::write(path.join(KEY_SET_FILE), "{}").unwrap();
        assert_eq!(identity_directory(path), path);
    }
}
