//! `client scan`: the same load with another rate, or another number of clients, again and again.

use std::ffi::OsString;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context;
use client::Report;
use client::output::Run;
use serde::Serialize;

use super::once::{Quiet, Watched, interruption};
use super::{FAILED, INTERRUPTED, cell, micros};
use crate::options::Cli;

/// More points than this are a mistake.
const MOST: usize = 1000;

/// The options. `--rate FROM:TO:STEP` or `--children A,B,C` says what changes; the rest is that of a run.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// -R as FROM:TO:STEP scans rates; -c as LIST scans numbers of clients. Each value is a run
    #[arg(long, hide = true, value_name = "NAME=VALUES")]
    over: Option<String>,
    #[command(flatten)]
    server: Watched,
    #[command(flatten)]
    load: Cli,
}

/// Finds the option that has several values, and gives it its first, so that the line is one of a run.
pub fn unfold(words: Vec<OsString>) -> Vec<OsString> {
    if words.get(1).is_none_or(|word| word != "scan") {
        return words;
    }
    let mut words: Vec<OsString> = words;
    for place in 2..words.len() {
        let text = words.get(place).and_then(|word| word.to_str()).unwrap_or_default().to_owned();
        let (name, inside) = match text.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (text.clone(), None),
        };
        if !matches!(name.as_str(), "-R" | "--rate" | "-c" | "--children" | "--clients") {
            continue;
        }
        let at = if inside.is_some() { place } else { place + 1 };
        let next = words.get(at).and_then(|word| word.to_str()).unwrap_or_default().to_owned();
        let values = inside.unwrap_or(next);
        let Some(first) = points(&values).and_then(|points| points.first().cloned()) else { continue };
        let rate = matches!(name.as_str(), "-R" | "--rate");
        let name = if rate { "rate" } else { "children" };
        let long = if at == place { format!("--{name}={first}") } else { first };
        if let Some(slot) = words.get_mut(at) {
            *slot = long.into();
        }
        words.push(format!("--over={name}={values}").into());
        return words;
    }
    words
}

/// The values of FROM:TO:STEP or A,B,C; `None` for a single one.
fn points(text: &str) -> Option<Vec<String>> {
    let number = |text: &str| -> Option<f64> {
        let (digits, factor) = match text.strip_suffix(['k', 'K']) {
            Some(digits) => (digits, 1e3),
            None => text.strip_suffix(['m', 'M']).map_or((text, 1.0), |digits| (digits, 1e6)),
        };
        digits.parse::<f64>().ok().map(|value| value * factor).filter(|value| *value > 0.0 && value.is_finite())
    };
    if text.contains(',') {
        return Some(text.split(',').map(str::to_owned).collect());
    }
    let parts: Vec<f64> = text.split(':').map(number).collect::<Option<_>>()?;
    let [from, to, step] = parts.as_slice() else { return None };
    let steps = ((to - from) / step + 1e-9).floor();
    if *to < *from || steps >= MOST as f64 {
        return None;
    }
    Some((0..=steps as u32).map(|n| (from + f64::from(n) * step).to_string()).collect())
}

#[derive(Debug, Serialize)]
struct Point {
    value: String,
    rate: f64,
    p50_us: Option<f64>,
    p99_us: Option<f64>,
    max_us: f64,
    failed: u64,
    server_us: Option<f64>,
    client_us: Option<f64>,
}

impl Point {
    fn of(value: &str, report: &Report) -> Self {
        Point {
            value: value.to_owned(),
            rate: report.requests_per_second(),
            p50_us: micros(report, 500),
            p99_us: micros(report, 990),
            max_us: report.latency.response.max() as f64 / 1e3,
            failed: report.failures(),
            server_us: report.server_us_per_request(),
            client_us: report.cpu_us_per_request(),
        }
    }
}

/// Runs every point and prints the table.
pub fn run(args: &Args) -> anyhow::Result<u8> {
    use clap::{CommandFactory, error::ErrorKind};
    let Some((name, values)) = args.over.as_deref().and_then(|over| over.split_once('=')) else {
        let text = "scan needs --rate FROM:TO:STEP, such as 1k:50k:5k, or --children LIST, such as 1,2,4";
        Cli::command().error(ErrorKind::MissingRequiredArgument, text).exit()
    };
    args.load.refuse(&["series"], "scan").unwrap_or_else(|error| error.exit());
    let stop = interruption()?;
    let mut plans = Vec::new();
    for value in points(values).unwrap_or_default() {
        plans.push((args.load.with(name, &value).unwrap_or_else(|error| error.exit()), value));
    }
    let names: Vec<String> = plans.iter().map(|(_, value)| format!("{name} {value}")).collect();
    let mut files = args.load.output.open(args.load.json.as_deref(), &names)?;
    let (to_stdout, json) = (files.use_stdout(), files.take_json()?);
    let (mut points, mut runs) = (Vec::new(), Vec::new());
    for (plan, value) in plans {
        let report = args.server.run(&plan, &mut Quiet(Arc::clone(&stop)), &stop)?;
        if stop.load(Ordering::Relaxed) {
            return Ok(INTERRUPTED);
        }
        points.push(Point::of(&value, &report));
        if !args.load.quiet {
            _ = writeln!(io::stderr(), "{name} {value}: {:.0} requests/s", report.requests_per_second());
        }
        if files.is_any() {
            runs.push(Run { name: format!("{name} {value}"), report });
        }
    }
    if let Some(mut out) = json {
        let document = serde_json::json!({ "schema": 1, "kind": "scan", "over": name, "points": points });
        serde_json::to_writer_pretty(&mut out, &document)?;
        writeln!(out).and_then(|()| out.flush()).context("write JSON")?;
    }
    if !to_stdout {
        print(name, &points).context("write the table")?;
    }
    files.write(&runs)?;
    Ok(if points.iter().any(|point| point.failed > 0) { FAILED } else { 0 })
}

fn print(name: &str, points: &[Point]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let heads = ["done/s", "p50 us", "p99 us", "max us", "failed", "server us", "client us"];
    write!(out, "{name:>10}")?;
    heads.iter().try_for_each(|head| write!(out, "{head:>11}"))?;
    writeln!(out)?;
    for point in points {
        let figures = [Some(point.rate), point.p50_us, point.p99_us, Some(point.max_us)];
        write!(out, "{:>10}", point.value)?;
        figures.iter().try_for_each(|value| write!(out, "{:>11}", cell(*value)))?;
        writeln!(out, "{:>11}{:>11}{:>11}", point.failed, cell(point.server_us), cell(point.client_us))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        assert_eq!(points("1k:2k:500").unwrap(), ["1000", "1500", "2000"]);
        assert_eq!(points("1,2,4").unwrap(), ["1", "2", "4"]);
        for single in ["5", "1:2", "2:1:1", "1:2:0", "1:1000000:1"] {
            assert_eq!(points(single), None, "{single}");
        }
    }
}
