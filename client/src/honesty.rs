//! How far the figures of a run can be trusted: is the rate steady, how sure is it, and who was the limit.

use std::time::Duration;

use crate::plan::{Plan, Until};
use crate::report::{Interval, Limit, Report, Slice};

/// Fewer batches say too little about their spread.
const LEAST_BATCHES: usize = 20;
/// A batch with fewer answers is mostly luck.
const LEAST_IN_BATCH: u64 = 10;
/// From so much of a core on, somebody is busy all the time: the rest is lost between measuring and waiting.
const BUSY_PERCENT: f64 = 90.0;
/// Less of the schedule than this is not done by the end: then the schedule was the limit, else something else.
const DONE_SHARE: f64 = 0.99;
/// A start that differs by less than this from the rest, and a drift of less than this, is no matter.
const DIFFERENCE: f64 = 0.1;
/// By how many standard errors a drift has to differ from none, and by how many standard deviations a start from the
/// rest.
const CLEARLY: f64 = 4.0;
/// Less time is spent with starting, and says nothing of a level; in nanoseconds.
const LEAST_NS: u64 = 1_000_000_000;
/// A rate whose 95 % interval is wider to either side, as a share of it, is not known well enough.
const WIDTH: f64 = 0.1;
/// A run that is shorter says nothing about limits.
const LEAST_ELAPSED: Duration = Duration::from_millis(50);

/// What the slices of a run say about its rate.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Level {
    /// Correlation of the number of answers with the time.
    pub linearity: Option<f64>,
    /// Answers per second, with a 95 % interval from batch means.
    pub rate: Option<Interval>,
    /// Whether the rate keeps its level.
    pub steady: Option<bool>,
    /// So much at the start should be left out, in nanoseconds.
    pub propose_warmup_ns: Option<u64>,
    /// By so many percent the rate changed in the course of the run, if that is more than luck.
    pub drift_percent: Option<f64>,
}

impl Level {
    /// Judges the slices after `warmup_ns`.
    pub fn of(plan: &Plan, slices: &[Slice], warmup_ns: u64) -> Self {
        let end = match plan.until {
            Until::Elapsed(time) => u64::try_from(time.as_nanos()).unwrap_or(u64::MAX),
            Until::Tries(_) => u64::MAX,
        };
        // The last slice is short, and in a run by tries some clients have no more to do by then.
        let whole = slices.get(..slices.len().saturating_sub(1)).unwrap_or_default();
        let inside = |slice: &&Slice| slice.start_ns >= warmup_ns && slice.start_ns + slice.length_ns <= end;
        let whole: Vec<&Slice> = whole.iter().filter(inside).collect();
        let linearity = linearity(&whole);
        let from = whole.first().map_or(0, |slice| slice.start_ns);
        let Some(batches) = batches(&whole) else { return Level { linearity, ..Level::default() } };
        if plan.rate.is_some_and(|rate| rate.is_ramp()) {
            return Level { linearity, ..Level::default() };
        }
        let rates: Vec<f64> = batches.iter().map(|(_, rate)| *rate).collect();
        let cut = unlike_the_rest(&rates);
        let rest = rates.get(cut..).unwrap_or_default();
        let drift_percent = drift(rest);
        Level {
            linearity,
            rate: interval(&rates),
            steady: Some(cut == 0 && drift_percent.is_none()),
            propose_warmup_ns: (cut > 0).then(|| {
                let length: u64 = batches.iter().take(cut).map(|(length, _)| length).sum();
                round_up(from + length)
            }),
            drift_percent,
        }
    }
}

/// Length in nanoseconds and rate of each of at least 20 batches; `None` if there is too little for that.
fn batches(slices: &[&Slice]) -> Option<Vec<(u64, f64)>> {
    let length: u64 = slices.iter().map(|slice| slice.length_ns).sum();
    if slices.len() < LEAST_BATCHES || length < LEAST_NS {
        return None;
    }
    let batches = slices.chunks_exact(slices.len() / LEAST_BATCHES).map(|batch| {
        let done: u64 = batch.iter().map(|slice| slice.done).sum();
        let length: u64 = batch.iter().map(|slice| slice.length_ns).sum();
        (done, length, 1e9 * done as f64 / length.max(1) as f64)
    });
    let batches: Vec<(u64, u64, f64)> = batches.collect();
    let done: u64 = batches.iter().map(|(done, ..)| done).sum();
    let enough = done >= LEAST_IN_BATCH * batches.len() as u64;
    enough.then(|| batches.into_iter().map(|(_, length, rate)| (length, rate)).collect())
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Sum of the squared distances from the mean.
fn squares(values: &[f64]) -> f64 {
    let mean = mean(values);
    values.iter().map(|value| (value - mean).powi(2)).sum()
}

/// The mean of the batches and its 95 % interval, by Student's distribution with one degree less than batches.
fn interval(rates: &[f64]) -> Option<Interval> {
    let freedom = rates.len().checked_sub(1).filter(|freedom| *freedom > 0)? as f64;
    let error = (squares(rates) / freedom / rates.len() as f64).sqrt();
    // Within 0.1 % of the table from 19 degrees of freedom on.
    let width = (1.96 + 2.5 / freedom) * error;
    let value = mean(rates);
    Some(Interval { value, low: value - width, high: value + width })
}

/// How many batches at the start are unlike the rest: the cut after which the mean is known best (MSER), if what it
/// takes away is clearly different.
fn unlike_the_rest(rates: &[f64]) -> usize {
    let error = |cut: usize| {
        let rest = rates.get(cut..).unwrap_or_default();
        squares(rest) / (rest.len() as f64).powi(2)
    };
    let cut = (0..=rates.len() / 2).min_by(|a, b| error(*a).total_cmp(&error(*b))).unwrap_or_default();
    let (head, rest) = rates.split_at(cut.min(rates.len()));
    let mut head = head.to_vec();
    head.sort_by(f64::total_cmp);
    let Some(median) = head.get(head.len() / 2) else { return 0 };
    let (level, spread) = (mean(rest), (squares(rest) / rest.len().max(1) as f64).sqrt());
    if (median - level).abs() > (DIFFERENCE * level).max(CLEARLY * spread) { cut } else { 0 }
}

/// By how many percent a straight line through the rates changes, if that is more than luck.
fn drift(rates: &[f64]) -> Option<f64> {
    let n = rates.len() as f64;
    if n < 4.0 {
        return None;
    }
    let (middle, level) = ((n - 1.0) / 2.0, mean(rates));
    let points = || rates.iter().enumerate().map(|(place, rate)| (place as f64 - middle, rate - level));
    let width: f64 = points().map(|(x, _)| x * x).sum();
    let slope = points().map(|(x, y)| x * y).sum::<f64>() / width;
    let left: f64 = points().map(|(x, y)| (y - slope * x).powi(2)).sum();
    let error = (left / (n - 2.0) / width).sqrt();
    let change = slope * n / level;
    (change.abs() > DIFFERENCE && slope.abs() > CLEARLY * error).then_some(100.0 * change)
}

/// Correlation of the number of answers so far with the time; `None` for fewer than three slices.
fn linearity(slices: &[&Slice]) -> Option<f64> {
    let mut done = 0;
    let points = slices.iter().map(|slice| {
        done += slice.done;
        ((slice.start_ns + slice.length_ns) as f64, done as f64)
    });
    let (times, counts): (Vec<f64>, Vec<f64>) = points.unzip();
    if times.len() < 3 {
        return None;
    }
    let (time, count) = (mean(&times), mean(&counts));
    let together: f64 = times.iter().zip(&counts).map(|(t, n)| (t - time) * (n - count)).sum();
    let apart = (squares(&times) * squares(&counts)).sqrt();
    (apart > 0.0).then(|| together / apart)
}

/// Rounded up to one digit: a number to type.
fn round_up(ns: u64) -> u64 {
    let digit = 10_u64.pow(ns.max(1).ilog10()).max(1_000_000);
    ns.div_ceil(digit) * digit
}

/// What limited the rate.
pub fn limit(report: &Report) -> Limit {
    if report.elapsed < LEAST_ELAPSED || report.requests.done == 0 {
        return Limit::Unknown;
    }
    if report.plan.rate.is_some() && keeps_up(report) {
        return Limit::Rate;
    }
    let seconds = report.elapsed.as_secs_f64();
    let under_way = report.requests.done as f64 * report.latency.total.mean() / 1e9 / seconds;
    if report.plan.think.is_some() && under_way < 0.5 * f64::from(report.plan.clients) {
        return Limit::Concurrency;
    }
    let watched = report.server.as_ref().map(|server| 100.0 * server.cpu.total().as_secs_f64() / seconds);
    match watched.or(report.honesty.others_cpu_percent) {
        _ if report.honesty.client_cpu_percent >= BUSY_PERCENT => Limit::Client,
        Some(percent) if percent >= BUSY_PERCENT => Limit::Server,
        Some(_) => Limit::Concurrency,
        None => Limit::Unknown,
    }
}

/// Why the figures should not be built upon, if there is a reason.
pub fn doubts(report: &Report) -> Vec<String> {
    let honesty = &report.honesty;
    let mut doubts = Vec::new();
    if honesty.missed_percent > 100.0 * (1.0 - DONE_SHARE) {
        doubts.push(format!("only {:.1} % of the schedule was sent", 100.0 - honesty.missed_percent));
    }
    if honesty.limited_by == Limit::Client {
        doubts.push(format!("this client was the limit: it used {:.0} % of a core", honesty.client_cpu_percent));
    }
    if honesty.steady == Some(false) {
        doubts.push("the rate was not steady".to_owned());
    }
    if let Some(rate) = honesty.rate
        && rate.high - rate.value > WIDTH * rate.value
    {
        let width = 100.0 * (rate.high - rate.value) / rate.value;
        doubts.push(format!("the rate is known to +- {width:.0} % only"));
    }
    doubts
}

/// Whether the schedule was done, and not long after its end.
fn keeps_up(report: &Report) -> bool {
    let Some(rate) = report.plan.rate else { return false };
    let seconds = match report.plan.until {
        Until::Elapsed(time) => time.as_secs_f64(),
        Until::Tries(_) if !report.steered.is_empty() => report.elapsed.as_secs_f64(),
        Until::Tries(_) => 2.0 * report.honesty.offered as f64 / (rate.from + rate.to),
    };
    let fate = report.requests.done + report.requests.failed;
    let in_time = report.elapsed.as_secs_f64() <= seconds / DONE_SHARE + LEAST_ELAPSED.as_secs_f64();
    in_time && fate as f64 >= DONE_SHARE * report.honesty.offered as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Rate;
    use crate::random::Random;

    /// 100 slices of 20 ms with about so many answers each.
    fn slices(done: impl Fn(u64) -> f64) -> Vec<Slice> {
        let mut random = Random::new(3);
        let noise = |random: &mut Random| 1.0 + 0.02 * (random.unit() + random.unit() - 1.0);
        let slice = |k| Slice {
            start_ns: k * 20_000_000,
            length_ns: 20_000_000,
            done: (done(k) * noise(&mut random)) as u64,
            ..Slice::default()
        };
        (0..100).map(slice).collect()
    }

    fn level(done: impl Fn(u64) -> f64) -> Level {
        Level::of(&Plan::default(), &slices(done), 0)
    }

    #[test]
    fn a_level_rate_is_steady_and_its_interval_holds_it() {
        let level = level(|_| 1000.0);
        let rate = level.rate.unwrap();
        assert!(rate.low < 50_000.0 && 50_000.0 < rate.high && rate.high - rate.low < 500.0, "{rate:?}");
        assert_eq!((level.steady, level.propose_warmup_ns, level.drift_percent), (Some(true), None, None));
        assert!(level.linearity.unwrap() > 0.9999);
    }

    #[test]
    fn a_slow_start_is_seen_and_its_length_proposed() {
        let level = level(|k| if k < 23 { 400.0 } else { 1000.0 });
        assert_eq!(level.steady, Some(false));
        assert_eq!(level.propose_warmup_ns, Some(500_000_000), "{level:?}");
        assert!(level.linearity.unwrap() < 0.9999);
        // Without that start it is steady.
        let cut = Level::of(&Plan::default(), &slices(|k| if k < 23 { 400.0 } else { 1000.0 }), 500_000_000);
        assert_eq!(cut.steady, Some(true));
    }

    #[test]
    fn one_hiccup_is_no_drift() {
        assert_eq!(level(|k| if k == 17 { 100.0 } else { 1000.0 }).steady, Some(true));
    }

    #[test]
    fn a_rate_that_falls_all_the_time_is_a_drift() {
        let level = level(|k| 1000.0 - 4.0 * k as f64);
        assert_eq!(level.steady, Some(false));
        assert!(level.drift_percent.is_some_and(|drift| drift < -15.0), "{level:?}");
    }

    #[test]
    fn too_little_says_nothing() {
        assert_eq!(Level::of(&Plan::default(), &slices(|_| 1000.0)[..20], 0).rate, None);
        assert_eq!(Level::of(&Plan::default(), &slices(|_| 1000.0), 1_200_000_000).rate, None);
        assert_eq!(level(|_| 1.5).rate, None);
        let ramp = Plan { rate: Some(Rate { from: 1.0, to: 9.0 }), ..Plan::default() };
        assert_eq!(Level::of(&ramp, &slices(|_| 1000.0), 0).steady, None);
    }

    #[test]
    fn proposals_are_numbers_to_type() {
        assert_eq!(
            [1, 999_999, 1_000_001, 23_400_000, 1_900_000_000].map(round_up),
            [1_000_000, 1_000_000, 2_000_000, 30_000_000, 2_000_000_000]
        );
    }
}
