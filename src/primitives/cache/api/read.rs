//! `GET` and `HEAD` of one value.

use std::time::{Duration, Instant};

use http::header::{AGE, ETAG, HeaderValue};
use http::{Method, StatusCode};

use super::{Api, OUTRIGGER_CACHE, OUTRIGGER_FILL_LEASE, Place, version};
use crate::clock;
use crate::error::ErrorKind;
use crate::http::{Call, Problem, Reply};
use crate::primitives::cache::etag::{Conditions, MalformedCondition, Verdict};
use crate::primitives::cache::key::Address;
use crate::primitives::cache::lease::{self, LeaseToken, Read};
use crate::primitives::cache::{Found, Lookup, READ, Tier};

/// The longest wait that a caller may ask for.
const MAX_WAIT_MS: u64 = 60_000;
/// What is left of a call's time for its reply when a wait ends.
const REPLY_MARGIN: Duration = Duration::from_millis(50);

pub(super) async fn get(api: &Api, call: Box<Call>) -> Result<Reply, Problem> {
    call.query.expect_only(&["version", "wait_ms"])?;
    let place = Place::of(&call, READ)?;
    let address = place.address(&call.key_param("key")?, version(&call)?);
    let conditions = conditions(&call)?;
    let until = wait_until(&call)?;
    if let Some(found) = api.backend.cached(&address) {
        return reply(api, &found, &conditions);
    }
    // Boxed, so that a hit does not carry the room for it.
    match Box::pin(look_up(api, &call, &place, &address, until)).await {
        Ok(Read::Found(found)) => reply(api, &found, &conditions),
        Ok(Read::Fill(token)) => Err(miss(api, &conditions, Some(&token))),
        Ok(Read::Wait) => Err(miss(api, &conditions, None)),
        Err(problem) => {
            api.metrics.lookups_failed.inc();
            Err(problem)
        }
    }
}

async fn look_up(
    api: &Api,
    call: &Call,
    place: &Place,
    address: &Address,
    until: Option<Instant>,
) -> Result<Read, Problem> {
    let (rules, budget) = (&place.rules, api.budget(call));
    if let Lookup::Found(found) = api.backend.lookup(address, rules, budget).await? {
        return Ok(Read::Found(found));
    }
    match rules.fill_lease_ms {
        // Who only looks at the head will not fill.
        Some(lease_ms) if call.method != Method::HEAD => {
            let read = lease::read(&*api.backend, address, rules, lease_ms, until, budget).await?;
            match &read {
                Read::Fill(_) => api.metrics.leases_granted.inc(),
                Read::Wait => api.metrics.leases_held.inc(),
                Read::Found(_) => {}
            }
            Ok(read)
        }
        _ => Ok(Read::Wait),
    }
}

fn conditions(call: &Call) -> Result<Conditions, Problem> {
    Conditions::from_headers(&call.headers)
        .map_err(|error: MalformedCondition| Problem::new(ErrorKind::Malformed, error.to_string()))
}

/// Until when a caller that asked with `wait_ms` waits: never to the end of the call's time.
fn wait_until(call: &Call) -> Result<Option<Instant>, Problem> {
    let Some(wait_ms) = call.query.get::<u64>("wait_ms", "an integer, in milliseconds")? else {
        return Ok(None);
    };
    if wait_ms > MAX_WAIT_MS {
        return Err(Problem::new(ErrorKind::Invalid, "a query parameter is out of its bounds")
            .with_field("?wait_ms", format!("at most {MAX_WAIT_MS}")));
    }
    let now = Instant::now();
    let last = call.deadline.instant().checked_sub(REPLY_MARGIN).unwrap_or(now);
    Ok(Some((now + Duration::from_millis(wait_ms)).min(last)))
}

fn reply(api: &Api, found: &Found, conditions: &Conditions) -> Result<Reply, Problem> {
    api.metrics.hit(found.tier);
    let stored = &found.stored;
    let status = match conditions.judge(Some(&stored.etag)) {
        Verdict::Holds => StatusCode::OK,
        Verdict::NotModified => StatusCode::NOT_MODIFIED,
        Verdict::Mismatch => {
            return Err(Problem::new(
                ErrorKind::PreconditionFailed,
                "the current value is not the one that `If-Match` asks for",
            ));
        }
    };
    let age = clock::since_1970_ms().saturating_sub(stored.written_at_ms) / 1000;
    let tier = match found.tier {
        Tier::L1 => HeaderValue::from_static("l1"),
        Tier::L2 => HeaderValue::from_static("l2"),
        Tier::Stale => HeaderValue::from_static("stale"),
    };
    let mut reply = Reply::new(status);
    if status == StatusCode::OK {
        reply = reply.with_typed_body(stored.content_type.clone(), stored.body.clone());
    }
    Ok(reply
        .with_header(ETAG, stored.etag_header.clone())
        .with_header(AGE, age_header(age))
        .with_header(OUTRIGGER_CACHE, tier))
}

/// Most hits are seconds old, and need no text made.
fn age_header(age_s: u64) -> HeaderValue {
    const SMALL: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    let small = usize::try_from(age_s).ok().and_then(|age_s| SMALL.get(age_s));
    small.map_or_else(|| HeaderValue::from(age_s), |text| HeaderValue::from_static(text))
}

fn miss(api: &Api, conditions: &Conditions, lease: Option<&LeaseToken>) -> Problem {
    api.metrics.misses.inc();
    if conditions.if_match.is_some() && lease.is_none() {
        return Problem::new(ErrorKind::PreconditionFailed, "there is no value, and `If-Match` asks for one");
    }
    let Some(lease) = lease else {
        return Problem::new(ErrorKind::NotFound, "nothing is cached under this key and version");
    };
    let problem = Problem::new(
        ErrorKind::NotFound,
        "nothing is cached under this key and version: fill it with a PUT that carries `Outrigger-Fill-Lease`, or give the lease up with a DELETE that does",
    );
    match HeaderValue::from_str(lease.as_str()) {
        Ok(value) => problem.with_header(OUTRIGGER_FILL_LEASE, value),
        Err(_) => problem,
    }
}
