//! One side against another.

use serde::Serialize;

use super::{median_interval, sign_flip_p};
use crate::random::Random;
use crate::report::Interval;

/// A smaller difference is no matter, even if the noise was smaller by luck.
const LEAST_BAND: f64 = 0.01;
/// Holm's p up to which a difference is more than chance.
const SIGNIFICANT: f64 = 0.05;

/// What can be said of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The interval lies in the noise band.
    Same,
    /// The second has more of it, and that is more than chance and noise.
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
        if low >= 1.0 / (1.0 + band) && high <= 1.0 + band {
            return Verdict::Same;
        }
        match (self.p <= SIGNIFICANT, low > 1.0, high < 1.0) {
            (true, true, _) => Verdict::More,
            (true, _, true) => Verdict::Less,
            _ => Verdict::Undecided,
        }
    }
}

/// The noise band: by how much rounds of one and the same server differ at most, as a share.
pub fn band(same: &[f64]) -> f64 {
    same.iter().map(|ratio| ratio.max(1.0 / ratio) - 1.0).filter(|share| share.is_finite()).fold(LEAST_BAND, f64::max)
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
    fn the_band_is_the_widest_round_and_at_least_a_percent() {
        assert!((band(&[1.0, 0.8, 1.1]) - 0.25).abs() < 1e-12);
        assert_eq!(band(&[]), LEAST_BAND);
    }
}
