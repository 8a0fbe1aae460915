//! `limits:` of the events policy: how fast each tenant may publish through one process.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::primitives::write_rates::{Largest, Speed, Words, default_burst_seconds};

/// In a problem's words.
pub(super) const WORDS: Words = Words { does: "publishes", things: "events", policy: "events" };

/// What a burst has room for, where topics take so many events in a call: 10 MiB are a body of 8, what 1,000 events have besides, and some.
pub(super) const fn largest(max_batch: u64) -> Largest {
    Largest { things: max_batch, since: "the topics' `max_batch`", mebibytes: 10 }
}

/// Events and bytes: both hold.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "PublishRateDocument")]
pub struct RateDocument {
    /// The sustained rate: this many events in a second, duplicates among them.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub events_per_second: u64,
    /// And so many bytes: attributes, data and key of each, and 256 besides.
    #[schemars(range(min = 1, max = 1_073_741_824))]
    pub bytes_per_second: u64,
    /// What a pause saves up, in seconds of both rates. It has a topic's `max_batch`, and 10 MiB.
    #[serde(default = "default_burst_seconds")]
    #[schemars(range(min = 1, max = 60))]
    pub burst_seconds: u64,
}

impl From<&RateDocument> for Speed {
    fn from(of: &RateDocument) -> Self {
        let RateDocument { events_per_second, bytes_per_second, burst_seconds } = *of;
        Self { things_per_second: events_per_second, bytes_per_second, burst_seconds }
    }
}
