//! A summary for spreadsheets and data frames: one row per run and latency, so that rows of many files can be put
//! below one another. Times are nanoseconds; a percentile with fewer than 10 samples beyond it is an empty cell.
//! What happened in the course of time is in the [series](super::series).

use std::io::{self, Write};

use hdrhistogram::Histogram;

use super::Run;
use crate::stats::{PERCENTILES, percentile};

/// The columns.
pub const HEAD: &str = "run,started,server,clients,rate,bytes,per_connection,elapsed_s,requests_sent,requests_done,\
requests_failed,requests_censored,connections_failed,requests_per_s,bytes_per_s,client_cpu_us_per_request,latency,\
count,min_ns,p50_ns,p90_ns,p99_ns,p99_9_ns,max_ns,mean_ns,stdev_ns";

/// Writes all runs below one head.
///
/// # Errors
/// Those of `out`.
pub fn write(runs: &[Run], out: &mut dyn Write) -> io::Result<()> {
    write!(out, "{HEAD}\r\n")?;
    for run in runs {
        let latency = &run.report.latency;
        for (name, histogram) in [
            ("connect", &latency.connect),
            ("first byte", &latency.first_byte),
            ("service", &latency.service),
            ("total", &latency.total),
            ("response", &latency.response),
            ("failed after", &latency.failed),
        ] {
            write!(out, "{},{},{}\r\n", of_run(run), name, of_latency(histogram))?;
        }
    }
    Ok(())
}

fn of_run(run: &Run) -> String {
    let report = &run.report;
    let started = report.machine.as_ref().map(|machine| machine.started_ns);
    let started = started.map(|ns| super::form::date(ns).replace(' ', "T").replace("TUTC", "Z"));
    let rate = report.plan.rate.map(|rate| match rate.is_ramp() {
        true => format!("{}:{}", rate.from, rate.to),
        false => rate.from.to_string(),
    });
    [
        cell(&run.name),
        started.unwrap_or_default(),
        report.addr.to_string(),
        report.plan.clients.to_string(),
        rate.unwrap_or_default(),
        report.plan.bytes.to_string(),
        report.plan.per_connection.to_string(),
        format!("{:.6}", report.elapsed.as_secs_f64()),
        report.requests.sent.to_string(),
        report.requests.done.to_string(),
        report.requests.failed.to_string(),
        report.requests.censored.to_string(),
        report.connections.failed.to_string(),
        format!("{:.3}", report.requests_per_second()),
        format!("{:.0}", report.bytes_per_second()),
        report.cpu_us_per_request().map(|us| format!("{us:.3}")).unwrap_or_default(),
    ]
    .join(",")
}

fn of_latency(histogram: &Histogram<u64>) -> String {
    let any = !histogram.is_empty();
    let number = |n: Option<u64>| n.map(|n| n.to_string()).unwrap_or_default();
    let mut cells = vec![histogram.len().to_string(), number(any.then(|| histogram.min()))];
    cells.extend(PERCENTILES.map(|p| number(percentile(histogram, p))));
    cells.push(number(any.then(|| histogram.max())));
    let fraction = |value: f64| if any { format!("{value:.1}") } else { String::new() };
    cells.extend([fraction(histogram.mean()), fraction(histogram.stdev())]);
    cells.join(",")
}

/// A cell of text: quoted as RFC 4180 has it where needed, and never what a spreadsheet would take for a formula.
pub fn cell(text: &str) -> String {
    let text = super::form::plain(text);
    let text = if text.starts_with(['=', '+', '-', '@']) { format!("'{text}") } else { text };
    if text.contains(['"', ',']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted_where_it_must_be() {
        assert_eq!(cell("a b"), "a b");
        assert_eq!(cell("a,\"b\""), "\"a,\"\"b\"\"\"");
        assert_eq!(cell("=1+1\n"), "'=1+1\u{fffd}");
    }
}
