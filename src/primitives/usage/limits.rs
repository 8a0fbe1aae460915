//! `limits:` of the usage policy: how fast each tenant may record through one process.

use schemars::JsonSchema;
use serde::Deserialize;

use super::MAX_RECORDS;
use crate::primitives::write_rates::{Largest, Speed, Words, default_burst_seconds};

/// In a problem's words.
pub(super) const WORDS: Words = Words { does: "records", things: "records", policy: "usage" };

/// What a burst has room for: 24 MiB are a body of 16, what its records have besides, and some. A call that adds to more sums than fit waits
/// for all of its tenant's burst.
pub(super) const LARGEST: Largest =
    Largest { things: MAX_RECORDS as u64, since: "which is what a call may have", mebibytes: 24 };

/// Records and bytes: both hold.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RecordRateDocument")]
pub struct RateDocument {
    /// The sustained rate: this many records in a second, duplicates among them.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub records_per_second: u64,
    /// And so many bytes: tags and metadata of each record and 512 besides, and 600 for each sum of an hour that a call adds to: one for each
    /// metric, and one for each value of a tag of `group_by`.
    #[schemars(range(min = 1, max = 1_073_741_824))]
    pub bytes_per_second: u64,
    /// What a pause saves up, in seconds of both rates. It has 10,000 records, and 24 MiB.
    #[serde(default = "default_burst_seconds")]
    #[schemars(range(min = 1, max = 60))]
    pub burst_seconds: u64,
}

impl From<&RateDocument> for Speed {
    fn from(of: &RateDocument) -> Self {
        let RateDocument { records_per_second, bytes_per_second, burst_seconds } = *of;
        Self { things_per_second: records_per_second, bytes_per_second, burst_seconds }
    }
}
