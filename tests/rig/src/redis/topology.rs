//! A cluster's shape, read from `CLUSTER NODES`.

use crate::fleet::NodeState;

/// What a node is to its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes writes.
    Primary,
    /// Follows a primary.
    Replica,
}

/// One of the six, as its peers see it.
#[derive(Clone, Debug)]
pub struct Node {
    /// 0 to 5; what the fault methods take.
    pub index: usize,
    /// `127.0.0.1:port`.
    pub address: String,
    /// Process id, while there is a process.
    pub pid: Option<u32>,
    /// As the peers that run agree on; of a dead primary, before its failover, still `Primary`.
    pub role: Role,
    /// Of the process.
    pub state: NodeState,
    /// The node's id in the cluster.
    pub id: String,
    /// The id of the primary that a replica follows.
    pub primary_id: Option<String>,
    /// Slots that it owns, as inclusive ranges.
    pub slots: Vec<(u16, u16)>,
}

impl Node {
    /// Whether it owns this slot.
    pub fn owns(&self, slot: u16) -> bool {
        self.slots.iter().any(|(first, last)| (*first..=*last).contains(&slot))
    }
}

/// One line of `CLUSTER NODES`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) id: String,
    pub(crate) port: u16,
    pub(crate) is_primary: bool,
    pub(crate) primary_id: Option<String>,
    pub(crate) config_epoch: u64,
    pub(crate) slots: Vec<(u16, u16)>,
}

/// `id ip:port@bus[,hostname] flags primary ping pong config-epoch link slots…` (Redis 7); slots being moved
/// are in brackets and owned by nobody new yet.
pub(crate) fn parse(text: &str) -> Vec<Seen> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Seen> {
    let mut words = line.split_whitespace();
    let (id, address, flags, primary) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let port = address.split('@').next()?.rsplit(':').next()?.parse().ok()?;
    let config_epoch = words.nth(2)?.parse().ok()?;
    let slots = words.skip(1).filter(|word| !word.starts_with('[')).filter_map(parse_range).collect();
    Some(Seen {
        id: id.to_owned(),
        port,
        is_primary: flags.split(',').any(|flag| flag == "master"),
        primary_id: (primary != "-").then(|| primary.to_owned()),
        config_epoch,
        slots,
    })
}

fn parse_range(word: &str) -> Option<(u16, u16)> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    Some((first.parse().ok()?, last.parse().ok()?))
}

/// Of several nodes' views the newest: a promotion or a move raises the config epoch of one primary, and a node
/// that was cut off lags behind.
pub(crate) fn newest(views: Vec<Vec<Seen>>) -> Option<Vec<Seen>> {
    views.into_iter().max_by_key(|view| view.iter().map(|seen| seen.config_epoch).sum::<u64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIEW: &str = "\
07c3 127.0.0.1:17004@27004 slave e7d1 0 1426238317239 4 connected
67ed 127.0.0.1:17002@27002,host master - 0 1426238316232 2 connected 5461-10921 12000
e7d1 127.0.0.1:17001@27001 myself,master - 0 0 1 connected 0-5460 [93-<-292f] [77->-e7d1]
292f 127.0.0.1:17003@27003 master,fail - 1426238318243 1426238318243 3 disconnected
";

    #[test]
    fn a_view_gives_roles_owners_and_epochs() {
        let view = parse(VIEW);
        assert_eq!(view.len(), 4);
        assert_eq!(
            (view[0].port, view[0].is_primary, view[0].primary_id.as_deref()),
            (17004, false, Some("e7d1"))
        );
        assert_eq!(view[1].slots, [(5461, 10921), (12000, 12000)]);
        assert_eq!(view[2].slots, [(0, 5460)]);
        assert!(view[3].is_primary && view[3].slots.is_empty());
        assert_eq!(view.iter().map(|seen| seen.config_epoch).collect::<Vec<_>>(), [4, 2, 1, 3]);
    }

    #[test]
    fn the_view_with_the_higher_epochs_wins() {
        let old = parse(VIEW);
        let mut new = old.clone();
        new[0].config_epoch = 9;
        assert_eq!(newest(vec![old.clone(), new.clone(), old]), Some(new));
    }
}
