//! What holds for a tenant: what is its own, else what its tier has.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use uuid::Uuid;

use crate::config::{Findings, pointer_step};
use crate::policy::Permit;

/// One for each tier. A tier that is not given here, or that no one knows, gets that of `free`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "TiersOf{T}")]
pub struct TiersDocument<T> {
    /// Tenants without a tier claim, too.
    pub free: T,
    /// Tier `pro`.
    pub pro: Option<T>,
    /// Tier `enterprise`.
    pub enterprise: Option<T>,
}

/// What holds for each tenant.
#[derive(Debug)]
pub(super) struct Tiers<T> {
    free: Arc<T>,
    pro: Arc<T>,
    enterprise: Arc<T>,
    tenants: HashMap<Uuid, Arc<T>>,
}

impl<T> Tiers<T> {
    /// Reads `tiers` and `tenants` at a place of a document, each by `read`, which is told its place and adds what is wrong there. None
    /// where one of the tiers has nothing.
    pub(super) fn read<D>(
        tiers: &TiersDocument<D>,
        tenants: &BTreeMap<String, D>,
        pointer: &str,
        findings: &mut Findings,
        mut read: impl FnMut(&D, &str, &mut Findings) -> Option<T>,
    ) -> Option<Self> {
        let mut tier = |name: &str, of: &D, findings: &mut Findings| {
            read(of, &format!("{pointer}/tiers/{name}"), findings).map(Arc::new)
        };
        let free = tier("free", &tiers.free, findings);
        let pro = tiers.pro.as_ref().map(|of| tier("pro", of, findings));
        let enterprise = tiers.enterprise.as_ref().map(|of| tier("enterprise", of, findings));
        let mut own = HashMap::new();
        for (text, of) in tenants {
            let pointer = format!("{pointer}/tenants{}", pointer_step(text));
            let read = read(of, &pointer, findings);
            match Uuid::try_parse(text).ok().filter(|uuid| uuid.hyphenated().to_string() == *text) {
                Some(tenant) => own.extend(read.map(|of| (tenant, Arc::new(of)))),
                None => findings.add(
                    pointer,
                    "this is not a tenant",
                    "a UUID with hyphens, in lower case, such as 0190c7a8-3c5e-7f00-8000-0000000000a1",
                ),
            }
        }
        let free = free?;
        let pro = pro.unwrap_or_else(|| Some(Arc::clone(&free)))?;
        let enterprise = enterprise.unwrap_or_else(|| Some(Arc::clone(&free)))?;
        Some(Self { free, pro, enterprise, tenants: own })
    }

    /// Of the permit's tenant.
    pub(super) fn of(&self, permit: &Permit) -> &Arc<T> {
        self.of_tenant(permit.tenant().as_uuid(), permit.tier())
    }

    /// Of a tenant of this tier. An unknown tier is `free`, the smallest.
    pub(super) fn of_tenant(&self, tenant: &Uuid, tier: &str) -> &Arc<T> {
        self.tenants.get(tenant).unwrap_or(match tier {
            "pro" => &self.pro,
            "enterprise" => &self.enterprise,
            _ => &self.free,
        })
    }
}
