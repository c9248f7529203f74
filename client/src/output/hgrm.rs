//! Histograms in HdrHistogram's text form, the percentile distribution that its plotter and wrk2 know. Values are
//! milliseconds.

use std::io::{self, Write};

use hdrhistogram::Histogram;

/// Rows for each halving of the distance to 100 %, as many as HdrHistogram's own tools print.
const ROWS_PER_HALF: u32 = 5;
const NS_PER_MS: f64 = 1e6;

/// Writes one histogram of nanoseconds.
///
/// # Errors
/// Those of `out`.
pub fn write(histogram: &Histogram<u64>, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{:>12} {:>14} {:>10} {:>14}\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)")?;
    let mut total = 0;
    for row in histogram.iter_quantiles(ROWS_PER_HALF) {
        total += row.count_since_last_iteration();
        let (value, quantile) = (row.value_iterated_to() as f64 / NS_PER_MS, row.quantile_iterated_to());
        write!(out, "{value:>12.6} {quantile:>14.12} {total:>10} ")?;
        if quantile < 1.0 {
            writeln!(out, "{:>14.2}", 1.0 / (1.0 - quantile))?;
        } else {
            writeln!(out, "{:>14}", "inf")?;
        }
    }
    let (mean, deviation) = if histogram.is_empty() { (0.0, 0.0) } else { (histogram.mean(), histogram.stdev()) };
    writeln!(out, "#[Mean    = {:>12.6}, StdDeviation   = {:>12.6}]", mean / NS_PER_MS, deviation / NS_PER_MS)?;
    writeln!(
        out,
        "#[Max     = {:>12.6}, Total count    = {:>12}]",
        histogram.max() as f64 / NS_PER_MS,
        histogram.len()
    )?;
    // The buckets that Java's HdrHistogram would have: each doubles the range of the one before.
    let sub_buckets = 2_u64 << (10_u64.pow(histogram.sigfig().into()).ilog2() + 1);
    let buckets = u64::from((histogram.high() / sub_buckets).checked_ilog2().map_or(0, |log| log + 1)) + 1;
    writeln!(out, "#[Buckets = {buckets:>12}, SubBuckets     = {sub_buckets:>12}]")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(histogram: &Histogram<u64>) -> String {
        let mut out = Vec::new();
        write(histogram, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn read_back_it_is_the_same_distribution() {
        let mut histogram = Histogram::<u64>::new_with_bounds(1, 3_600_000_000_000, 3).unwrap();
        (1..=100_000_u64).for_each(|n| histogram.record(n * 1000).unwrap());
        let text = text(&histogram);
        assert!(text.starts_with("       Value     Percentile TotalCount 1/(1-Percentile)\n\n"), "{text}");
        let rows: Vec<Vec<f64>> = text
            .lines()
            .skip(2)
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().map(|cell| cell.parse().unwrap()).collect())
            .collect();
        assert!(rows.len() > 50 && rows.iter().all(|row| row.len() == 4));
        assert!(rows.is_sorted_by(|a, b| a[0] <= b[0] && a[1] <= b[1] && a[2] <= b[2]));
        for row in &rows {
            let value = (row[0] * 1e6).round() as u64;
            assert!(row[2] / 100_000.0 >= row[1] - 1e-9, "{row:?}");
            assert_eq!(histogram.count_between(0, value), row[2] as u64, "{row:?}");
            assert!(row[3].is_infinite() || (row[3] * (1.0 - row[1]) - 1.0).abs() < 0.01, "{row:?}");
        }
        let last = rows.last().unwrap();
        assert!(last[1] == 1.0 && last[2] == 100_000.0 && last[3].is_infinite());
        assert!(
            text.contains("Total count    =       100000]") && text.contains("SubBuckets     =         2048]"),
            "{text}"
        );
    }

    #[test]
    fn nothing_measured_is_an_empty_distribution() {
        let text = text(&Histogram::<u64>::new(3).unwrap());
        assert!(text.contains("Total count    =            0]") && !text.contains("NaN"), "{text}");
    }
}
