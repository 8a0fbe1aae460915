//! Usage: points counted once, and exact totals of them.

mod amount;
#[cfg(test)]
mod conformance;
mod count;
mod day;
mod group;
mod key;
mod policy;
mod postgres;
mod read;
mod record;
mod rollup;
mod sqlite;
mod window;

pub use amount::{Amount, AmountError, Sum};
pub use count::{Call, Days, count};
pub use day::Day;
pub use group::{Known, Settled, Verdict, settle};
pub use key::{PointKey, fingerprint};
pub use policy::{KIND, Metric, MetricDocument, UsageDocument, UsagePolicy};
pub use read::{ReadError, ReadPoint, SumOf, SumRow, Sums, fill, read};
pub use record::{AcceptWindow, Checks, MAX_RECORDS, Point, Record, Records, Wrong};
pub use rollup::{Added, Rollup, SumKey};
pub use window::{Range, RangeError, Source, Window};
