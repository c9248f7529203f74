//! The service itself: random numbers, and the answer to a question. No descriptor, no pid.

use anyhow::{Context, Result};

use crate::record::{Answer, MAX_N, Nonce, Status, random_nonce};

/// A generator of numbers from 1 to 100 (SplitMix64). It is not for secrets: the next numbers can
/// be calculated from the ones before.
#[derive(Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// A generator with this seed, or with a random one.
    ///
    /// # Errors
    /// The errors of getrandom(2).
    pub fn seeded(seed: Option<u64>) -> Result<Self> {
        let random = || random_nonce().map(|nonce| u128::from_le_bytes(nonce) as u64);
        Ok(Self::new(seed.map_or_else(random, Ok).context("getrandom")?))
    }

    /// A generator. The same seed gives the same numbers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number. All are equally likely: a value from the incomplete last hundred, which
    /// would make low numbers more likely, is not used.
    pub fn next_number(&mut self) -> i32 {
        loop {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            if z < u64::MAX - u64::MAX % 100 {
                return (z % 100) as i32 + 1;
            }
        }
    }

    /// The answer to a question: `n` numbers, or an error if `n` is not in `1..=MAX_N`.
    pub fn answer(&mut self, nonce: Nonce, n: i32) -> Answer {
        match (1..=MAX_N).contains(&n) {
            true => Answer {
                nonce,
                status: Status::Ok,
                values: (0..n).map(|_| self.next_number()).collect(),
            },
            false => Answer::error(nonce, Status::Range),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn all_numbers_from_1_to_100_are_equally_likely() {
        let (mut numbers, mut seen) = (Numbers::new(1), vec![0u32; 101]);
        (0..100_000).for_each(|_| seen[numbers.next_number() as usize] += 1);
        assert!(
            seen[0] == 0 && seen[1..].iter().all(|times| (800..1200).contains(times)),
            "{seen:?}"
        );
        assert_eq!(Numbers::new(7).answer([0; 16], 5), Numbers::new(7).answer([0; 16], 5));
    }
}
