//! What the contract says of a consumer group, as plainly as it can be written: every event of the topic as an object
//! of its own, searched through from the beginning each time. Nothing here is shared with the machine.

/// What became of an event in a group.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// The group did not look at it yet.
    New,
    /// The group may deliver it.
    Free,
    /// A consumer has it, since this pull.
    Leased { until: i64, pull: u64, receipt: String },
    /// It was nacked, and is held back.
    Delayed { until: i64 },
    /// It had its last failure, and is not among the dead letters yet.
    Dead { reason: &'static str },
    /// The group has no more to do with it.
    Over,
}

#[derive(Debug, Clone)]
struct Event {
    position: i64,
    key: u64,
    failures: u16,
    fate: Fate,
    /// Its partition was dropped.
    gone: bool,
}

/// A dead event: position, reason, attempts.
pub type Dead = (i64, &'static str, u16);

/// What a call on receipts answers.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub done: usize,
    pub stale: Vec<usize>,
}

/// What a pull answers.
#[derive(Debug, PartialEq, Eq)]
pub struct Pulled {
    /// Position and attempt.
    pub deliveries: Vec<(i64, u16)>,
    pub looked_at_new: usize,
    pub forgotten: usize,
}

/// Leased, delayed, ready, waiting, and the first of them.
pub type Counts = (usize, usize, usize, usize, Option<i64>);

#[derive(Debug, Clone)]
pub struct Group {
    events: Vec<Event>,
    pub position: i64,
    pulls: u64,
    max_attempts: u16,
    max_outstanding: usize,
}

impl Group {
    pub fn new(max_attempts: u16, max_outstanding: usize) -> Self {
        Self { events: Vec::new(), position: 0, pulls: 0, max_attempts, max_outstanding }
    }

    pub fn set_policy(&mut self, max_attempts: u16, max_outstanding: usize) {
        self.max_attempts = max_attempts;
        self.max_outstanding = max_outstanding;
    }

    pub fn publish(&mut self, position: i64, key: u64) {
        self.events.push(Event { position, key, failures: 0, fate: Fate::New, gone: false });
    }

    pub fn drop_through(&mut self, position: i64) {
        for event in self.events.iter_mut().filter(|event| event.position <= position) {
            event.gone = true;
        }
    }

    pub fn outstanding(&self) -> usize {
        self.events.iter().filter(|event| !matches!(event.fate, Fate::New | Fate::Over)).count()
    }

    pub fn counts(&self, now: i64) -> Counts {
        let mut group = self.clone();
        group.max_attempts = u16::MAX;
        group.pass_time(now);
        let mut counts = (0, 0, 0, 0, None);
        for (index, event) in group.events.iter().enumerate() {
            match event.fate {
                Fate::New | Fate::Over | Fate::Dead { .. } => continue,
                Fate::Leased { .. } => counts.0 += 1,
                Fate::Delayed { .. } => counts.1 += 1,
                Fate::Free if !group.is_held(index, u64::MAX) => counts.2 += 1,
                Fate::Free => counts.3 += 1,
            }
            counts.4 = counts.4.or(Some(event.position));
        }
        counts
    }

    /// Whether an earlier event of its key is delayed, or leased by another pull than this.
    fn is_held(&self, index: usize, this_pull: u64) -> bool {
        self.events[..index].iter().any(|earlier| {
            earlier.key == self.events[index].key
                && match earlier.fate {
                    Fate::Leased { pull, .. } => pull != this_pull,
                    Fate::Delayed { .. } => true,
                    Fate::New | Fate::Free | Fate::Dead { .. } | Fate::Over => false,
                }
        })
    }

    /// A failure of its own: an attempt is over, and the later receipts of the key are void.
    fn fail(&mut self, index: usize, reason: &'static str, afterwards: Fate) {
        self.events[index].failures += 1;
        self.events[index].fate = afterwards;
        let key = self.events[index].key;
        for later in &mut self.events[index + 1..] {
            if later.key == key && matches!(later.fate, Fate::Leased { .. }) {
                later.fate = Fate::Free;
            }
        }
        let event = &mut self.events[index];
        if event.failures >= self.max_attempts {
            event.fate = Fate::Dead { reason };
        }
    }

    /// What is dead and not buried.
    pub fn dead(&self) -> Vec<Dead> {
        let dead = |event: &Event| match event.fate {
            Fate::Dead { reason } => Some((event.position, reason, event.failures)),
            _ => None,
        };
        self.events.iter().filter_map(dead).collect()
    }

    /// The first so many that are dead go to the dead letters.
    pub fn bury(&mut self, count: usize) {
        let dead = self.events.iter_mut().filter(|event| matches!(event.fate, Fate::Dead { .. }));
        dead.take(count).for_each(|event| event.fate = Fate::Over);
    }

    /// Leases end one after the other, as time goes.
    fn pass_time(&mut self, now: i64) {
        loop {
            let mut first: Option<(i64, usize)> = None;
            for (index, event) in self.events.iter().enumerate() {
                if let Fate::Leased { until, .. } = event.fate
                    && until <= now
                    && first.is_none_or(|(earliest, _)| until < earliest)
                {
                    first = Some((until, index));
                }
            }
            let Some((_, index)) = first else { break };
            self.fail(index, "expired", Fate::Free);
        }
        for event in &mut self.events {
            if matches!(event.fate, Fate::Delayed { until } if until <= now) {
                event.fate = Fate::Free;
            }
        }
    }

    /// At most `readable` new events are read. The receipts are told afterwards.
    pub fn pull(&mut self, now: i64, max: usize, lease: i64, readable: usize) -> Pulled {
        self.pulls += 1;
        let this_pull = self.pulls;
        self.pass_time(now);
        let leased = |pull| Fate::Leased { until: now + lease, pull, receipt: String::new() };
        let mut pulled = Pulled { deliveries: Vec::new(), forgotten: 0, looked_at_new: 0 };
        let mut redelivered = 0;
        for index in 0..self.events.len() {
            let free = self.events[index].fate == Fate::Free && !self.is_held(index, this_pull);
            if !free || redelivered == max {
                continue;
            }
            redelivered += 1;
            if self.events[index].gone {
                self.events[index].fate = Fate::Over;
                pulled.forgotten += 1;
            } else {
                self.events[index].fate = leased(this_pull);
                pulled.deliveries.push((self.events[index].position, self.events[index].failures + 1));
            }
        }
        if redelivered == max {
            return pulled;
        }
        for index in 0..self.events.len() {
            let event = &self.events[index];
            if event.position <= self.position || event.gone {
                continue;
            }
            let full = self.outstanding() >= self.max_outstanding;
            if full || pulled.deliveries.len() == max || pulled.looked_at_new == readable {
                break;
            }
            self.position = event.position;
            pulled.looked_at_new += 1;
            if self.is_held(index, this_pull) {
                self.events[index].fate = Fate::Free;
            } else {
                self.events[index].fate = leased(this_pull);
                pulled.deliveries.push((self.events[index].position, 1));
            }
        }
        pulled
    }

    /// The last pull had no room for its deliveries from this one on.
    pub fn put_back(&mut self, first: i64) {
        for event in self.events.iter_mut().filter(|event| event.position >= first) {
            if matches!(event.fate, Fate::Leased { pull, .. } if pull == self.pulls) {
                event.fate = Fate::Free;
            }
        }
    }

    /// The last pull gave this receipt.
    pub fn gave(&mut self, position: i64, text: &str) {
        let event = self.events.iter_mut().find(|event| event.position == position).unwrap();
        let Fate::Leased { receipt, .. } = &mut event.fate else { panic!("{position} is not leased") };
        text.clone_into(receipt);
    }

    fn find(&self, text: &str) -> Option<usize> {
        self.events
            .iter()
            .position(|event| matches!(&event.fate, Fate::Leased { receipt, .. } if receipt == text))
    }

    pub fn ack(&mut self, now: i64, receipts: &[Box<str>]) -> Answer {
        self.pass_time(now);
        let mut stale = Vec::new();
        for (place, receipt) in receipts.iter().enumerate() {
            match self.find(receipt) {
                Some(index) => self.events[index].fate = Fate::Over,
                None => stale.push(place),
            }
        }
        Answer { done: receipts.len() - stale.len(), stale }
    }

    /// All of a call at once: of each key its first event failed, the others are held back with it.
    pub fn nack(&mut self, now: i64, receipts: &[Box<str>], delay: i64) -> Answer {
        self.pass_time(now);
        let (mut stale, mut named) = (Vec::new(), Vec::new());
        for (place, receipt) in receipts.iter().enumerate() {
            match self.find(receipt) {
                Some(index) if !named.contains(&index) => named.push(index),
                _ => stale.push(place),
            }
        }
        for index in &named {
            self.events[*index].fate = Fate::Delayed { until: now + delay };
        }
        for index in &named {
            let key = self.events[*index].key;
            if !named.iter().any(|other| other < index && self.events[*other].key == key) {
                self.fail(*index, "nacked", Fate::Delayed { until: now + delay });
            }
        }
        Answer { done: named.len(), stale }
    }

    pub fn extend(&mut self, now: i64, receipts: &[Box<str>], lease: i64) -> Answer {
        self.pass_time(now);
        let mut stale = Vec::new();
        for (place, receipt) in receipts.iter().enumerate() {
            match self.find(receipt).map(|index| &mut self.events[index].fate) {
                Some(Fate::Leased { until, .. }) => *until = (now + lease).max(*until),
                _ => stale.push(place),
            }
        }
        Answer { done: receipts.len() - stale.len(), stale }
    }

    /// Whether it moved: what is dead goes to the dead letters first.
    pub fn seek(&mut self, now: i64, position: i64) -> bool {
        self.pass_time(now);
        if !self.dead().is_empty() {
            return false;
        }
        for event in &mut self.events {
            event.fate = if event.position <= position { Fate::Over } else { Fate::New };
            event.failures = 0;
        }
        self.position = position;
        true
    }
}
