//! `client compare`: saved runs of two sides or more.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::bail;
use client::Report;
use client::compare::{Pair, holm, median, shift_p};
use client::random::Random;
use client::report::Interval;
use serde::Serialize;

use super::{INCONCLUSIVE, micros, read};

/// Resamples of a ratio of medians.
const RESAMPLES: usize = 2000;
/// p up to which a difference is more than chance.
const SIGNIFICANT: f64 = 0.05;

/// The options.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Each file is a side, and holds one report or several (client -j - >> a.json).
With a : between them each group of files is a side:
  client compare old-*.json : new-*.json")]
pub struct Args {
    /// Reports that client --json FILE has written
    #[arg(required = true, num_args = 2.., value_name = "FILE.json")]
    files: Vec<PathBuf>,
    /// Runs of the same number belong together, as when they were made in turns
    #[arg(long)]
    paired: bool,
    /// Exit status 4 where a difference is not more than chance
    #[arg(long)]
    strict: bool,
    /// Print JSON
    #[arg(short, long)]
    json: bool,
    #[command(flatten)]
    _help: super::Help,
}

type Pick = fn(&Report) -> Option<f64>;
const METRICS: [(&str, Pick); 5] = [
    ("rate/s", |r| Some(r.honesty.rate.map_or_else(|| r.requests_per_second(), |rate| rate.value))),
    ("p50 us", |r| micros(r, 500)),
    ("p99 us", |r| micros(r, 990)),
    ("server us", Report::server_us_per_request),
    ("client us", Report::cpu_us_per_request),
];

struct Side {
    name: String,
    reports: Vec<Report>,
}

#[derive(Debug, Serialize)]
struct Line {
    metric: &'static str,
    first: String,
    second: String,
    first_median: f64,
    second_median: f64,
    ratio: Interval,
    /// `None` where there is one run of a side: chance cannot be judged.
    p: Option<f64>,
}

/// Compares every side with the first.
pub fn run(args: &Args) -> anyhow::Result<u8> {
    let sides = sides(&args.files)?;
    if args.paired && sides.windows(2).any(|pair| matches!(pair, [a, b] if a.reports.len() != b.reports.len())) {
        bail!("--paired needs as many runs on each side");
    }
    let mut random = Random::new(1);
    let mut lines = Vec::new();
    for (metric, pick) in METRICS {
        lines.extend(compare(metric, pick, &sides, args.paired, &mut random));
    }
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &serde_json::json!({ "schema": 1, "kind": "compare", "lines": lines }))?;
        writeln!(out)?;
    } else {
        print(&sides, &lines, &mut out)?;
    }
    let decided =
        lines.iter().filter(|line| line.metric == "rate/s").all(|line| line.p.is_some_and(|p| p <= SIGNIFICANT));
    Ok(if args.strict && !decided { INCONCLUSIVE } else { 0 })
}

fn sides(files: &[PathBuf]) -> anyhow::Result<Vec<Side>> {
    let grouped = files.iter().any(|file| file == Path::new(":"));
    let groups: Vec<&[PathBuf]> = match grouped {
        true => files.split(|file| file == Path::new(":")).collect(),
        false => files.chunks(1).collect(),
    };
    let mut sides: Vec<Side> = Vec::new();
    for group in groups {
        let Some(first) = group.first() else { bail!("a side between two : is empty") };
        let mut reports = Vec::new();
        for file in group {
            reports.extend(read(file)?);
        }
        let stem = first.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        sides.push(Side { name: stem, reports });
    }
    if sides.len() < 2 {
        bail!("one side is no comparison");
    }
    Ok(sides)
}

fn compare(metric: &'static str, pick: Pick, sides: &[Side], paired: bool, random: &mut Random) -> Vec<Line> {
    let values = |side: &Side| side.reports.iter().filter_map(pick).filter(|v| *v > 0.0).collect::<Vec<f64>>();
    let Some((first, others)) = sides.split_first() else { return Vec::new() };
    let a = values(first);
    let mut lines = Vec::new();
    for second in others {
        let b = values(second);
        if a.is_empty() || b.is_empty() {
            continue;
        }
        let (ratio, p) = judge(&a, &b, paired, random);
        let (first_median, second_median) = (median(&a), median(&b));
        let (first, second) = (first.name.clone(), second.name.clone());
        lines.push(Line { metric, first, second, first_median, second_median, ratio, p });
    }
    let corrected = holm(&lines.iter().map(|line| line.p.unwrap_or(1.0)).collect::<Vec<_>>());
    lines.iter_mut().zip(corrected).for_each(|(line, p)| line.p = line.p.map(|_| p));
    lines
}

fn judge(a: &[f64], b: &[f64], paired: bool, random: &mut Random) -> (Interval, Option<f64>) {
    let value = median(b) / median(a);
    if a.len() < 2 || b.len() < 2 {
        return (Interval { value, low: f64::NAN, high: f64::NAN }, None);
    }
    if paired && a.len() == b.len() {
        let ratios: Vec<f64> = a.iter().zip(b).map(|(a, b)| b / a).collect();
        let pair = Pair::of(&ratios, random);
        return (pair.ratio, Some(pair.p));
    }
    let draw = |from: &[f64], random: &mut Random| -> f64 {
        let pick = |random: &mut Random| from.get((random.unit() * from.len() as f64) as usize).copied();
        median(&from.iter().filter_map(|_| pick(random)).collect::<Vec<_>>())
    };
    let mut ratios: Vec<f64> = (0..RESAMPLES).map(|_| draw(b, random) / draw(a, random)).collect();
    ratios.sort_by(f64::total_cmp);
    let at = |share: f64| ratios.get((share * (RESAMPLES - 1) as f64) as usize).copied().unwrap_or_default();
    let logs = |values: &[f64]| values.iter().map(|value| value.ln()).collect::<Vec<_>>();
    (Interval { value, low: at(0.025), high: at(0.975) }, Some(shift_p(&logs(a), &logs(b), random)))
}

fn print(sides: &[Side], lines: &[Line], out: &mut dyn Write) -> io::Result<()> {
    let plans: Vec<_> = sides.iter().flat_map(|side| &side.reports).map(|report| report.plan.describe()).collect();
    for side in sides {
        writeln!(out, "{:<18}{} runs", side.name, side.reports.len())?;
    }
    if plans.windows(2).any(|pair| matches!(pair, [a, b] if a != b)) {
        writeln!(out, "WARNING: the runs had different loads")?;
    }
    writeln!(
        out,
        "\n{:<24}{:>10}{:>12}{:>12}{:>8}{:>18}{:>9}",
        "second / first", "", "first", "second", "ratio", "95 % interval", "p"
    )?;
    for line in lines {
        let names = format!("{} / {}", line.second, line.first);
        let (interval, p) = match line.p {
            Some(p) => (format!("{:.3} to {:.3}", line.ratio.low, line.ratio.high), format!("{p:.4}")),
            None => ("-".to_owned(), "-".to_owned()),
        };
        let (first, second, ratio) = (line.first_median, line.second_median, line.ratio.value);
        writeln!(out, "{names:<24}{:>10}{first:>12.1}{second:>12.1}{ratio:>8.3}{interval:>18}{p:>9}", line.metric)?;
    }
    writeln!(out)?;
    for line in lines.iter().filter(|line| line.metric == "rate/s") {
        let (first, second, percent) = (&line.first, &line.second, 100.0 * (line.ratio.value - 1.0));
        match line.p {
            None => writeln!(out, "{second} and {first}: one run says nothing about chance, make at least 6 of each")?,
            Some(p) if p <= SIGNIFICANT => {
                writeln!(out, "{second} does {percent:+.1} % requests per second against {first}")?
            }
            Some(_) => writeln!(out, "{second} and {first}: no difference in rate that is more than chance")?,
        }
    }
    Ok(())
}
