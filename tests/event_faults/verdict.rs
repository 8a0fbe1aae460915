//! What must hold of everything that publishers, readers and consumers saw.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::consumer::{Consumed, Pulled};
use crate::load::Logged;
use crate::publisher::Published;
use crate::reader::Way;

pub struct Verdict {
    pub published: Vec<Published>,
    pub log: Vec<Logged>,
    pub read: Vec<(Way, Vec<String>, u64)>,
    pub consumed: Vec<Consumed>,
}

impl Verdict {
    /// Asserts everything, and says how much there was of it.
    pub fn holds(&self) -> String {
        let place: HashMap<&str, usize> =
            self.log.iter().enumerate().map(|(at, event)| (&*event.id, at)).collect();
        assert_eq!(place.len(), self.log.len(), "an event is in the log twice");
        let maybe_there = self.log_is_what_was_published(&place);
        self.readers_read_the_log();
        let redelivered = self.group_got_the_log(&place);
        self.group_kept_the_order(&place);
        let sum = |of: fn(&Published) -> u64| self.published.iter().map(of).sum::<u64>();
        let consumed = |of: fn(&Consumed) -> u64| self.consumed.iter().map(of).sum::<u64>();
        format!(
            "{} events accepted, {} given up unsure of which {maybe_there} are there, {} given up refused, {} replies of unknown outcome, \
             {} publishes cut; readers resumed {:?} times; {} pulls, {redelivered} events delivered more than once (most attempts {}), \
             {} acknowledgements unsure, {} receipts stale",
            sum(|one| one.acknowledged.len() as u64),
            sum(|one| one.maybe.len() as u64),
            sum(|one| one.refused.len() as u64),
            sum(|one| one.unknown),
            sum(|one| one.cut),
            self.read.iter().map(|(_, _, resumed)| *resumed).collect::<Vec<_>>(),
            consumed(|one| one.pulls.len() as u64),
            self.consumed.iter().map(|one| one.most_attempts).max().unwrap_or(0),
            consumed(|one| one.unsure),
            consumed(|one| one.stale),
        )
    }

    /// All that was acknowledged is there, in the order of its publisher and key; nothing else is but what may be.
    fn log_is_what_was_published(&self, place: &HashMap<&str, usize>) -> usize {
        let mut told: BTreeSet<&str> = BTreeSet::new();
        let mut maybe_there = 0;
        for one in &self.published {
            let mut last: BTreeMap<&str, usize> = BTreeMap::new();
            for (id, key) in &one.acknowledged {
                let at = place.get(&**id).unwrap_or_else(|| panic!("LOST: {id} was acknowledged"));
                let before = last.insert(key, *at);
                assert!(before.is_none_or(|before| before < *at), "{id} of {key} is before an earlier one");
                told.insert(id);
            }
            for id in &one.refused {
                assert!(!place.contains_key(&**id), "{id} is there: it was said that nothing was kept");
            }
            maybe_there += one.maybe.iter().filter(|id| place.contains_key(&***id)).count();
            told.extend(one.maybe.iter().map(|id| &**id));
        }
        for event in &self.log {
            assert!(told.contains(&*event.id), "{} was never published", event.id);
        }
        maybe_there
    }

    /// Each reader read what the log is now, each event once and in order, whatever was cut.
    fn readers_read_the_log(&self) {
        for (way, read, _) in &self.read {
            let expected: Vec<&str> =
                self.log.iter().filter(|event| way.wants(&event.kind)).map(|event| &*event.id).collect();
            let differs = read.iter().zip(&expected).position(|(read, expected)| read != expected);
            let at = differs.unwrap_or(read.len().min(expected.len())).saturating_sub(2);
            assert!(
                differs.is_none() && read.len() == expected.len(),
                "{way:?} read {} events of {}; at {at} {:?} instead of {:?}",
                read.len(),
                expected.len(),
                read.iter().skip(at).take(6).collect::<Vec<_>>(),
                expected.iter().skip(at).take(6).collect::<Vec<_>>(),
            );
        }
    }

    fn pulls(&self) -> impl Iterator<Item = &Pulled> {
        self.consumed.iter().flat_map(|one| &one.pulls)
    }

    /// When an acknowledgement was first sent for each.
    fn ack_sent(&self) -> HashMap<&str, u64> {
        let mut sent: HashMap<&str, u64> = HashMap::new();
        for (id, at) in self.consumed.iter().flat_map(|one| &one.ack_sent) {
            sent.entry(id).and_modify(|first| *first = (*first).min(*at)).or_insert(*at);
        }
        sent
    }

    /// Everything was delivered, and nothing again after an acknowledgement that was answered with "done". Returns how many
    /// were delivered more than once.
    fn group_got_the_log(&self, place: &HashMap<&str, usize>) -> usize {
        let mut acked: HashMap<&str, u64> = HashMap::new();
        for (id, at) in self.consumed.iter().flat_map(|one| &one.acked) {
            acked.entry(id).and_modify(|first| *first = (*first).min(*at)).or_insert(*at);
        }
        let mut times: HashMap<&str, usize> = HashMap::new();
        for pulled in self.pulls() {
            for id in &pulled.ids {
                assert!(place.contains_key(&**id), "{id} was delivered, and is not in the log");
                let done = acked.get(&**id);
                assert!(
                    done.is_none_or(|done| *done > pulled.began),
                    "{id} was delivered again after its acknowledgement"
                );
                *times.entry(id).or_default() += 1;
            }
        }
        let sent = self.ack_sent();
        for event in &self.log {
            assert!(times.contains_key(&*event.id), "LOST: the group never got {}", event.id);
            assert!(sent.contains_key(&*event.id), "the group ended before {} was acknowledged", event.id);
        }
        times.values().filter(|times| **times > 1).count()
    }

    /// Outside the same pull nothing was delivered before an acknowledgement was sent for all that is before it in its key.
    fn group_kept_the_order(&self, place: &HashMap<&str, usize>) {
        let sent = self.ack_sent();
        // Of each key its events in order, each with the latest acknowledgement of those before it.
        let mut of_key: HashMap<&str, Vec<(&str, u64)>> = HashMap::new();
        let mut at_in_key: Vec<usize> = Vec::with_capacity(self.log.len());
        for event in &self.log {
            let of_key = of_key.entry(&event.key).or_default();
            let before = of_key.last().map_or(0, |(id, before)| sent[id].max(*before));
            at_in_key.push(of_key.len());
            of_key.push((&event.id, before));
        }
        for pulled in self.pulls() {
            let together: BTreeSet<&str> = pulled.ids.iter().map(|id| &**id).collect();
            for id in &pulled.ids {
                let at = place[&**id];
                let (of_key, at) = (&of_key[&*self.log[at].key], at_in_key[at]);
                // Backwards, until all before was acknowledged in time.
                for (before, (earlier, _)) in of_key[..at].iter().enumerate().rev() {
                    if of_key[before + 1].1 < pulled.ended {
                        break;
                    }
                    assert!(
                        together.contains(earlier) || sent[earlier] < pulled.ended,
                        "{id} was delivered while {earlier} of its key was not acknowledged"
                    );
                }
            }
        }
    }
}
