//! The course of a run as NDJSON, one JSON object per line and slice of time: `jq`, a data frame or `tail -f` read it.

use std::io::{self, Write};

use serde::Serialize;

use crate::report::Slice;
use crate::series::add;

/// One line.
#[derive(Serialize)]
struct Line<'a> {
    start_s: f64,
    length_s: f64,
    requests_per_second: f64,
    offered: u64,
    sent: u64,
    done: u64,
    failed: u64,
    connected: u64,
    bytes: u64,
    open: u64,
    p50_ns: Option<u64>,
    p90_ns: Option<u64>,
    p99_ns: Option<u64>,
    max_ns: u64,
    heat: &'a [(u16, u64)],
}

/// Writes one slice.
///
/// # Errors
/// Those of `out`.
pub fn write(slice: &Slice, out: &mut dyn Write) -> io::Result<()> {
    let length_s = slice.length_ns as f64 / 1e9;
    let line = Line {
        start_s: slice.start_ns as f64 / 1e9,
        length_s,
        requests_per_second: slice.done as f64 / length_s.max(1e-9),
        offered: slice.offered,
        sent: slice.sent,
        done: slice.done,
        failed: slice.failed,
        connected: slice.connected,
        bytes: slice.bytes,
        open: slice.open,
        p50_ns: percentile(slice, 0.5),
        p90_ns: percentile(slice, 0.9),
        p99_ns: percentile(slice, 0.99),
        max_ns: slice.max_ns,
        heat: &slice.heat,
    };
    serde_json::to_writer(&mut *out, &line)?;
    writeln!(out)
}

/// The response time that `share` of the slice's requests kept to, to about a tenth; `None` if fewer than 10 samples
/// lie beyond it.
pub fn percentile(slice: &Slice, share: f64) -> Option<u64> {
    let all: u64 = slice.heat.iter().map(|(_, count)| count).sum();
    let mut left = share * all as f64;
    if (all as f64) - left < 10.0 - 1e-6 {
        return None;
    }
    for (k, count) in &slice.heat {
        let count = *count as f64;
        if count > 0.0 && left <= count {
            // Within a quarter of a power of two the samples are taken to lie evenly.
            let ns = ((f64::from(*k) + left / count) / 4.0).exp2() as u64;
            return Some(ns.min(slice.max_ns.max(1)));
        }
        left -= count;
    }
    None
}

/// Puts two slices that lie end to end together.
pub fn join(first: &mut Slice, next: &Slice) {
    if first.length_ns == 0 {
        first.start_ns = next.start_ns;
    }
    first.length_ns += next.length_ns;
    first.open = next.open;
    add(first, next);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_object_and_joined_slices_lose_nothing() {
        let slice = |start_ns, heat| Slice {
            start_ns,
            length_ns: 500_000_000,
            done: 100,
            heat,
            max_ns: 2000,
            open: start_ns,
            ..Slice::default()
        };
        let mut sum = Slice::default();
        join(&mut sum, &slice(1_000_000_000, vec![(40, 90), (44, 10)]));
        join(&mut sum, &slice(1_500_000_000, vec![(36, 10), (40, 90)]));
        assert_eq!(
            (sum.start_ns, sum.length_ns, sum.done, sum.open),
            (1_000_000_000, 1_000_000_000, 200, 1_500_000_000)
        );
        assert_eq!(sum.heat, [(36, 10), (40, 180), (44, 10)]);
        let mut out = Vec::new();
        write(&sum, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches('\n').count(), 1);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((json["done"].as_u64(), json["requests_per_second"].as_f64()), (Some(200), Some(200.0)));
        assert!(json["p50_ns"].as_u64().is_some_and(|ns| (1024..1218).contains(&ns)), "{text}");
        assert!(json["p99_ns"].is_null());
    }
}
