//! Usage: points counted once, and exact totals of them.

mod amount;

pub use amount::{Amount, AmountError, Sum};
