//! The median and its bootstrap interval.

use crate::random::Random;
use crate::report::Interval;

/// Resamples: the bounds are then known to about a tenth of their distance.
const RESAMPLES: usize = 2000;

/// The middle value; of an even number the mean of the two in the middle; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let at = |place: usize| sorted.get(place).copied().unwrap_or_default();
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => at(middle),
        _ => (at(middle - 1) + at(middle)) / 2.0,
    }
}

/// The median with its 95 % interval, by drawing as many values from these, with replacement, again and again.
pub fn median_interval(values: &[f64], random: &mut Random) -> Interval {
    let mut drawn = vec![0.0; values.len()];
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            for slot in &mut drawn {
                *slot = values.get((random.unit() * values.len() as f64) as usize).copied().unwrap_or_default();
            }
            median(&drawn)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    let at = |share: f64| medians.get((share * (RESAMPLES - 1) as f64).round() as usize).copied().unwrap_or_default();
    Interval { value: median(values), low: at(0.025), high: at(0.975) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn the_interval_covers_the_truth_about_as_often_as_it_says() {
        let mut random = Random::new(11);
        let trials = 400;
        let covered = (0..trials).filter(|_| {
            // A skewed distribution, as times have; its median is ln 2.
            let values: Vec<f64> = (0..15).map(|_| random.exponential()).collect();
            let interval = median_interval(&values, &mut random);
            interval.low <= std::f64::consts::LN_2 && std::f64::consts::LN_2 <= interval.high
        });
        let share = covered.count() as f64 / f64::from(trials);
        assert!((0.90..=0.99).contains(&share), "{share}");
    }

    proptest! {
        #[test]
        fn the_interval_holds_the_median_and_lies_inside_the_values(
            values in prop::collection::vec(0.1_f64..10.0, 1..20), seed: u64
        ) {
            let interval = median_interval(&values, &mut Random::new(seed));
            let (least, most) = values.iter().fold((f64::MAX, 0.0_f64), |(l, m), v| (l.min(*v), m.max(*v)));
            prop_assert!(least <= interval.low && interval.low <= interval.value);
            prop_assert!(interval.value <= interval.high && interval.high <= most);
        }
    }
}
