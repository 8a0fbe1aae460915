//! What can happen to a topic and its groups, and how often it did.

use proptest::prelude::*;
use proptest::sample::Index;

/// The topic's policy, and what happens.
#[derive(Debug, Clone)]
pub struct Case {
    pub max_attempts: u16,
    pub max_outstanding: usize,
    /// Whether the events are of several tenants, each with a share.
    pub has_shares: bool,
    pub steps: Vec<(Step, bool)>,
}

/// One thing that happens; the `bool` beside it says to which group.
#[derive(Debug, Clone)]
pub enum Step {
    /// Events of these keys, each so many positions after the one before.
    Publish(Vec<(u64, i64)>),
    Pull {
        max: usize,
        lease: i64,
        /// How many new events are read at once at the most, and whether reading goes on.
        chunk: usize,
        read_on: bool,
        put_back: Option<Index>,
    },
    Ack(Vec<Pick>),
    Nack(Vec<Pick>, i64),
    Extend(Vec<Pick>, i64),
    Seek(Index),
    /// So many of the first that are dead go to the dead letters.
    Bury(usize),
    /// Events up to this one are not kept any more.
    Drop(Index),
    Wait(i64),
    /// Until just before, at, or just after the next lease or delay ends.
    WaitUntilDue(i64),
    /// The policy is reloaded: attempts, and the bound.
    Reload(u16, usize),
    /// Another sidecar's clock is behind.
    Back(i64),
}

/// A receipt.
#[derive(Debug, Clone)]
pub enum Pick {
    /// One that a consumer of this group still counts on.
    Held(Index),
    /// So many before the last that either group gave.
    Recent(usize),
    /// Any that either group gave.
    Any(Index),
    /// None.
    Text(String),
}

fn picks() -> impl Strategy<Value = Vec<Pick>> {
    let pick = prop_oneof![
        12 => any::<Index>().prop_map(Pick::Held),
        4 => (0_usize..10).prop_map(Pick::Recent),
        3 => any::<Index>().prop_map(Pick::Any),
        1 => "[A-Za-z0-9_-]{0,30}".prop_map(Pick::Text),
    ];
    prop::collection::vec(pick, 1..5)
}

fn step() -> impl Strategy<Value = Step> {
    let put_back = prop_oneof![5 => Just(None), 1 => any::<Index>().prop_map(Some)];
    let chunk = prop_oneof![2 => Just(1000), 1 => 1_usize..4];
    let delay = prop_oneof![Just(0), 1_i64..4000];
    let events = prop::collection::vec((0_u64..4, 1_i64..3), 1..8);
    prop_oneof![
        4 => events.prop_map(Step::Publish),
        8 => (1_usize..7, 1000_i64..4000, chunk, any::<bool>(), put_back).prop_map(
            |(max, lease, chunk, read_on, put_back)| Step::Pull { max, lease, chunk, read_on, put_back }
        ),
        4 => picks().prop_map(Step::Ack),
        4 => (picks(), delay).prop_map(|(picks, delay)| Step::Nack(picks, delay)),
        2 => (picks(), 1000_i64..6000).prop_map(|(picks, lease)| Step::Extend(picks, lease)),
        1 => any::<Index>().prop_map(Step::Seek),
        4 => (1_usize..3).prop_map(Step::Bury),
        1 => any::<Index>().prop_map(Step::Drop),
        3 => (0_i64..2500).prop_map(Step::Wait),
        4 => (-1_i64..2).prop_map(Step::WaitUntilDue),
        1 => (1_u16..5, 2_usize..14).prop_map(|(attempts, outstanding)| Step::Reload(attempts, outstanding)),
        1 => (1_i64..50).prop_map(Step::Back),
    ]
}

pub fn case() -> impl Strategy<Value = Case> {
    let steps = prop::collection::vec((step(), prop::bool::weighted(0.25)), 1..80);
    (1_u16..5, 2_usize..14, any::<bool>(), steps).prop_map(
        |(max_attempts, max_outstanding, has_shares, steps)| Case {
            max_attempts,
            max_outstanding,
            has_shares,
            steps,
        },
    )
}

/// How often what matters happened, over all cases: a test that never gets there proves nothing.
#[derive(Debug, Default)]
pub struct Seen {
    pub delivered: usize,
    pub redelivered: usize,
    pub acked: usize,
    pub nacked: usize,
    pub extended: usize,
    pub stale: usize,
    pub expired_dead: usize,
    pub nacked_dead: usize,
    pub waited_behind: usize,
    pub full: usize,
    pub forgotten: usize,
    pub put_back: usize,
    pub sought: usize,
    pub buried: usize,
    pub buried_in_part: usize,
    /// A pull passed over a tenant's events, or had before.
    pub deferred: usize,
    /// A pull looked at what was passed over.
    pub caught_up: usize,
    pub caught_up_in_part: usize,
}

impl Seen {
    pub fn assert_everything_happened(&self) {
        let counts = [
            self.delivered,
            self.redelivered,
            self.acked,
            self.nacked,
            self.extended,
            self.stale,
            self.expired_dead,
            self.nacked_dead,
            self.waited_behind,
            self.full,
            self.forgotten,
            self.put_back,
            self.sought,
            self.buried,
            self.buried_in_part,
            self.deferred,
            self.caught_up,
            self.caught_up_in_part,
        ];
        assert!(counts.iter().all(|count| *count >= 100), "{self:?}");
    }
}
