//! One side against another.

use serde::Serialize;

use super::{median_interval, sign_flip_p};
use crate::random::Random;
use crate::report::Interval;

/// A smaller difference is no matter, even if the noise was smaller by luck.
const LEAST_BAND: f64 = 0.01;
/// How far the interval of a server against itself reaches was found by chance too: two of them differ by so much.
const WIDER: f64 = 2.0;
/// Holm's p up to which a difference is more than chance.
const SIGNIFICANT: f64 = 0.05;

/// What can be said of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The interval lies in the noise band, and holds 1.
    Same,
    /// The second has more of it: the interval lies above the noise band, and p is at most 0.05.
    More,
    /// The second has less of it.
    Less,
    /// Neither: more rounds would tell.
    Undecided,
}

/// The ratio of the second side to the first.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Pair {
    /// Median of the ratios with its 95 % interval.
    pub ratio: Interval,
    /// How likely chance alone makes such a difference; Holm's correction goes in here too.
    pub p: f64,
}

impl Pair {
    /// From the ratios of paired rounds.
    pub fn of(ratios: &[f64], random: &mut Random) -> Self {
        let logs: Vec<f64> = ratios.iter().map(|ratio| ratio.ln()).collect();
        Pair { ratio: median_interval(ratios, random), p: sign_flip_p(&logs, random) }
    }

    /// The verdict, where differences up to `band` are noise.
    pub fn verdict(&self, band: f64) -> Verdict {
        let Interval { low, high, .. } = self.ratio;
        let is_inside = low >= 1.0 / (1.0 + band) && high <= 1.0 + band;
        if is_inside && low <= 1.0 && high >= 1.0 {
            return Verdict::Same;
        }
        match (self.p <= SIGNIFICANT, low > 1.0 + band, high < 1.0 / (1.0 + band)) {
            (true, true, _) => Verdict::More,
            (true, _, true) => Verdict::Less,
            _ => Verdict::Undecided,
        }
    }
}

/// The noise band as a share, from the ratios of one and the same server: its widest round, or twice as far from 1 as
/// the interval reaches, whichever is less. The first is right for few rounds. The second becomes narrower with more of
/// them, and a single odd round does not make it wide.
pub fn band(same: &[f64], random: &mut Random) -> f64 {
    let from_1 = |ratio: f64| ratio.max(1.0 / ratio) - 1.0;
    let widest = same.iter().map(|ratio| from_1(*ratio)).filter(|share| share.is_finite()).fold(0.0, f64::max);
    let Interval { low, high, .. } = median_interval(same, random);
    let reach = if low > 0.0 { from_1(low).max(from_1(high)) } else { 0.0 };
    widest.min(WIDER * reach).max(LEAST_BAND)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(ratios: &[f64], band: f64) -> Verdict {
        Pair::of(ratios, &mut Random::new(1)).verdict(band)
    }

    #[test]
    fn verdicts() {
        assert_eq!(verdict(&[1.01, 0.99, 1.0, 1.02, 0.98, 1.0], 0.05), Verdict::Same);
        assert_eq!(verdict(&[1.3, 1.2, 1.25, 1.31, 1.22, 1.28], 0.05), Verdict::More);
        assert_eq!(verdict(&[0.3, 0.2, 0.25, 0.31, 0.22, 0.28], 0.05), Verdict::Less);
        assert_eq!(verdict(&[0.5, 2.0, 1.3, 0.6, 1.5, 0.9], 0.05), Verdict::Undecided);
        // Three rounds prove nothing, whatever they show.
        assert_eq!(verdict(&[2.0, 2.0, 2.0], 0.05), Verdict::Undecided);
    }

    #[test]
    fn a_difference_inside_the_noise_is_none_however_sure_it_is() {
        let above = [1.1, 1.11, 1.12, 1.1, 1.11, 1.12];
        assert_eq!(verdict(&above, 0.01), Verdict::More);
        // Inside, and partly inside: noise may hide it, but it is not the same either.
        assert_eq!((verdict(&above, 0.2), verdict(&above, 0.105)), (Verdict::Undecided, Verdict::Undecided));
    }

    #[test]
    fn the_band_is_the_widest_round_but_not_an_odd_one_and_at_least_a_percent() {
        let mut random = Random::new(1);
        assert!((band(&[1.25; 6], &mut random) - 0.25).abs() < 1e-12);
        assert!((band(&[1.0, 0.8, 1.1], &mut random) - 0.25).abs() < 1e-12);
        assert!(band(&[1.0, 1.0, 1.0, 1.0, 9.0, 1.0, 1.0, 1.0, 1.0], &mut random) < 1.0);
        assert_eq!((band(&[], &mut random), band(&[1.0; 6], &mut random)), (LEAST_BAND, LEAST_BAND));
    }

    /// What the rule comes to: rounds with a noise of some 20 %, a server against itself, and against one that is twice
    /// as dear.
    #[test]
    fn a_server_is_the_same_as_itself_and_not_as_one_twice_as_dear() {
        let mut random = Random::new(7);
        let mut count = |factor: f64, counted: &[Verdict]| {
            let judge = |random: &mut Random| {
                let mut rounds = |factor: f64| -> Vec<f64> {
                    (0..9).map(|_| factor * (0.5 * (random.unit() + random.unit() - 1.0)).exp()).collect()
                };
                let (again, other) = (rounds(1.0), rounds(factor));
                Pair::of(&other, random).verdict(band(&again, random))
            };
            (0..200).filter(|_| counted.contains(&judge(&mut random))).count()
        };
        let (same, different) = ([Verdict::Same], [Verdict::More, Verdict::Less]);
        let itself = (count(1.0, &same), count(1.0, &different));
        assert!(itself.0 >= 150 && itself.1 <= 2, "{itself:?}");
        let twice = (count(2.0, &different), count(2.0, &same));
        assert!(twice.0 >= 160 && twice.1 <= 2, "{twice:?}");
    }
}
