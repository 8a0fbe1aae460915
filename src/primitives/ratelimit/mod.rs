//! ratelimit

use crate::policy::{Action, Kind};
use crate::primitives::Primitive;

/// The registry row.
pub const PRIMITIVE: Primitive = Primitive {
    name: "ratelimit",
    actions: ACTIONS,
    config_schema: |_| schemars::json_schema!({"type": "object"}),
    policy: Kind {
        name: "ratelimits",
        schema: |_| schemars::json_schema!({"type": "object"}),
        load: |_, _, _| {},
    },
    migrations: &[],
    build: |_, _| Ok(Vec::new()),
};

/// Every action.
pub const ACTIONS: &[Action] = &[];
