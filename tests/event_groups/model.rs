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
    has_shares: bool,
    /// Tenants whose events are passed over, whose turn is next first.
    pub deferred: Vec<u64>,
    new_first: bool,
}

/// Whose the events of a key are, where they are of several tenants.
pub fn tenant_of(key: u64) -> u64 {
    key % 3 + 1
}

/// How a store reads.
#[derive(Debug, Clone, Copy)]
pub struct Read {
    /// So many events at once at the most.
    pub chunk: usize,
    /// Whether reading goes on, and leaves out who is deferred.
    pub on: bool,
}

impl Group {
    pub fn new(max_attempts: u16, max_outstanding: usize, has_shares: bool) -> Self {
        Self {
            events: Vec::new(),
            position: 0,
            pulls: 0,
            max_attempts,
            max_outstanding,
            has_shares,
            deferred: Vec::new(),
            new_first: false,
        }
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

    /// The receipts are told afterwards.
    pub fn pull(&mut self, now: i64, max: usize, lease: i64, read: Read) -> Pulled {
        self.pulls += 1;
        let this_pull = self.pulls;
        self.pass_time(now);
        let until = now + lease;
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
                self.deliver(index, until, &mut pulled);
            }
        }
        if redelivered == max {
            return pulled;
        }
        if self.new_first || self.deferred.is_empty() {
            self.take_new(max, until, read, &mut pulled);
            self.take_behind(max, until, read, &mut pulled);
        } else {
            self.take_behind(max, until, read, &mut pulled);
            self.take_new(max, until, read, &mut pulled);
        }
        pulled.deliveries.sort_unstable();
        pulled
    }

    fn deliver(&mut self, index: usize, until: i64, pulled: &mut Pulled) {
        let event = &mut self.events[index];
        event.fate = Fate::Leased { until, pull: self.pulls, receipt: String::new() };
        pulled.deliveries.push((event.position, event.failures + 1));
    }

    fn look_at(&mut self, index: usize, until: i64, pulled: &mut Pulled) {
        pulled.looked_at_new += 1;
        if self.is_held(index, self.pulls) {
            self.events[index].fate = Fate::Free;
        } else {
            self.deliver(index, until, pulled);
        }
    }

    fn room(&self) -> usize {
        self.max_outstanding.saturating_sub(self.outstanding())
    }

    /// How many more of a tenant's events may go in: it is to have no more than there is room beside it.
    fn share(&self, tenant: u64) -> usize {
        if !self.has_shares {
            return self.room();
        }
        let is_own = |event: &&Event| tenant_of(event.key) == tenant;
        let own = self.events.iter().filter(is_own);
        let own = own.filter(|event| !matches!(event.fate, Fate::New | Fate::Over)).count();
        (0..).take_while(|more| own + more < self.room().saturating_sub(*more)).count()
    }

    /// New events that are kept, in the order of the log.
    fn unseen(&self, wanted: impl Fn(&Event) -> bool) -> Vec<usize> {
        let is_new = |event: &Event| event.fate == Fate::New && !event.gone && wanted(event);
        (0..self.events.len()).filter(|index| is_new(&self.events[*index])).collect()
    }

    fn take_new(&mut self, max: usize, until: i64, read: Read, pulled: &mut Pulled) {
        loop {
            let wanted = self.room().min(max - pulled.deliveries.len());
            let left_out = if read.on { self.deferred.clone() } else { Vec::new() };
            let position = self.position;
            let mut chunk = self.unseen(|event| {
                event.position > position && !(self.has_shares && left_out.contains(&tenant_of(event.key)))
            });
            chunk.truncate(read.chunk.min(wanted));
            for index in &chunk {
                let (position, tenant) = (self.events[*index].position, tenant_of(self.events[*index].key));
                let is_deferred = self.has_shares && self.deferred.contains(&tenant);
                if !is_deferred && self.share(tenant) > 0 {
                    self.look_at(*index, until, pulled);
                    self.new_first = false;
                } else if !is_deferred {
                    self.deferred.push(tenant);
                }
                self.position = position;
            }
            if chunk.is_empty() || !read.on {
                break;
            }
        }
    }

    fn take_behind(&mut self, max: usize, until: i64, read: Read, pulled: &mut Pulled) {
        for tenant in self.deferred.clone() {
            let usable = self.room().min(max - pulled.deliveries.len());
            let wanted = self.share(tenant).min(usable);
            if wanted == 0 {
                continue;
            }
            let position = self.position;
            let mut found = self.unseen(|event| event.position <= position && tenant_of(event.key) == tenant);
            found.truncate(read.chunk.min(wanted));
            for index in &found {
                self.look_at(*index, until, pulled);
            }
            self.deferred.retain(|deferred| *deferred != tenant);
            if found.len() == wanted || found.len() == read.chunk {
                self.deferred.push(tenant);
            }
            self.new_first = !self.deferred.is_empty() && (self.new_first || !found.is_empty());
        }
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
        self.deferred.clear();
        self.new_first = false;
        true
    }
}
