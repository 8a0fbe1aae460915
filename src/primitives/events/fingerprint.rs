//! What tells an event that was sent again from another one.

use super::Event;
use crate::digest::{first, of_parts};
use crate::key_order::place;

/// What names an event within a tenant.
pub type DedupeKey = [u8; 24];

/// The place that its client's order gives the `id` ([`place`]), and 16 bytes of SHA-256 over topic, `source` and `id`, each
/// behind its length in 8 bytes, big-endian, so that no two triples run together to the same text.
#[must_use]
pub fn dedupe_key(topic: &str, source: &str, id: &str) -> DedupeKey {
    let hash: [u8; 16] = first(of_parts([topic.as_bytes(), source.as_bytes(), id.as_bytes()]).as_ref());
    let mut key = [0; 24];
    let parts = place(id).to_be_bytes().into_iter().chain(hash);
    key.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
    key
}

impl Event {
    /// What another event under the same id differs in: 8 bytes of SHA-256 over `type`, the form of the data and the
    /// data as it came. Not over `time` and the other attributes, which a sender that retries may set anew.
    #[must_use]
    pub fn fingerprint(&self) -> i64 {
        let form = self.data.form().to_be_bytes();
        i64::from_be_bytes(first(of_parts([self.kind.as_bytes(), &form, self.data.bytes()]).as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::primitives::events::Data;

    fn event(kind: &str, data: Data) -> Event {
        let text = Box::<str>::from;
        Event {
            id: text("1"),
            source: text("/s"),
            kind: text(kind),
            key: text("1"),
            id_is_ours: false,
            attributes: Bytes::from_static(b"{}"),
            data,
        }
    }

    /// Written down once: rows of earlier releases hold these.
    #[test]
    fn a_dedupe_key_and_a_fingerprint_never_change() {
        let key = dedupe_key("leads", "/crm", "42");
        assert_eq!(key[..8], *b"42\0\0\0\0\0\0");
        assert_eq!(u128::from_be_bytes(first(&key[8..])), 0x47e0_862e_60b7_2f9e_a840_8e6f_f8b2_48d0);
        let data = Data::Json(Bytes::from_static(b"{\"score\":1}"));
        assert_eq!(event("lead.scored", data).fingerprint(), 7_294_445_981_804_942_434);
    }

    #[test]
    fn parts_do_not_run_together() {
        let keys = [dedupe_key("ab", "c", "d"), dedupe_key("a", "bc", "d"), dedupe_key("a", "b", "cd")];
        assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2]);
    }

    #[test]
    fn other_data_other_form_and_other_type_are_told_apart() {
        let bytes = Bytes::from_static(b"1");
        let prints = [
            event("t", Data::None).fingerprint(),
            event("t", Data::Json(bytes.clone())).fingerprint(),
            event("t", Data::Text(bytes.clone())).fingerprint(),
            event("t", Data::Binary(bytes.clone())).fingerprint(),
            event("u", Data::Json(bytes)).fingerprint(),
            event("t", Data::Json(Bytes::from_static(b"2"))).fingerprint(),
        ];
        let different: std::collections::BTreeSet<_> = prints.iter().collect();
        assert_eq!(different.len(), prints.len());
    }
}
