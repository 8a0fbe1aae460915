//! The log in SQLite: one writer, so that rows appear in the order of their ids.

mod append;
mod groups;
mod old;
mod push;
mod read;

pub(super) use append::{insert, take_ids};
pub(super) use groups::{create as create_group, load as load_group, store as store_group};
pub(super) use old::drop_old;
pub(super) use push::{begin_subscription, keep_attempts, tenants_with_events};
pub(super) use read::{at, first_after, horizon, page, readable, span};
