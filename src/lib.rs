//! Outrigger: a data-access sidecar.
//!
//! One process beside each application pod. It verifies the caller's token, decides what that tenant
//! may do, and carries the call to the backing primitive. `docs/ARCHITECTURE.md` says where things are.

pub mod admin;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod digest;
pub mod error;
pub mod fairness;
pub mod http;
pub mod identity;
pub mod key_order;
pub mod leases;
pub mod names;
pub mod policy;
pub mod pools;
pub mod primitives;
pub mod rfc3339;
pub mod store;
pub mod tasks;
pub mod telemetry;
pub mod tls;
