//! What `outrigger dev` prints: addresses, a token per tenant, and curl lines that work as pasted.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use crate::app::Addresses;
use crate::identity::dev::{DEMO_TENANTS, DevIdentity};

/// How long the printed tokens live.
const DEMO_TTL: Duration = Duration::from_secs(12 * 3600);

/// The text.
pub(super) fn text(
    identity: &DevIdentity,
    addresses: &Addresses,
    policies: &Path,
    data: &Path,
) -> anyhow::Result<String> {
    let url = addresses.url();
    let mut text = String::new();
    writeln!(text, "outrigger dev: embedded backends, data in {}", data.display())?;
    writeln!(text)?;
    writeln!(text, "  API       {url}")?;
    if let Some(socket) = &addresses.socket {
        writeln!(text, "  socket    {}", socket.display())?;
    }
    writeln!(text, "  admin     http://{}   (/readyz?verbose, /metrics, /config)", addresses.admin)?;
    writeln!(text, "  policies  {}   (edited files are taken at once)", policies.display())?;
    writeln!(text)?;
    writeln!(text, "Two tenants, in variables to paste (the tokens last 12 hours):")?;
    writeln!(text)?;
    for (name, tenant) in DEMO_TENANTS.iter().map(|demo| (demo.name, demo.id)) {
        let token = identity.mint_admin(tenant, "demo", DEMO_TTL)?;
        writeln!(text, "{}={token}", name.to_ascii_uppercase())?;
    }
    writeln!(text, "{}", curl_lines(&url, addresses.socket.as_deref()))?;
    Ok(text)
}

/// The lines after the tokens; `ACME` and `GLOBEX` hold them.
fn curl_lines(url: &str, socket: Option<&Path>) -> String {
    let mut lines = format!(
        r#"
# a rate limit of 100 a minute, burst 20
curl -sS -H "Authorization: Bearer $ACME" -H "Content-Type: application/json" -d '{{"checks":[{{"limit":"api","key":"/leads"}}]}}' {url}/v1/ratelimit/check; echo

# a value in the scoring cache: written and read by one tenant, not there for the other
curl -sS -X PUT -H "Authorization: Bearer $ACME" -H "Content-Type: application/json" -d '{{"score":0.93}}' "{url}/v1/cache/scoring/lead-42?ttl_ms=60000"
curl -sS -i -H "Authorization: Bearer $ACME" {url}/v1/cache/scoring/lead-42; echo
curl -sS -H "Authorization: Bearer $GLOBEX" {url}/v1/cache/scoring/lead-42; echo

# an event, read back, and pulled by a consumer of a group
curl -sS -H "Authorization: Bearer $ACME" -H "Content-Type: application/json" -d '{{"score":0.93}}' "{url}/v1/events/leads?type=lead.scored"; echo
curl -sS -H "Authorization: Bearer $ACME" {url}/v1/events/leads
curl -sS -H "Authorization: Bearer $ACME" -H "Content-Type: application/json" -d '{{"group":"mailer"}}' {url}/v1/events/leads:pull; echo

# a usage record (pasted again it counts no second time), and the day's exact total
curl -sS -H "Authorization: Bearer $ACME" -H "Content-Type: application/json" -d '{{"records":[{{"metric":"voice_minutes","value":2.75,"time":"'$(date -u +%FT00:00:00Z)'","idempotency_key":"call-0042"}}]}}' {url}/v1/usage; echo
curl -sS -H "Authorization: Bearer $ACME" "{url}/v1/usage/voice_minutes?window=day&from=$(date -u +%FT00:00:00Z)"; echo
"#
    );
    if let Some(socket) = socket {
        lines.push_str(&format!(
            r#"
# the same over the unix socket
curl -sS --unix-socket {} -H "Authorization: Bearer $ACME" http://localhost/v1/cache/scoring/lead-42; echo
"#,
            socket.display()
        ));
    }
    lines
}
