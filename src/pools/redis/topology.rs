//! Which node owns which slot: the answer to CLUSTER SLOTS, and the table made of it.

use std::sync::Arc;

use redis::Value;

use super::connect::Address;
use super::node::Node;
use super::slot::{SLOTS, Slot};

const NOBODY: u16 = u16::MAX;

/// The shape of a cluster as one node sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct View {
    /// `cluster_current_epoch`: a node that was cut off has an older one.
    pub(super) epoch: u64,
    /// `cluster_state`.
    pub(super) serves: bool,
    /// First slot, last slot, their primary.
    pub(super) ranges: Vec<(u16, u16, Address)>,
    /// Each replica that has not failed, with its primary.
    pub(super) replicas: Vec<Replica>,
}

/// A replica, ordered by where it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Replica {
    pub(super) address: Address,
    pub(super) of: Address,
}

impl View {
    /// From the answers of the node at `from` to CLUSTER INFO and CLUSTER SLOTS.
    pub(super) fn parse(info: &Value, slots: &Value, from: &Address) -> Option<Self> {
        let info = text(info)?;
        let field = |name| info.lines().find_map(|line| line.trim_end().strip_prefix(name));
        let mut view = Self {
            epoch: field("cluster_current_epoch:")?.parse().ok()?,
            serves: field("cluster_state:") == Some("ok"),
            ..Self::default()
        };
        let Value::Array(ranges) = slots else { return None };
        for range in ranges {
            let Value::Array(parts) = range else { return None };
            let [Value::Int(first), Value::Int(last), primary, replicas @ ..] = parts.as_slice() else {
                return None;
            };
            let bounds = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
            if usize::from(bounds.1) >= SLOTS {
                return None;
            }
            let of = node_address(primary, from)?;
            let addresses = replicas.iter().filter_map(|replica| node_address(replica, from));
            view.replicas.extend(addresses.map(|address| Replica { address, of: of.clone() }));
            view.ranges.push((bounds.0, bounds.1, of));
        }
        view.ranges.sort();
        view.replicas.sort();
        view.replicas.dedup();
        Some(view)
    }

    /// How many replicas that have not failed this primary has; `None` where it owns no slot.
    pub(super) fn replicas_of(&self, primary: &Address) -> Option<usize> {
        self.ranges
            .iter()
            .any(|(_, _, owner)| owner == primary)
            .then(|| self.replicas.iter().filter(|replica| replica.of == *primary).count())
    }

    /// How many primaries have none.
    pub(super) fn unreplicated(&self) -> usize {
        self.primaries().iter().filter(|primary| self.replicas_of(primary) == Some(0)).count()
    }

    /// Every primary that owns a slot, once, in the order of their addresses.
    pub(super) fn primaries(&self) -> Vec<Address> {
        let mut primaries: Vec<_> = self.ranges.iter().map(|(_, _, primary)| primary.clone()).collect();
        primaries.sort();
        primaries.dedup();
        primaries
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text.clone()),
        Value::Nil => Some(String::new()),
        _ => None,
    }
}

/// `host port id …`; a node without a known host is where the one is that was asked.
fn node_address(node: &Value, from: &Address) -> Option<Address> {
    let Value::Array(parts) = node else { return None };
    let [host, Value::Int(port), ..] = parts.as_slice() else { return None };
    let port = u16::try_from(*port).ok().filter(|port| *port != 0)?;
    Some(from.sibling(&text(host)?, port))
}

/// The slot table that calls are routed by.
pub(super) struct Table {
    owners: Box<[u16]>,
    pub(super) primaries: Vec<Arc<Node>>,
    pub(super) view: View,
    /// Whether any node has ever answered.
    pub(super) known: bool,
}

impl Table {
    /// Before the first answer.
    pub(super) fn unknown() -> Self {
        Self {
            owners: vec![NOBODY; SLOTS].into(),
            primaries: Vec::new(),
            view: View::default(),
            known: false,
        }
    }

    /// `node` gives the node of an address.
    pub(super) fn of(view: View, node: impl Fn(&Address) -> Arc<Node>) -> Self {
        let addresses = view.primaries();
        let mut owners = vec![NOBODY; SLOTS].into_boxed_slice();
        for (first, last, primary) in &view.ranges {
            let position = addresses.binary_search(primary).ok().and_then(|index| u16::try_from(index).ok());
            if let Some(range) = owners.get_mut(usize::from(*first)..=usize::from(*last)) {
                range.fill(position.unwrap_or(NOBODY));
            }
        }
        Self { owners, primaries: addresses.iter().map(node).collect(), view, known: true }
    }

    /// The primary of a slot.
    pub(super) fn owner(&self, slot: Slot) -> Option<&Arc<Node>> {
        self.owners.get(slot.index()).and_then(|owner| self.primaries.get(usize::from(*owner)))
    }

    /// How many slots have no owner.
    pub(super) fn unowned(&self) -> usize {
        self.owners.iter().filter(|owner| **owner == NOBODY).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn node(host: Value, port: i64) -> Value {
        Value::Array(vec![host, Value::Int(port), bulk("id"), Value::Array(Vec::new())])
    }

    #[test]
    fn a_view_is_read_from_two_answers() {
        let from = Address::new("10.0.0.9", 7000);
        let info = bulk("cluster_state:ok\r\ncluster_slots_assigned:16384\r\ncluster_current_epoch:6\r\n");
        let slots = Value::Array(vec![
            Value::Array(vec![
                Value::Int(8192),
                Value::Int(16_383),
                node(bulk(""), 7001),
                node(bulk("10.0.0.3"), 7003),
            ]),
            Value::Array(vec![Value::Int(0), Value::Int(8191), node(Value::Nil, 7000)]),
        ]);
        let view = View::parse(&info, &slots, &from).unwrap();
        assert_eq!((view.epoch, view.serves), (6, true));
        let (first, second) = (Address::new("10.0.0.9", 7000), Address::new("10.0.0.9", 7001));
        assert_eq!(view.ranges, [(0, 8191, first.clone()), (8192, 16_383, second.clone())]);
        assert_eq!(view.replicas, [Replica { address: Address::new("10.0.0.3", 7003), of: second.clone() }]);
        assert_eq!((view.replicas_of(&first), view.replicas_of(&second)), (Some(0), Some(1)));
        assert_eq!((view.replicas_of(&Address::new("10.0.0.3", 7003)), view.unreplicated()), (None, 1));
        assert_eq!(view.primaries(), [first, second]);
    }

    #[test]
    fn an_answer_that_makes_no_sense_is_none() {
        let from = Address::new("10.0.0.9", 7000);
        let info = bulk("cluster_state:ok\r\ncluster_current_epoch:6\r\n");
        let beyond = Value::Array(vec![Value::Int(0), Value::Int(20_000), node(bulk("a"), 1)]);
        for slots in [Value::Nil, Value::Array(vec![Value::Nil]), Value::Array(vec![beyond])] {
            assert_eq!(View::parse(&info, &slots, &from), None, "{slots:?}");
        }
        assert_eq!(View::parse(&bulk("cluster_state:ok"), &Value::Array(Vec::new()), &from), None);
    }
}
