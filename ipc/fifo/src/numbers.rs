//! The service itself: random numbers, and the answer to a question. No descriptor, no pid.

use crate::record::{Answer, MAX_N, Nonce, Status};

/// A generator of numbers from 1 to 100 (SplitMix64). It is no secret-keeper: whoever sees some can work out the rest.
#[derive(Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// The same seed, the same numbers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Each as often as the others: what would favor the low numbers is thrown again.
    pub fn roll(&mut self) -> i32 {
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

    /// Every question gets exactly one answer; one that asks for too many or too few is told so.
    pub fn answer(&mut self, nonce: Nonce, n: i32) -> Answer {
        match (1..=MAX_N).contains(&n) {
            true => Answer { nonce, status: Status::Ok, values: (0..n).map(|_| self.roll()).collect() },
            false => Answer { nonce, status: Status::Range, values: Vec::new() },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn one_to_a_hundred_each_as_often() {
        let (mut numbers, mut seen) = (Numbers::new(1), vec![0u32; 101]);
        (0..100_000).for_each(|_| seen[numbers.roll() as usize] += 1);
        assert!(seen[0] == 0 && seen[1..].iter().all(|times| (800..1200).contains(times)), "{seen:?}");
        assert_eq!(Numbers::new(7).answer([0; 16], 5), Numbers::new(7).answer([0; 16], 5));
    }
}
