//! Random numbers for the draw: a function of seed and position alone, the same on every machine.

/// Step of SplitMix64's counter: 2^64 over the golden ratio, odd.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64 (Steele, Lea and Flood 2014), whose numbers are a mix of a counter: any of them can be had without those
/// before. The counter starts at the seed's own mix, so that seeds next to each other have nothing in common. Not for
/// secrets.
#[derive(Clone, Debug)]
pub struct Rng {
    counter: u64,
}

impl Rng {
    /// The numbers of this seed from the first on.
    pub fn new(seed: u64) -> Self {
        Self::at(seed, 0)
    }

    /// The numbers of this seed from number `position` on.
    pub fn at(seed: u64, position: u64) -> Self {
        Self { counter: mix(seed.wrapping_add(STEP)).wrapping_add(position.wrapping_mul(STEP)) }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.counter = self.counter.wrapping_add(STEP);
        mix(self.counter)
    }

    /// The next number in [0, 1): the high 53 bits of the next 64.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_a_function_of_seed_and_position() {
        // SplitMix64 from 0 starts so (reference implementation).
        assert_eq!(mix(STEP), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(STEP.wrapping_mul(2)), 0x6e78_9e6a_a1b9_65f4);
        let mut all = Rng::new(7);
        for position in 0..100 {
            assert_eq!(all.next_u64(), Rng::at(7, position).next_u64());
        }
        assert_ne!(Rng::new(7).next_u64(), Rng::new(8).next_u64());
    }

    #[test]
    fn units_are_spread_evenly() {
        for seed in 0..4 {
            let mut rng = Rng::new(seed);
            let mut counts = [0usize; 10];
            (0..100_000).for_each(|_| counts[(rng.unit() * 10.0) as usize] += 1);
            assert!(counts.iter().all(|n| n.abs_diff(10_000) < 500), "{counts:?}");
        }
    }
}
