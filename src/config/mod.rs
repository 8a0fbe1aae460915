//! `proxy.yaml` and policy documents: read with positions, checked against their schema, every error at once.

mod findings;

pub use findings::{Finding, Findings, pointer_step};
