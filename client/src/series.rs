//! The run in slices of time: a bounded number of them, whatever the run lasts, because their length doubles.
//!
//! A slice is the difference of the run's counts at its end and at its start, so that counting costs nothing but a
//! comparison with the time at which the slice is due.

use crate::report::Slice;

/// Nanoseconds of the first slices.
const SHORTEST: u64 = 1_000_000;
/// At so many slices each two become one: a run has half as many or more, unless it is shorter than that.
const MOST: usize = 128;
/// Quarters of a power of two that are told apart: up to an hour.
const QUARTERS: usize = 4 * 42;
/// 2^63 times the fourth root of two, its square and its cube.
const ROOTS: [u64; 3] = [10_968_499_650_544_839_024, 13_043_817_825_332_782_213, 15_511_800_964_685_064_949];

/// Which quarter of a power of two a time belongs to: k for [2^(k/4), 2^((k+1)/4)).
pub fn quarter(ns: u64) -> usize {
    let ns = ns.max(1);
    let zeros = ns.leading_zeros();
    let mantissa = ns << zeros;
    let part = ROOTS.iter().filter(|root| mantissa >= **root).count();
    (4 * (63 - zeros as usize) + part).min(QUARTERS - 1)
}

/// How many times were in each quarter of a power of two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heat(Box<[u64; QUARTERS]>);

impl Default for Heat {
    fn default() -> Self {
        Heat(Box::new([0; QUARTERS]))
    }
}

impl Heat {
    /// Counts one more.
    pub fn record(&mut self, ns: u64) {
        if let Some(count) = self.0.get_mut(quarter(ns)) {
            *count += 1;
        }
    }

    /// Counts those of `other` too.
    pub fn add(&mut self, other: &Heat) {
        self.0.iter_mut().zip(other.0.iter()).for_each(|(sum, count)| *sum += count);
    }

    /// What has come since `before`, as pairs of quarter and count; quarters without any are left out.
    pub fn since(&self, before: &Heat) -> Vec<(u16, u64)> {
        let counts = self.0.iter().zip(before.0.iter()).zip(0_u16..);
        counts.map(|((now, before), k)| (k, now - before)).filter(|(_, count)| *count > 0).collect()
    }

    /// The percentile with `share` of the times at most so long, between 0 and 1, to a tenth or so; `None` if empty.
    pub fn percentile(&self, share: f64) -> Option<u64> {
        let all: u64 = self.0.iter().sum();
        let mut left = share * all as f64;
        for (count, k) in self.0.iter().zip(0_u32..) {
            let count = *count as f64;
            if count > 0.0 && left <= count {
                return Some(((f64::from(k) + left / count) / 4.0).exp2() as u64);
            }
            left -= count;
        }
        None
    }
}

/// The counts a slice is made of, since the start of the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // as in `Slice`
pub struct Counts {
    pub offered: u64,
    pub sent: u64,
    pub done: u64,
    pub failed: u64,
    pub connected: u64,
    pub bytes: u64,
    /// Open now.
    pub open: u64,
}

impl Counts {
    /// Adds those of another thread.
    pub fn add(&mut self, other: &Counts) {
        self.offered += other.offered;
        self.sent += other.sent;
        self.done += other.done;
        self.failed += other.failed;
        self.connected += other.connected;
        self.bytes += other.bytes;
        self.open += other.open;
    }

    /// What was counted since `before`, as a slice that has no time yet.
    pub fn since(&self, before: &Counts) -> Slice {
        Slice {
            offered: self.offered - before.offered,
            sent: self.sent - before.sent,
            done: self.done - before.done,
            failed: self.failed - before.failed,
            connected: self.connected - before.connected,
            bytes: self.bytes - before.bytes,
            open: self.open,
            ..Slice::default()
        }
    }
}

/// The slices so far, and the one that time is in.
#[derive(Clone, Debug)]
pub struct Series {
    length: u64,
    origin: u64,
    due: u64,
    slices: Vec<Slice>,
    before: Counts,
    heat: Heat,
    heat_before: Heat,
    max_ns: u64,
    recent_max_ns: u64,
}

impl Default for Series {
    fn default() -> Self {
        Series {
            length: SHORTEST,
            origin: 0,
            due: SHORTEST,
            slices: Vec::new(),
            before: Counts::default(),
            heat: Heat::default(),
            heat_before: Heat::default(),
            max_ns: 0,
            recent_max_ns: 0,
        }
    }
}

impl Series {
    /// The first slice starts at `origin`; what was before belongs to none.
    pub fn start(&mut self, origin: u64, counts: Counts) {
        *self = Series { origin, due: origin + SHORTEST, before: counts, ..Series::default() };
    }

    /// When the present slice ends.
    pub fn due(&self) -> u64 {
        self.due
    }

    /// All response times so far.
    pub fn heat(&self) -> &Heat {
        &self.heat
    }

    /// A response time.
    pub fn record(&mut self, ns: u64) {
        self.heat.record(ns);
        self.max_ns = self.max_ns.max(ns);
        self.recent_max_ns = self.recent_max_ns.max(ns);
    }

    /// The longest response time since this was asked last.
    pub fn take_recent_max(&mut self) -> u64 {
        std::mem::take(&mut self.recent_max_ns)
    }

    /// Ends every slice that is over by `now`.
    pub fn roll(&mut self, now: u64, counts: Counts) {
        while now >= self.due {
            self.end_slice(self.length, counts);
            if self.slices.len() == MOST {
                self.halve();
                self.due += self.length - self.length / 2;
            }
        }
    }

    fn end_slice(&mut self, length_ns: u64, counts: Counts) {
        let before = std::mem::replace(&mut self.before, counts);
        let heat = self.heat.since(&self.heat_before);
        self.heat_before.clone_from(&self.heat);
        self.slices.push(Slice {
            start_ns: self.due - self.length - self.origin,
            length_ns,
            heat,
            max_ns: std::mem::take(&mut self.max_ns),
            ..counts.since(&before)
        });
        self.due += self.length;
    }

    /// Each two slices become one.
    fn halve(&mut self) {
        let slices = std::mem::take(&mut self.slices);
        let mut slices = slices.into_iter();
        while let Some(mut first) = slices.next() {
            if let Some(second) = slices.next() {
                first.length_ns += second.length_ns;
                first.open = second.open;
                add(&mut first, &second);
            }
            self.slices.push(first);
        }
        self.length *= 2;
    }

    /// Ends the present slice early, at `now`: the run is over.
    pub fn finish(&mut self, now: u64, counts: Counts) {
        self.roll(now, counts);
        let length = now.saturating_sub(self.due - self.length);
        if length > 0 {
            self.end_slice(length, counts);
        }
    }

    /// Adds the finished series of another thread, whose slices have the same bounds.
    pub fn absorb(&mut self, mut other: Series) {
        while self.length < other.length {
            self.halve();
        }
        while other.length < self.length {
            other.halve();
        }
        self.heat.add(&other.heat);
        let mut others = other.slices.into_iter();
        for (mine, theirs) in self.slices.iter_mut().zip(others.by_ref()) {
            mine.length_ns = mine.length_ns.max(theirs.length_ns);
            mine.open += theirs.open;
            add(mine, &theirs);
        }
        self.slices.extend(others);
    }

    /// The slices, none of them shorter than the others but the last.
    pub fn into_slices(self) -> Vec<Slice> {
        self.slices
    }
}

/// Puts the slices of several runs together by absolute time. Each run comes with the time it started at; the result
/// with the earliest of those. A slice that lies across the bounds of two new ones is shared out by time, and no count
/// is lost.
pub fn merge(runs: &[(u64, &[Slice])]) -> (u64, Vec<Slice>) {
    let end_of = |(start, slices): &(u64, &[Slice])| start + slices.last().map_or(0, end);
    let origin = runs.iter().map(|(start, _)| *start).min().unwrap_or_default();
    let all = runs.iter().map(end_of).max().unwrap_or_default().saturating_sub(origin);
    let longest = runs.iter().flat_map(|(_, slices)| slices.iter()).map(|slice| slice.length_ns).max();
    let mut length = longest.unwrap_or_default().max(1);
    while all.div_ceil(length) > MOST as u64 {
        length *= 2;
    }
    let bin = |n: u64| Slice { start_ns: n * length, length_ns: length.min(all - n * length), ..Slice::default() };
    let mut bins: Vec<Slice> = (0..all.div_ceil(length)).map(bin).collect();
    for (start, slices) in runs {
        for slice in slices.iter().filter(|slice| slice.length_ns > 0) {
            share_out(slice, start - origin, length, &mut bins);
        }
        let last = slices.last();
        for bin in &mut bins {
            let at = end(bin) - 1;
            let covers = |slice: &&Slice| (start - origin + slice.start_ns..start - origin + end(slice)).contains(&at);
            // After its end a run has nothing open, but in the slice it ends in it had.
            let ended =
                last.filter(|last| (bin.start_ns..=at).contains(&(start - origin + end(last)).saturating_sub(1)));
            bin.open += slices.iter().find(covers).or(ended).map_or(0, |slice| slice.open);
        }
    }
    (origin, bins)
}

fn end(slice: &Slice) -> u64 {
    slice.start_ns + slice.length_ns
}

/// Adds to each bin the share of a slice that it covers.
fn share_out(slice: &Slice, offset: u64, length: u64, bins: &mut [Slice]) {
    let (from, all) = (offset + slice.start_ns, slice.length_ns.max(1));
    let mut before = 0;
    for bin in bins.iter_mut().skip((from / length) as usize) {
        let upto = (bin.start_ns + length).min(from + all) - from;
        // Rounded as a sum, so that the shares come to the whole.
        let share = |count: u64| part(count, upto, all) - part(count, before, all);
        let heat = slice.heat.iter().map(|(k, count)| (*k, share(*count))).filter(|(_, count)| *count > 0);
        let shared = Slice {
            offered: share(slice.offered),
            sent: share(slice.sent),
            done: share(slice.done),
            failed: share(slice.failed),
            connected: share(slice.connected),
            bytes: share(slice.bytes),
            heat: heat.collect(),
            max_ns: slice.max_ns,
            ..Slice::default()
        };
        add(bin, &shared);
        before = upto;
        if upto == all {
            return;
        }
    }
}

fn part(count: u64, of: u64, all: u64) -> u64 {
    u64::try_from(u128::from(count) * u128::from(of) / u128::from(all)).unwrap_or(u64::MAX)
}

/// Adds the counts of another slice; where and how long `sum` is remains.
pub(crate) fn add(sum: &mut Slice, other: &Slice) {
    sum.offered += other.offered;
    sum.sent += other.sent;
    sum.done += other.done;
    sum.failed += other.failed;
    sum.connected += other.connected;
    sum.bytes += other.bytes;
    sum.max_ns = sum.max_ns.max(other.max_ns);
    for (k, count) in &other.heat {
        match sum.heat.binary_search_by_key(k, |(k, _)| *k) {
            Ok(place) => sum.heat.iter_mut().skip(place).take(1).for_each(|(_, sum)| *sum += count),
            Err(place) => sum.heat.insert(place, (*k, *count)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_quarter_is_a_quarter_of_a_power_of_two() {
        for k in 0..QUARTERS {
            let low = (k as f64 / 4.0).exp2().ceil() as u64;
            let high = ((k as f64 + 1.0) / 4.0).exp2().ceil() as u64;
            if low < high {
                assert_eq!((quarter(low), quarter(high - 1)), (k, k), "{low} {high}");
            }
        }
        assert_eq!((quarter(0), quarter(1), quarter(u64::MAX)), (0, 0, QUARTERS - 1));
    }

    #[test]
    fn percentiles_of_heat_are_near() {
        let mut heat = Heat::default();
        assert_eq!(heat.percentile(0.5), None);
        (1..=100_000).for_each(|ns| heat.record(ns));
        for share in [0.1, 0.5, 0.9, 0.99, 1.0] {
            let near = heat.percentile(share).unwrap() as f64 / (share * 100_000.0);
            assert!((near - 1.0).abs() < 0.1 || share == 1.0 && near < 1.2, "{share}: {near}");
        }
    }

    /// A series of a request done at each of these times, in microseconds, after as many nanoseconds.
    fn series(times: &[u64], end: u64) -> Series {
        let mut series = Series::default();
        let mut counts = Counts::default();
        for time in times {
            series.roll(1000 * time, counts);
            counts.done += 1;
            series.record(*time);
        }
        series.finish(1000 * end, counts);
        series
    }

    #[test]
    fn runs_are_put_together_by_absolute_time() {
        let slice = |n: u64, done| Slice {
            start_ns: n * 1000,
            length_ns: 1000,
            done,
            open: 5,
            heat: vec![(4, done)],
            max_ns: n + 1,
            ..Slice::default()
        };
        let (a, b) = (vec![slice(0, 10), slice(1, 20)], vec![slice(0, 4), slice(1, 8), slice(2, 100)]);
        // The second begins one and a half slices later.
        let (origin, both) = merge(&[(7000, &a), (8500, &b)]);
        assert_eq!(origin, 7000);
        let rows: Vec<_> = both.iter().map(|bin| (bin.start_ns, bin.length_ns, bin.done, bin.open)).collect();
        assert_eq!(
            rows,
            [(0, 1000, 10, 5), (1000, 1000, 22, 10), (2000, 1000, 6, 5), (3000, 1000, 54, 5), (4000, 500, 50, 5)]
        );
        assert!(both.iter().all(|bin| bin.heat.iter().map(|(_, count)| count).sum::<u64>() == bin.done));
        assert_eq!(both.iter().map(|bin| bin.max_ns).collect::<Vec<_>>(), [1, 2, 2, 3, 3]);
    }

    proptest! {
        #[test]
        fn merged_slices_lose_nothing(runs in prop::collection::vec(
            (0u64..10_000_000_000, prop::collection::vec(0u64..1000, 1..40), 1u64..30_000_000), 1..4)
        ) {
            let slices = |(_, counts, length): &(u64, Vec<u64>, u64)| -> Vec<Slice> {
                let slice = |(n, done): (usize, &u64)| Slice {
                    start_ns: n as u64 * length,
                    length_ns: if n + 1 == counts.len() { length / 3 } else { *length },
                    done: *done,
                    bytes: 1000 * done,
                    heat: vec![(7, *done)],
                    ..Slice::default()
                };
                counts.iter().enumerate().map(slice).collect()
            };
            let all: Vec<(u64, Vec<Slice>)> = runs.iter().map(|run| (run.0, slices(run))).collect();
            let parts: Vec<(u64, &[Slice])> = all.iter().map(|(start, slices)| (*start, slices.as_slice())).collect();
            let (_, bins) = merge(&parts);
            let sum = |slices: &[Slice], pick: fn(&Slice) -> u64| slices.iter().map(pick).sum::<u64>();
            let whole: Vec<Slice> = all.into_iter().flat_map(|(_, slices)| slices).filter(|slice| slice.length_ns > 0).collect();
            prop_assert!(bins.len() <= MOST);
            prop_assert_eq!(sum(&bins, |s| s.done), sum(&whole, |s| s.done));
            prop_assert_eq!(sum(&bins, |s| s.bytes), sum(&whole, |s| s.bytes));
            prop_assert_eq!(sum(&bins, |s| s.heat.iter().map(|(_, n)| n).sum()), sum(&whole, |s| s.done));
        }

        #[test]
        fn slices_lie_end_to_end_and_lose_nothing(mut a in prop::collection::vec(0u64..900_000, 0..200),
                                                  mut b in prop::collection::vec(0u64..50_000, 0..200)) {
            a.sort_unstable();
            b.sort_unstable();
            let mut both = series(&a, 900_000);
            both.absorb(series(&b, 50_000));
            let slices = both.into_slices();
            let (bound, all) = (MOST as u64, [a, b].concat());
            prop_assert!(slices.len() as u64 <= bound && slices.len() as u64 >= bound / 2);
            let mut at = 0;
            for slice in &slices {
                prop_assert_eq!(slice.start_ns, at);
                at += slice.length_ns;
                let mine = all.iter().filter(|t| (slice.start_ns..at).contains(&(1000 * **t)));
                prop_assert_eq!(mine.count() as u64, slice.done);
                prop_assert_eq!(slice.heat.iter().map(|(_, count)| count).sum::<u64>(), slice.done);
                prop_assert!(slice.heat.is_sorted_by_key(|(k, _)| *k));
            }
            prop_assert_eq!(at, 900_000_000);
        }
    }
}
