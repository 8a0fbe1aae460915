//! Which lane an event is in, and so which partition of its Kafka topic.

use std::num::NonZeroU16;

use uuid::Uuid;

/// The lane, from 0, of a tenant's events of this key.
///
/// It is what Kafka's own default partitioner makes of the record's key `<tenant>/<key>`: murmur2 with the seed
/// 0x9747b28c, its sign bit off, modulo the partitions (`org.apache.kafka.common.utils.Utils.murmur2`,
/// `BuiltInPartitioner.partitionForKey`; librdkafka's `murmur2`). So a native producer with that key meets the same
/// partition. It may never change: an event of a key would overtake the earlier ones in another lane. The same holds
/// for a topic's number of lanes while it has events that are not relayed.
#[must_use]
pub fn lane(tenant: Uuid, key: &str, lanes: NonZeroU16) -> u16 {
    let mut record_key = Vec::with_capacity(37 + key.len());
    let mut buffer = Uuid::encode_buffer();
    record_key.extend_from_slice(tenant.hyphenated().encode_lower(&mut buffer).as_bytes());
    record_key.push(b'/');
    record_key.extend_from_slice(key.as_bytes());
    let lane = (murmur2(&record_key) & 0x7fff_ffff) % u32::from(lanes.get());
    u16::try_from(lane).unwrap_or_default()
}

fn murmur2(bytes: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let mut hash = 0x9747_b28c ^ length;
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        let mixed = u32::from_le_bytes(*word).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ (mixed ^ (mixed >> 24)).wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (at, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * at);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn the_hash_is_kafka_s() {
        for (text, expected) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(text.as_bytes()).cast_signed(), expected, "{text}");
        }
    }

    /// Written down once: a change here moves keys between partitions.
    #[test]
    fn a_key_s_lane_never_changes() {
        let tenant = Uuid::from_u128(0x0190_c7a8_3c5e_7f00_8000_0000_0000_00a1);
        let lane = |key, lanes| lane(tenant, key, NonZeroU16::new(lanes).unwrap());
        let pinned: Vec<_> = ["lead-1", "lead-2", "é", "x"].map(|key| (lane(key, 16), lane(key, 7))).into();
        assert_eq!(pinned, [(5, 4), (9, 4), (9, 3), (14, 0)]);
        assert_eq!(lane("lead-1", 1), 0);
    }

    #[test]
    fn keys_spread_over_every_lane() {
        let (tenant, lanes) = (Uuid::from_u128(7), NonZeroU16::new(64).unwrap());
        let mut counts = [0; 64];
        for key in 0..6400 {
            counts[usize::from(lane(tenant, &format!("lead-{key}"), lanes))] += 1;
        }
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(*least >= 60 && *most <= 150, "{least} to {most} of a lane, where 100 are even");
    }
}
