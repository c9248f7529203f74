//! How likely chance alone makes such a difference: permutation tests.

use crate::random::Random;

/// Up to so many pairs all sign patterns are tried; beyond, as many random ones.
const EXACT: usize = 16;
const DRAWS: u32 = 1 << EXACT;

/// Two-sided p of paired differences. Under chance alone each could as well have the other sign.
pub fn sign_flip_p(differences: &[f64], random: &mut Random) -> f64 {
    let observed = differences.iter().sum::<f64>().abs();
    // What differs by rounding only is as large.
    let least = observed * (1.0 - 1e-9);
    let sum = |bits: &mut dyn FnMut(usize) -> bool| {
        let signed = differences.iter().enumerate().map(|(place, value)| if bits(place) { *value } else { -value });
        signed.sum::<f64>().abs()
    };
    if differences.len() <= EXACT {
        let all = 1_u32 << differences.len();
        let extreme = (0..all).filter(|pattern| sum(&mut |place| pattern >> place & 1 == 1) >= least).count();
        return extreme as f64 / f64::from(all);
    }
    let extreme = (0..DRAWS).filter(|_| sum(&mut |_| random.bits() >> 63 == 1) >= least).count();
    (extreme + 1) as f64 / f64::from(DRAWS + 1)
}

/// Two-sided p of two groups of runs that belong to no pairs: under chance alone each run could be of either group.
pub fn shift_p(a: &[f64], b: &[f64], random: &mut Random) -> f64 {
    let mut all: Vec<f64> = a.iter().chain(b).copied().collect();
    let distance = |all: &[f64]| {
        let (a, b) = all.split_at(a.len().min(all.len()));
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
        (mean(a) - mean(b)).abs()
    };
    let least = distance(&all) * (1.0 - 1e-9);
    let draws = 20_000_u32;
    let mut extreme = 0;
    for _ in 0..draws {
        shuffle(&mut all, random);
        extreme += u32::from(distance(&all) >= least);
    }
    f64::from(extreme + 1) / f64::from(draws + 1)
}

/// Brings values into random order.
pub fn shuffle<T>(values: &mut [T], random: &mut Random) {
    for place in (1..values.len()).rev() {
        values.swap(place, (random.unit() * (place + 1) as f64) as usize);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn few_pairs_are_counted_out() {
        let mut random = Random::new(1);
        // All of one sign: of 8 patterns only + + + and - - - are as far out.
        assert_eq!(sign_flip_p(&[1.0, 2.0, 3.0], &mut random), 0.25);
        // |1 + 2 - 4| = 1: of 8 patterns the sums are 7, 1, 3, 5 and their negatives.
        assert_eq!(sign_flip_p(&[1.0, 2.0, -4.0], &mut random), 1.0);
        assert_eq!(sign_flip_p(&[1.0; 6], &mut random), 2.0 / 64.0);
        assert_eq!(sign_flip_p(&[], &mut random), 1.0);
    }

    #[test]
    fn many_pairs_are_drawn() {
        let mut random = Random::new(1);
        assert!(sign_flip_p(&[1.0; 30], &mut random) < 0.001);
        let even: Vec<f64> = (0..30).map(|n| if n % 2 == 0 { 1.0 } else { -1.0 }).collect();
        assert!(sign_flip_p(&even, &mut random) > 0.9);
    }

    #[test]
    fn groups() {
        let mut random = Random::new(1);
        // 2 of the 20 ways to choose 3 of 6 are as far apart.
        let p = shift_p(&[1.0, 2.0, 3.0], &[11.0, 12.0, 13.0], &mut random);
        assert!((p - 0.1).abs() < 0.01, "{p}");
        assert!(shift_p(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0], &mut random) > 0.9);
    }

    #[test]
    fn under_chance_alone_few_are_called_different() {
        let mut random = Random::new(5);
        let small = (0..500).filter(|_| {
            let values: Vec<f64> = (0..9).map(|_| random.unit() - 0.5).collect();
            sign_flip_p(&values, &mut random) <= 0.05
        });
        let share = small.count() as f64 / 500.0;
        assert!(share < 0.08, "{share}");
    }

    proptest! {
        #[test]
        fn p_is_a_share_and_does_not_depend_on_the_sign(values in prop::collection::vec(-5.0_f64..5.0, 1..9)) {
            let mut random = Random::new(3);
            let p = sign_flip_p(&values, &mut random);
            prop_assert!(p > 0.0 && p <= 1.0);
            let negative: Vec<f64> = values.iter().map(|value| -value).collect();
            prop_assert_eq!(p, sign_flip_p(&negative, &mut random));
        }
    }
}
