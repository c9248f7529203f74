//! Random numbers that a seed repeats: SplitMix64, whose 64 bits of state are enough for arrivals and pauses.

/// A sequence of random numbers.
#[derive(Clone, Debug, Default)]
pub struct Random(u64);

impl Random {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1), to 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Exponential with mean 1: the distance between arrivals that know nothing of each other.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.unit()).ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_means_are_right_and_a_seed_repeats() {
        let (mut a, mut b) = (Random::new(7), Random::new(7));
        assert!((0..100).all(|_| a.bits() == b.bits()));
        let n = 100_000;
        let unit: f64 = (0..n).map(|_| a.unit()).sum::<f64>() / f64::from(n);
        let exponential: f64 = (0..n).map(|_| a.exponential()).sum::<f64>() / f64::from(n);
        assert!((unit - 0.5).abs() < 0.01 && (exponential - 1.0).abs() < 0.02, "{unit} {exponential}");
    }
}
