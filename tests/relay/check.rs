//! What a reader of committed records must have seen.

use std::collections::HashMap;

use outrigger::primitives::events::relay::Row;

use super::consumer::Seen;

/// Each of the rows once, in its key's order, in its lane, with numbers that have no gap.
pub(crate) fn check(rows: &[&Row], seen: &[Seen]) {
    let mut expected: HashMap<String, &Row> = HashMap::new();
    for row in rows {
        expected.insert(format!("e{}", row.event.position.number()), row);
    }
    let (mut seqs, mut keys): (HashMap<i32, u64>, HashMap<&str, i64>) = (HashMap::new(), HashMap::new());
    for record in seen {
        let row = expected.remove(record.id()).unwrap_or_else(|| panic!("{record:?} came twice, or is none"));
        assert_eq!(record.partition, i32::from(row.lane), "{record:?}");
        assert_eq!(record.key, format!("{}/{}", row.event.tenant, row.event.key));
        assert_eq!(record.value.as_deref().unwrap_or_default(), row.event.data.bytes());
        let seq = seqs.entry(record.partition).or_insert(0);
        *seq += 1;
        assert_eq!(record.headers["outrigger-seq"], seq.to_string(), "{record:?}");
        let position = row.event.position.number();
        let before = keys.insert(&record.key, position);
        assert!(
            before.is_none_or(|before| before < position),
            "{record:?} came after a later one of its key"
        );
    }
    let mut lost: Vec<&String> = expected.keys().collect();
    lost.sort();
    assert!(lost.is_empty(), "{} were lost: {:?}", lost.len(), &lost[..lost.len().min(10)]);
}
