//! A small seeded generator (SplitMix64, Steele, Lea and Flood 2014): a failing run can be repeated from its seed.

/// The generator.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The seed of this run: `OUTRIGGER_TEST_SEED`, or a fixed one. Printed by the tests that use it.
pub fn seed() -> u64 {
    std::env::var("OUTRIGGER_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_261_124)
}

/// `long` under `make test-long`, else `sample`.
pub fn size(sample: u64, long: u64) -> u64 {
    if std::env::var("OUTRIGGER_TEST_SIZE").as_deref() == Ok("long") { long } else { sample }
}
