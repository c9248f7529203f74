//! Axes: where their lines are and what stands beside them. On logarithmic ones positions are decimal logarithms.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

use crate::output::form;

/// A linear axis has about so many lines.
const LINES: f64 = 8.0;

/// One axis of a chart.
#[derive(Clone, Debug)]
pub struct Axis {
    range: Range<f64>,
    lines: Vec<f64>,
    label: Label,
    /// What it measures.
    pub name: &'static str,
}

/// What stands beside a line of an axis.
#[derive(Clone, Copy, Debug)]
enum Label {
    Time,
    Percentile,
    /// With so many digits behind the point.
    Number(usize),
}

impl Axis {
    /// Times between these logarithms.
    pub fn times(name: &'static str, low: f64, high: f64) -> Self {
        let (low, high) = (low - 0.05, high.max(low + 0.3) + 0.05);
        let parts: &[f64] = if high - low < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let decades = low.floor() as i32..=high.ceil() as i32;
        let lines = decades.flat_map(|decade| parts.iter().map(move |part| f64::from(decade) + part.log10()));
        let lines = lines.filter(|at| (low..=high).contains(at)).collect();
        Axis { range: low..high, lines, label: Label::Time, name }
    }

    /// Percentiles up to that of the last of so many samples; each further 9 takes the same room.
    pub fn percentiles(name: &'static str, samples: u64) -> Self {
        let end = (samples.max(10) as f64).log10();
        let mut lines = vec![0.0, 2_f64.log10()];
        lines.extend((1..=end.floor() as i32).map(f64::from));
        Axis { range: 0.0..end + 0.02, lines, label: Label::Percentile, name }
    }

    /// Numbers from zero.
    pub fn numbers(name: &'static str, end: f64) -> Self {
        let end = end.max(1e-6);
        let power = 10_f64.powf((end / LINES).log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|part| part * power).find(|step| end / step <= LINES);
        let step = step.unwrap_or(end);
        let digits = (-step.log10()).ceil().max(0.0) as usize;
        let lines = (0..=(end / step + 1e-9) as u32).map(|n| f64::from(n) * step).collect();
        Axis { range: 0.0..end, lines, label: Label::Number(digits), name }
    }
}

/// The decimal logarithm of a time of at least a nanosecond.
pub fn log(ns: f64) -> f64 {
    ns.max(1.0).log10()
}

fn percentile(x: f64) -> String {
    let digits = (x.round() - 2.0).max(0.0) as usize;
    format!("{:.digits$} %", 100.0 * (1.0 - 10_f64.powf(-x)))
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (low, high): (i32, i32)) -> i32 {
        let part = (value - self.range.start) / (self.range.end - self.range.start);
        low + (f64::from(high - low) * part).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.lines.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        match self.label {
            Label::Time => form::time(10_f64.powf(*value)),
            Label::Percentile => percentile(*value),
            Label::Number(0) => form::short(*value),
            Label::Number(digits) => format!("{value:.digits$}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<String> {
        assert!(axis.lines.iter().all(|at| axis.range.start <= *at && *at <= axis.range.end), "{axis:?}");
        axis.lines.iter().map(|at| axis.format_ext(at)).collect()
    }

    #[test]
    fn lines_lie_on_the_axis_and_are_labeled_by_round_numbers() {
        assert_eq!(labels(&Axis::times("", log(9_000.0), log(4e6))), ["10 us", "100 us", "1 ms"]);
        assert_eq!(labels(&Axis::times("", 3.0, 3.0)), ["1 us", "2 us"]);
        assert_eq!(labels(&Axis::percentiles("", 20_000)), ["0 %", "50 %", "90 %", "99 %", "99.9 %", "99.99 %"]);
        assert_eq!(labels(&Axis::numbers("", 43_000.0)), ["0", "10k", "20k", "30k", "40k"]);
        assert_eq!(labels(&Axis::numbers("", 1.5)), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0", "1.2", "1.4"]);
        assert_eq!(labels(&Axis::numbers("", 0.012)).last().unwrap(), "0.012");
        assert_eq!(labels(&Axis::numbers("", 0.0)).len(), 6);
    }
}
