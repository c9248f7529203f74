//! `client find`: the highest rate that keeps the conditions.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use client::compare::Gate;
use client::output::Run;
use client::{Plan, Rate, Report, Until};
use serde::Serialize;

use super::once::{Quiet, Watched, interruption};
use super::{BREACHED, INTERRUPTED, cell, micros};
use crate::options::Cli;

/// Without -d each probe takes so long.
const PROBE: Duration = Duration::from_secs(2);
/// Of the schedule more must be sent, in percent.
const MISSED_PERCENT: f64 = 1.0;
/// Where the search begins and ends without -R.
const BOUNDS: Rate = Rate { from: 100.0, to: 1e6 };

/// The options.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What every run has to keep, such as p99<10ms or errors<0.1%; several with commas
    #[arg(long, value_name = "EXPR", value_delimiter = ',', required = true, help_heading = "Search")]
    slo: Vec<Gate>,
    /// The answer is known to so many percent
    #[arg(long, default_value = "5", value_parser = clap::value_parser!(u32).range(1..=50), help_heading = "Search")]
    precision: u32,
    #[command(flatten)]
    server: Watched,
    #[command(flatten)]
    load: Cli,
}

/// One run of the search.
#[derive(Clone, Debug, Serialize)]
struct Probe {
    rate: f64,
    achieved: f64,
    p50_us: Option<f64>,
    p99_us: Option<f64>,
    kept: bool,
}

struct Search<'a> {
    args: &'a Args,
    plan: Plan,
    stop: Arc<AtomicBool>,
    probes: Vec<Probe>,
    /// The reports of the probes, where a file needs them.
    runs: Option<Vec<Run>>,
}

/// Searches and prints; 3 if even the lowest rate does not keep them.
pub fn run(args: &Args) -> anyhow::Result<u8> {
    let mut plan = args.load.plan().unwrap_or_else(|error| error.exit());
    // How many runs the search takes is not known before it, so no file can be made ready for each.
    args.load.refuse(&["hgrm", "series"], "find").unwrap_or_else(|error| error.exit());
    let mut files = args.load.output.open(args.load.json.as_deref(), &[])?;
    let (to_stdout, json) = (files.use_stdout(), files.take_json()?);
    if !matches!(plan.until, Until::Elapsed(_)) {
        plan.until = Until::Elapsed(PROBE);
    }
    let bounds = plan.rate.filter(Rate::is_ramp).unwrap_or(match plan.rate {
        Some(rate) => Rate { from: rate.from, to: BOUNDS.to },
        None => BOUNDS,
    });
    if bounds.from <= 0.0 || bounds.from >= bounds.to {
        bail!("-R LOW:HIGH: the search needs a lowest rate above 0 and a higher one");
    }
    plan.warmup = client::Warmup::None;
    let stop = interruption()?;
    let runs = files.is_any().then(Vec::new);
    let mut search = Search { args, plan, stop, probes: Vec::new(), runs };
    let found = search.search(bounds)?;
    if search.stop.load(Ordering::Relaxed) {
        return Ok(INTERRUPTED);
    }
    if let Some(out) = json {
        search.write(found, out).context("write JSON")?;
    }
    if !to_stdout {
        search.print(found).context("write the table")?;
    }
    files.write(&search.runs.unwrap_or_default())?;
    Ok(if found.is_some() { 0 } else { BREACHED })
}

impl Search<'_> {
    /// Doubles until a rate is too high, then halves the ground between.
    fn search(&mut self, bounds: Rate) -> anyhow::Result<Option<f64>> {
        let (mut low, mut high) = (None, bounds.to);
        let mut rate = bounds.from;
        while self.keeps(rate)? {
            low = Some(rate);
            if rate >= bounds.to {
                return Ok(low);
            }
            rate = (rate * 2.0).min(bounds.to);
        }
        if low.is_some() {
            high = rate;
        }
        let close = 1.0 + f64::from(self.args.precision) / 100.0;
        while let Some(good) = low.filter(|low| high / low > close && !self.stop.load(Ordering::Relaxed)) {
            let middle = (good * high).sqrt();
            if self.keeps(middle)? { low = Some(middle) } else { high = middle }
        }
        Ok(low)
    }

    /// Two of three runs decide, so that neither one lucky nor one unlucky run does.
    fn keeps(&mut self, rate: f64) -> anyhow::Result<bool> {
        let (mut yes, mut no) = (0, 0);
        while yes < 2 && no < 2 {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
            if self.probe(rate)? { yes += 1 } else { no += 1 }
        }
        Ok(yes == 2)
    }

    fn probe(&mut self, rate: f64) -> anyhow::Result<bool> {
        let plan = Plan { rate: Some(Rate::constant(rate)), until: self.until(rate), ..self.plan.clone() };
        let report = self.args.server.run(&plan, &mut Quiet(Arc::clone(&self.stop)), &self.stop)?;
        let kept = self.kept(&report);
        let (p50_us, p99_us) = (micros(&report, 500), micros(&report, 990));
        let achieved = report.requests_per_second();
        if !self.args.load.quiet {
            let words = if kept { "kept" } else { "too high" };
            _ = writeln!(io::stderr(), "{rate:>9.0}/s  p99 {:>10} us  {words}", cell(p99_us));
        }
        self.probes.push(Probe { rate, achieved, p50_us, p99_us, kept });
        if let Some(runs) = &mut self.runs {
            runs.push(Run { name: format!("{rate:.0}/s, probe {}", self.probes.len()), report });
        }
        Ok(kept)
    }

    /// As long as asked for, and longer where so few answers would not tell the percentiles of the conditions.
    fn until(&self, rate: f64) -> Until {
        let Until::Elapsed(time) = self.plan.until else { return self.plan.until };
        let samples = self.args.slo.iter().map(Gate::samples).max().unwrap_or(1);
        let least = Duration::from_secs_f64((1.2 * samples as f64 / rate).min(3600.0));
        Until::Elapsed(time.max(least))
    }

    fn kept(&self, report: &Report) -> bool {
        // Who does not send what is due, or not in time, has not met the rate.
        let sent = report.honesty.missed_percent <= MISSED_PERCENT && report.requests.done > 0;
        sent && self.args.slo.iter().all(|gate| gate.check(report).is_none())
    }

    fn write(&self, found: Option<f64>, mut out: impl Write) -> io::Result<()> {
        let slo: Vec<String> = self.args.slo.iter().map(ToString::to_string).collect();
        let document = serde_json::json!({
            "schema": 1, "kind": "find", "slo": slo, "rate": found, "plan": self.plan, "probes": self.probes,
        });
        serde_json::to_writer_pretty(&mut out, &document)?;
        writeln!(out)?;
        out.flush()
    }

    fn print(&self, found: Option<f64>) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{:>10}{:>12}{:>12}{:>12}", "rate/s", "done/s", "p50 us", "p99 us")?;
        let mut probes = self.probes.clone();
        probes.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        for probe in &probes {
            let mark = if probe.kept { "kept" } else { "breached" };
            let (p50, p99) = (cell(probe.p50_us), cell(probe.p99_us));
            writeln!(out, "{:>10.0}{:>12.0}{p50:>12}{p99:>12}  {mark}", probe.rate, probe.achieved)?;
        }
        match found {
            Some(rate) => writeln!(out, "\nhighest rate that keeps it: {rate:.0}/s, within {} %", self.args.precision)?,
            None => writeln!(out, "\nBREACHED: even the lowest rate does not keep it")?,
        }
        Ok(())
    }
}
