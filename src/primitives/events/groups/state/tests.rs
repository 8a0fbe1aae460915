use proptest::prelude::*;

use super::*;

const EXAMPLE: &[u8] = &[
    2, 0, 0, 0, 7, // version, mark
    9, // epoch
    0xd8, 0x04, // position 300
    0, 0, // no tenants, none deferred
    4, // entries
    0b1001, 0x64, 1, 2, 3, 4, 5, 6, 7, 8, 2, 0x80, 0x01, 0,
    0, // 200, 2 failures, until 64, epoch 9, its first
    0b0101, 1, 0, 0, 1, // 201, same key, until 64, epoch 9, its second
    0b0100, 0x09, // 210, same key, free
    0b0010, 0x5a, 0, 0, 0, 0, 0, 0, 0, 5, 0x20, // 300, delayed until 80
];

fn example() -> State {
    let key = KeyHash(0x0102_0304_0506_0708);
    let entry = |position, key, failures, phase| Entry {
        position: Position::new(position),
        key,
        tenant: Uuid::nil(),
        failures,
        phase,
    };
    State {
        epoch: 9,
        outstanding: vec![
            entry(200, key, 2, Phase::Leased { until_ms: 64, epoch: 9, number: 0 }),
            entry(201, key, 0, Phase::Leased { until_ms: 64, epoch: 9, number: 1 }),
            entry(210, key, 0, Phase::Free),
            entry(300, KeyHash(5), 0, Phase::Delayed { until_ms: 80 }),
        ],
        ..State::new(Position::new(300), 7)
    }
}

const OF_TWO: &[u8] = &[
    2, 0, 0, 0, 7, // version, mark
    9, // epoch
    0xd8, 0x04, // position 300
    2,    // tenants
    9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, //
    8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, //
    1, 1, 0x0a, 1, // one deferred: the first, since 290, and new events are next
    3, // entries
    0b10_0000, 0x64, 0, 0, 0, 0, 0, 0, 0, 5, 2, // 200, of the second tenant
    0b00_0100, 1, // 201, of the same
    0b10_0000, 1, 0, 0, 0, 0, 0, 0, 0, 6, 1, // 202, of the first
];

#[test]
fn a_service_s_group_keeps_whose_its_events_are_and_who_is_deferred() {
    let (first, second) = (Uuid::from_bytes([9; 16]), Uuid::from_bytes([8; 16]));
    let entry = |position, key, tenant| Entry {
        position: Position::new(position),
        key: KeyHash(key),
        tenant,
        failures: 0,
        phase: Phase::Free,
    };
    let state = State {
        epoch: 9,
        outstanding: vec![entry(200, 5, second), entry(201, 5, second), entry(202, 6, first)],
        deferred: vec![Deferred { tenant: first, position: Position::new(290) }],
        new_first: true,
        ..State::new(Position::new(300), 7)
    };
    assert_eq!(state.encode(), OF_TWO);
    assert_eq!(State::decode(OF_TWO), Ok(state));
    for length in 0..OF_TWO.len() {
        assert_eq!(State::decode(&OF_TWO[..length]), Err(StateError::Short), "{length} bytes");
    }
    let changed = |at: usize, byte: u8| {
        let mut bytes = OF_TWO.to_vec();
        bytes[at] = byte;
        State::decode(&bytes).unwrap_err().to_string()
    };
    assert_eq!(changed(42, 3), "the group's state has a wrong tenant");
    assert_eq!(changed(44, 2), "the group's state has a wrong turn");
    assert_eq!(changed(56, 3), "the group's state has a wrong tenant");
}

#[test]
fn the_form_is_as_documented() {
    assert_eq!(example().encode(), EXAMPLE);
    assert_eq!(State::decode(EXAMPLE), Ok(example()));
}

#[test]
fn what_is_no_state_is_told() {
    for length in 0..EXAMPLE.len() {
        assert_eq!(State::decode(&EXAMPLE[..length]), Err(StateError::Short), "{length} bytes");
    }
    let changed = |at: usize, byte: u8| {
        let mut bytes = EXAMPLE.to_vec();
        bytes[at] = byte;
        State::decode(&bytes).unwrap_err().to_string()
    };
    assert_eq!(changed(0, 1), "the group's state is of version 1; this release reads version 2");
    assert_eq!(changed(11, 0b1_1001), "the group's state has a wrong tag");
    assert_eq!(changed(11, 0b100_1001), "the group's state has a wrong tag");
    assert_eq!(changed(11, 0b0011), "the group's state has a wrong tag");
    assert_eq!(changed(11, 0b1101), "the group's state has a wrong key");
    assert_eq!(changed(12, 0), "the group's state has a wrong position");
    assert_eq!(changed(21, 0), "the group's state has a wrong number of failures");
    assert_eq!(changed(24, 10), "the group's state has a wrong epoch");
    assert_eq!(changed(27, 0), "the group's state has a wrong position");
    let trailing = [EXAMPLE, &[0]].concat();
    assert_eq!(State::decode(&trailing), Err(StateError::Trailing));
    let many = [&EXAMPLE[..10], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]].concat();
    assert_eq!(State::decode(&many), Err(StateError::Short));
    let over = [&EXAMPLE[..10], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]].concat();
    assert_eq!(State::decode(&over), Err(StateError::Wrong("number")));
}

fn entries() -> impl Strategy<Value = Vec<(i64, u64, u128, u16, u8, i64, u64)>> {
    let position = prop_oneof![any::<i64>(), 0_i64..300];
    prop::collection::vec(
        (position, 0_u64..3, 0_u128..3, any::<u16>(), 0_u8..5, any::<i64>(), any::<u64>()),
        0..12,
    )
}

fn deferred() -> impl Strategy<Value = Vec<(u128, u64)>> {
    prop::collection::vec((0_u128..4, 0..1_u64 << 40), 0..4)
}

proptest! {
    #[test]
    fn a_state_is_read_as_it_was_written(
        mark: u32, epoch: u64, ahead in prop_oneof![Just(0), 0_i64..i64::MAX], entries in entries(),
        deferred in deferred(), new_first: bool,
    ) {
        let mut outstanding: Vec<_> = entries
            .into_iter()
            .map(|(position, key, tenant, failures, phase, until_ms, leased)| Entry {
                position: Position::new(position),
                key: KeyHash(key),
                tenant: Uuid::from_u128(tenant),
                failures: if phase > DELAYED { failures.max(1) } else { failures },
                phase: match phase {
                    FREE => Phase::Free,
                    LEASED => {
                        Phase::Leased { until_ms, epoch: leased % epoch.max(1), number: leased >> 40 }
                    }
                    DELAYED => Phase::Delayed { until_ms },
                    DEAD => Phase::Dead { reason: DeadReason::Expired },
                    _ => Phase::Dead { reason: DeadReason::Nacked },
                },
            })
            .collect();
        outstanding.sort_by_key(|entry| entry.position);
        outstanding.dedup_by_key(|entry| entry.position);
        let last = outstanding.last().map_or(0, |entry| entry.position.number());
        let position = Position::new(last.saturating_add(ahead));
        let deferred: Vec<_> = deferred
            .into_iter()
            .map(|(tenant, behind)| {
                let position = Position::new(position.number().saturating_sub_unsigned(behind));
                Deferred { tenant: Uuid::from_u128(tenant), position }
            })
            .collect();
        let new_first = new_first && !deferred.is_empty();
        let state = State { epoch, outstanding, deferred, new_first, ..State::new(position, mark) };
        prop_assert_eq!(State::decode(&state.encode()), Ok(state));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), known: bool) {
        let mut bytes = bytes;
        if known && let Some(first) = bytes.first_mut() {
            *first = VERSION;
        }
        if let Ok(state) = State::decode(&bytes) {
            prop_assert!(state.outstanding.is_sorted_by(|a, b| a.position < b.position));
            prop_assert_eq!(State::decode(&state.encode()), Ok(state));
        }
    }

    #[test]
    fn no_change_of_a_state_makes_it_panic(at in 0..EXAMPLE.len(), byte: u8, cut in 0..EXAMPLE.len()) {
        let mut bytes = EXAMPLE.to_vec();
        bytes[at] = byte;
        bytes.truncate(bytes.len() - cut);
        if let Ok(state) = State::decode(&bytes) {
            prop_assert_eq!(State::decode(&state.encode()), Ok(state));
        }
    }
}
