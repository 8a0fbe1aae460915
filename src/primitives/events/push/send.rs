//! One attempt: the request, and what its answer means.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body_util::Full;
use serde::Deserialize;

use super::circuit::{MAX_PAUSE_MS, retry_after_ms};
use super::signature::{self, Signer};
use super::{Leased, Outcome, Subscription};
use crate::clock::since_1970_ms;
use crate::pools::upstream::{Answer, SendError, Upstream};
use crate::primitives::events::{Logged, cloudevents};

/// How requests name their sender.
const AGENT: HeaderValue = HeaderValue::from_static(concat!("outrigger/", env!("CARGO_PKG_VERSION")));
const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/cloudevents+json");

/// What came of an attempt.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) message_id: Box<str>,
    pub(super) outcome: Outcome,
    pub(super) status: Option<u16>,
    pub(super) at_ms: u64,
    pub(super) duration: Duration,
    /// For how long the tenant's events are kept from the endpoint.
    pub(super) pause_ms: Option<u64>,
}

/// Sends an event, and says what came of it.
pub(super) async fn send(
    upstream: &Upstream,
    subscription: &Subscription,
    signer: &Signer,
    leased: &Leased,
) -> Sent {
    let (at_ms, began) = (since_1970_ms(), Instant::now());
    let message_id = signature::message_id(subscription, &leased.event);
    let mut body = Vec::new();
    cloudevents::write_structured(&mut body, &leased.event.attributes, &leased.event.data, &[]);
    let request = request(&subscription.url, signer, &message_id, at_ms / 1000, body);
    let sent = upstream.send(request, Duration::from_millis(subscription.timeout_ms)).await;
    let duration = began.elapsed();
    let (outcome, status, pause_ms) = match &sent {
        Ok(answer) => {
            let (outcome, pause_ms) = meaning(answer, at_ms);
            (outcome, Some(answer.status.as_u16()), pause_ms)
        }
        Err(error) => (of_error(error), None, None),
    };
    if let Err(error) = &sent {
        tracing::debug!(subscription = %subscription.name, %error, "an event was not delivered");
    }
    Sent { message_id: message_id.into(), outcome, status, at_ms, duration, pause_ms }
}

fn request(
    url: &Uri,
    signer: &Signer,
    message_id: &str,
    timestamp_s: u64,
    body: Vec<u8>,
) -> Request<Full<Bytes>> {
    let timestamp = i64::try_from(timestamp_s).unwrap_or(i64::MAX);
    let signatures = signer.sign(message_id, timestamp, &body);
    let mut request = Request::new(Full::new(Bytes::from(body)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = url.clone();
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, MEDIA_TYPE);
    headers.insert(USER_AGENT, AGENT);
    headers.insert(signature::TIMESTAMP, HeaderValue::from(timestamp));
    // Both are base64 with a few separators, so that nothing is left out here.
    for (name, value) in [(signature::ID, message_id), (signature::SIGNATURE, &signatures)] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    request
}

fn meaning(answer: &Answer, now_ms: u64) -> (Outcome, Option<u64>) {
    let asked = retry_after(&answer.headers, now_ms);
    match answer.status {
        status if status.is_success() => (Outcome::Delivered, None),
        status if status.is_redirection() => (Outcome::Redirected, None),
        StatusCode::GONE => (Outcome::Gone, Some(MAX_PAUSE_MS)),
        StatusCode::TOO_MANY_REQUESTS => (Outcome::Throttled, asked),
        StatusCode::SERVICE_UNAVAILABLE if asked.is_some() => (Outcome::Throttled, asked),
        StatusCode::REQUEST_TIMEOUT => (Outcome::Failed, None),
        status if status.is_client_error() => (Outcome::Rejected, None),
        _ => (Outcome::Failed, None),
    }
}

fn retry_after(headers: &HeaderMap, now_ms: u64) -> Option<u64> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?;
    retry_after_ms(value, now_ms).map(|wait_ms| wait_ms.min(MAX_PAUSE_MS))
}

fn of_error(error: &SendError) -> Outcome {
    match error {
        SendError::Unreachable(_) => Outcome::Unreachable,
        SendError::Refused => Outcome::AddressRefused,
        SendError::Tls(_) => Outcome::Tls,
        SendError::Timeout(_) => Outcome::TimedOut,
        SendError::Broken(_) => Outcome::BrokenOff,
    }
}

/// An event's `id`, for the list of attempts.
pub(super) fn event_id(event: &Logged) -> Box<str> {
    #[derive(Deserialize)]
    struct Id {
        id: Box<str>,
    }
    // What was kept is JSON with an id; if ever not, the attempt is listed without one.
    serde_json::from_slice::<Id>(&event.attributes).map_or_else(|_| Box::default(), |found| found.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_s_status_says_what_comes_next() {
        use Outcome::{Delivered, Failed, Gone, Redirected, Rejected, Throttled};
        for (status, retry_after, expected) in [
            (200, None, (Delivered, None)),
            (202, Some("9"), (Delivered, None)),
            (204, None, (Delivered, None)),
            (301, None, (Redirected, None)),
            (307, Some("9"), (Redirected, None)),
            (400, None, (Rejected, None)),
            (404, Some("9"), (Rejected, None)),
            (410, None, (Gone, Some(3_600_000))),
            (429, None, (Throttled, None)),
            (429, Some("9"), (Throttled, Some(9000))),
            (429, Some("86400"), (Throttled, Some(3_600_000))),
            (500, Some("9"), (Failed, None)),
            (503, None, (Failed, None)),
            (503, Some("9"), (Throttled, Some(9000))),
            (503, Some("soon"), (Failed, None)),
            (599, None, (Failed, None)),
        ] {
            let mut answer =
                Answer { status: StatusCode::from_u16(status).unwrap(), headers: HeaderMap::new() };
            if let Some(value) = retry_after {
                answer.headers.insert(RETRY_AFTER, value.parse().unwrap());
            }
            assert_eq!(meaning(&answer, 0), expected, "{status} {retry_after:?}");
        }
    }
}
