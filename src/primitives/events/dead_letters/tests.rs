use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{interval, timeout};

use super::*;
use crate::names::Name;
use crate::primitives::events::audience::Sees;
use crate::primitives::events::bench::{Callers, event};
use crate::primitives::events::groups::{LeaseTime, MaxDeliveries};
use crate::primitives::events::read::{Scan, page};
use crate::primitives::events::{Logged, append_all};
use crate::store::bench::Stores;
use crate::store::sqlite::Adds;
use crate::telemetry::Registry;

const TOPICS: &str = "  leads: {groups: {max_attempts: 1}}\n";
/// Of each tenant, and thus dead in each of its groups.
const EVENTS: usize = 3;
const BOUND: Duration = Duration::from_secs(20);

struct Dying<'s> {
    store: &'s Store,
    callers: Callers,
    undertaker: Arc<Undertaker>,
}

impl<'s> Dying<'s> {
    /// Two tenants have events of the topic.
    async fn new(store: &'s Store) -> Self {
        let callers = Callers::new(TOPICS);
        for tenant in [1, 2] {
            let events = (0..EVENTS).map(|at| event(&at.to_string(), &format!("k{at}"))).collect();
            let batch = Arc::new(vec![callers.batch(tenant, "leads", events).await]);
            let permit = callers.publisher(tenant, "leads").await;
            let appended: Result<(), StoreError> = store
                .run(&permit, 0, move |tx| {
                    let batch = Arc::clone(&batch);
                    Box::pin(async move { append_all(tx, &batch).await.map(drop) })
                })
                .await;
            appended.unwrap();
        }
        let metrics = GivenUpMetrics::new(&Registry::default()).unwrap();
        let undertaker = Undertaker::new(store.clone(), metrics, Tasks::default());
        Self { store, callers, undertaker }
    }

    /// A group of a tenant in which all is dead, and nothing buried.
    async fn group(&self, tenant: u128, name: &str) -> Group {
        let consumer = self.callers.consumer(tenant, "leads").await;
        let group = Group::new(consumer, self.callers.topic("leads"), Name::parse(name).unwrap()).unwrap();
        let dying = group.run(self.store, Adds::Nothing, |group, tx| {
            Box::pin(async move {
                let (mut state, mut row) = group.load(tx).await?;
                let (max, lease) = (MaxDeliveries::new(1000).unwrap(), LeaseTime::new(1000).unwrap());
                let now_ms = std::mem::replace(&mut row.now_ms, 0);
                let pulled = group.pull_in(tx, &mut state, &row, max, lease).await?;
                assert_eq!(pulled.deliveries.len(), EVENTS);
                row.now_ms = now_ms;
                assert!(group.pull_in(tx, &mut state, &row, max, lease).await?.deliveries.is_empty());
                let bytes = state.encode();
                group.store(tx, &state, &bytes).await?;
                Ok(state.dead().count())
            })
        });
        assert_eq!(dying.await.unwrap(), EVENTS);
        group
    }

    fn gave_up(&self, group: &Group) {
        self.undertaker.gave_up(group, GivenUp { letters: 1, left: EVENTS, ..GivenUp::default() });
    }

    /// Everybody's dead letters, once there are so many.
    async fn letters(&self, count: usize) -> Vec<Logged> {
        let reader = self.callers.service("every", crate::primitives::events::READ, "leads.dlq").await;
        let scan = Scan { sees: Sees::Every, ..Scan::new(&reader) };
        let all = async {
            let mut ticks = interval(Duration::from_millis(5));
            loop {
                let found = page(self.store, &reader, &scan).await.unwrap().events;
                if found.len() >= count {
                    return found;
                }
                ticks.tick().await;
            }
        };
        timeout(BOUND, all).await.expect("the dead letters")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_defect_a_group_s_next_call_goes_on_with_its_dead_letters() {
    let stores = Stores::new(4).await;
    for (name, store) in stores.both() {
        let dying = Dying::new(store).await;
        let group = dying.group(1, "g").await;
        dying.undertaker.panics.store(true, Ordering::SeqCst);
        dying.gave_up(&group);
        let failed = async {
            let mut ticks = interval(Duration::from_millis(5));
            while dying.undertaker.panics.load(Ordering::SeqCst) {
                ticks.tick().await;
            }
        };
        timeout(BOUND, failed).await.expect(name);
        dying.gave_up(&group);
        assert_eq!(dying.letters(EVENTS).await.len(), EVENTS, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_take_turns_with_their_dead_letters_however_many_groups_one_has() {
    const GROUPS: usize = 30;
    let stores = Stores::new(4).await;
    for (name, store) in stores.both() {
        let dying = Dying::new(store).await;
        let mut groups = Vec::new();
        for number in 0..GROUPS {
            groups.push(dying.group(1, &format!("g{number}")).await);
        }
        groups.push(dying.group(2, "g").await);
        groups.iter().for_each(|group| dying.gave_up(group));
        let letters = dying.letters((GROUPS + 1) * EVENTS).await;
        let before = letters.iter().take_while(|letter| letter.tenant.as_u128() == 1).count();
        assert!(before <= 2 * EVENTS, "{name}: {before} letters of the other tenant came first");
    }
}
