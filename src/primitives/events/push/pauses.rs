//! Which tenants' events an endpoint asked to be spared of, and until when.

use std::collections::HashMap;

use uuid::Uuid;

/// The pauses of one endpoint: a time for each tenant, kept until an event of it was delivered after that.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    until_ms: HashMap<Uuid, u64>,
}

impl Pauses {
    /// The endpoint asked to be left alone for so long. Whether it is the first time since a tenant's event was delivered: the
    /// later ones say nothing new of the endpoint.
    pub(super) fn begin(&mut self, tenant: Uuid, now_ms: u64, pause_ms: u64) -> bool {
        let until_ms = now_ms.saturating_add(pause_ms);
        let earlier = self.until_ms.get(&tenant).copied();
        self.until_ms.insert(tenant, until_ms.max(earlier.unwrap_or(0)));
        earlier.is_none()
    }

    /// An event of the tenant's was delivered. What began before its pause does not end it.
    pub(super) fn succeeded(&mut self, tenant: Uuid, now_ms: u64) {
        if self.until_ms(tenant, now_ms).is_none() {
            self.until_ms.remove(&tenant);
        }
    }

    /// Until when nothing of the tenant's is sent; none where it may be.
    pub(super) fn until_ms(&self, tenant: Uuid, now_ms: u64) -> Option<u64> {
        self.until_ms.get(&tenant).copied().filter(|until_ms| *until_ms > now_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_one_tenant_s_and_ends_by_its_time_alone() {
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut pauses = Pauses::default();
        assert!(pauses.begin(a, 0, 10_000));
        assert!(!pauses.begin(a, 0, 5_000), "a second answer of the same kind");
        assert_eq!((pauses.until_ms(a, 9_999), pauses.until_ms(b, 0)), (Some(10_000), None));
        pauses.succeeded(a, 100);
        assert_eq!(pauses.until_ms(a, 101), Some(10_000), "what was sent before");
        assert_eq!(pauses.until_ms(a, 10_000), None);
        assert!(!pauses.begin(a, 10_000, 1_000), "it never succeeded");
        pauses.succeeded(a, 11_000);
        assert!(pauses.begin(a, 11_000, 1_000));
    }
}
