//! Events sent again by an operator's command.

use std::collections::BTreeSet;
use std::sync::Arc;

use uuid::Uuid;

use super::{Line, StoreDeliveries, Subscription};
use crate::policy::PolicySource;
use crate::primitives::events::{GroupError, ReadFrom, postgres};
use crate::store::{Reach, Store, StoreError, Tx};

/// Has a subscription's events from a time on sent again: those of one tenant, or of all that it is for. How many tenants.
pub async fn replay(
    store: &Store,
    policies: PolicySource,
    subscription: &Arc<Subscription>,
    tenant: Option<Uuid>,
    from_ms: i64,
) -> Result<usize, GroupError> {
    let deliveries = StoreDeliveries::new(store.clone(), policies, None);
    let mut tenants: BTreeSet<Uuid> = match tenant {
        Some(tenant) => [tenant].into(),
        None => deliveries.tenants(&subscription.topic).await?,
    };
    tenants.retain(|tenant| subscription.tenants.includes(*tenant));
    for tenant in &tenants {
        let line = Line { subscription: Arc::clone(subscription), tenant: *tenant };
        deliveries.group(&line).await?.seek(store, ReadFrom::Time(from_ms)).await?;
    }
    tell(store, subscription).await?;
    Ok(tenants.len())
}

/// Has processes look at all of the subscription's groups again.
async fn tell(store: &Store, subscription: &Subscription) -> Result<(), GroupError> {
    let name = subscription.name.clone();
    let told: Result<(), StoreError> = store
        .run(Reach::nobody(), 0, move |tx| {
            let name = name.clone();
            Box::pin(async move {
                match tx {
                    Tx::Postgres(tx) => postgres::replayed(tx, name.as_str()).await,
                    Tx::Sqlite(_) => Ok(()),
                }
            })
        })
        .await;
    Ok(told?)
}

/// Has the events of one key of a tenant, from a time on, sent again; how many. What is on its way of that key is sent again
/// too, and other keys go on.
pub async fn replay_key(
    store: &Store,
    policies: PolicySource,
    subscription: &Arc<Subscription>,
    (tenant, key): (Uuid, &str),
    from_ms: i64,
) -> Result<usize, GroupError> {
    let line = Line { subscription: Arc::clone(subscription), tenant };
    let group = StoreDeliveries::new(store.clone(), policies, None).group(&line).await?;
    let events = group.redeliver(store, key, from_ms).await?;
    tell(store, subscription).await?;
    Ok(events)
}
