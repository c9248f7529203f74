//! `client bench`: which server is better, or is it chance?

mod report;
mod rival;

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use client::compare::shuffle;
use client::output::args::Files;
use client::output::{Run, html};
use client::random::Random;
use client::{Plan, Report};
use serde::Serialize;

use super::once::{Quiet, Watched, interruption};
use super::{FAILED, INCONCLUSIVE, INTERRUPTED, merge, micros};
use crate::options::Cli;

pub use report::Outcome;

/// The options.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A server and its command, such as fork='target/release/server01-fork -p 0'; given several times
    #[arg(long = "server", value_name = "NAME=CMD", value_parser = named, required = true, help_heading = "Bench")]
    servers: Vec<(String, String)>,
    /// Rounds; each starts every server afresh, in random order (--seed). Fewer than 6 prove nothing
    #[arg(long, default_value = "9", value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "Bench")]
    rounds: u32,
    /// The server whose CPU time is subtracted from that of the others: their process control (the book's figure 30.1)
    #[arg(long, value_name = "NAME", help_heading = "Bench")]
    baseline: Option<String>,
    /// Another load generator to time against the first server; {host} and {port} are filled in. It makes as many
    /// requests as the plan, or says "N requests"
    #[arg(long = "peer", value_name = "NAME=CMD", value_parser = named, help_heading = "Bench")]
    peers: Vec<(String, String)>,
    #[command(flatten)]
    load: Cli,
}

fn named(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, command)) if !name.is_empty() && !command.trim().is_empty() => Ok((name.into(), command.into())),
        _ => Err("NAME=COMMAND, such as fork='server01-fork -p 0'".into()),
    }
}

/// What one round says of one server.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Sample {
    round: u32,
    rate: Option<f64>,
    p50_us: Option<f64>,
    p90_us: Option<f64>,
    p99_us: Option<f64>,
    server_us: Option<f64>,
    client_us: Option<f64>,
    failed: u64,
    server_busy: bool,
}

impl Sample {
    pub fn of(round: u32, report: &Report) -> Self {
        // Without the warm-up, where the run was long enough to tell.
        let steady = report.honesty.rate.map(|rate| rate.value);
        Sample {
            round,
            rate: Some(steady.unwrap_or_else(|| report.requests_per_second())),
            p50_us: micros(report, 500),
            p90_us: micros(report, 900),
            p99_us: micros(report, 990),
            server_us: report.server_us_per_request(),
            client_us: report.cpu_us_per_request(),
            failed: report.failures() + u64::from(report.requests.done == 0),
            server_busy: report.honesty.limited_by == client::report::Limit::Server,
        }
    }
}

/// One server, or a second copy of the first, which measures the noise.
#[derive(Clone, Debug, Serialize)]
pub struct Arm {
    name: String,
    command: String,
    samples: Vec<Sample>,
    /// All its rounds as one report.
    #[serde(skip)]
    all: Option<Report>,
}

impl Arm {
    fn take_run(&mut self) -> Option<Run> {
        Some(Run { name: self.name.clone(), report: self.all.take()? })
    }
}

/// Runs all rounds and prints what they say.
pub fn run(args: &Args) -> anyhow::Result<u8> {
    let plan = args.load.plan().unwrap_or_else(|error| error.exit());
    check(args)?;
    args.load.refuse(&["series"], "bench").unwrap_or_else(|error| error.exit());
    let names: Vec<String> = args.servers.iter().map(|(name, _)| name.clone()).collect();
    let mut files = args.load.output.open(args.load.json.as_deref(), &names)?;
    let stop = interruption()?;
    let mut random = Random::new(plan.seed);
    let mut arms: Vec<Arm> = args.servers.iter().map(arm).collect();
    if let Some(first) = args.servers.first() {
        arms.push(arm(&(format!("{} again", first.0), first.1.clone())));
    }
    let mut peers: Vec<rival::Peer> = args.peers.iter().map(rival::Peer::new).collect();
    for round in 0..args.rounds {
        play(round, &plan, &mut arms, &mut peers, &mut random, &stop)?;
        if stop.load(Ordering::Relaxed) {
            _ = writeln!(io::stderr(), "client: interrupted in round {}", round + 1);
            return Ok(INTERRUPTED);
        }
        if !args.load.quiet {
            _ = writeln!(io::stderr(), "round {} of {}", round + 1, args.rounds);
        }
    }
    let runs: Vec<Run> = arms.iter_mut().take(names.len()).filter_map(Arm::take_run).collect();
    let outcome = Outcome::of(&plan, arms, peers, args.baseline.clone(), &mut random);
    if !files.use_stdout() {
        outcome.print(&mut io::stdout().lock()).context("write the table")?;
    }
    write(&outcome, &mut files, &runs)?;
    files.write(&runs)?;
    Ok(match (outcome.failed(), outcome.is_decided()) {
        (true, _) => FAILED,
        (_, false) if args.load.strict => INCONCLUSIVE,
        _ => 0,
    })
}

/// Writes the files that say more than the runs themselves.
fn write(outcome: &Outcome, files: &mut Files, runs: &[Run]) -> anyhow::Result<()> {
    if let Some(mut out) = files.take_json()? {
        serde_json::to_writer_pretty(&mut out, outcome)?;
        writeln!(out).and_then(|()| out.flush()).context("write JSON")?;
    }
    if let Some(mut out) = files.take_csv()? {
        outcome.csv(&mut out).and_then(|()| out.flush()).context("write CSV")?;
    }
    if let Some(mut out) = files.take_html()? {
        html::write_with(runs, &outcome.tables(), &mut out).and_then(|()| out.flush()).context("write HTML")?;
    }
    Ok(())
}

/// Where JSON goes.
pub fn sink(path: Option<&std::path::Path>) -> anyhow::Result<Option<Box<dyn Write>>> {
    use anyhow::Context;
    Ok(match path {
        None => None,
        Some(path) if path.as_os_str() == "-" => Some(Box::new(io::stdout())),
        Some(path) => {
            let file = std::fs::File::create(path).with_context(|| format!("open {}", path.display()))?;
            Some(Box::new(io::BufWriter::new(file)))
        }
    })
}

fn check(args: &Args) -> anyhow::Result<()> {
    let names: Vec<&str> = args.servers.iter().map(|(name, _)| name.as_str()).collect();
    for (place, name) in names.iter().enumerate() {
        if names.iter().skip(place + 1).any(|other| other == name) {
            bail!("two servers are called {name}");
        }
    }
    match &args.baseline {
        Some(name) if !names.contains(&name.as_str()) => bail!("--baseline {name}: no --server is called so"),
        _ => Ok(()),
    }
}

fn arm((name, command): &(String, String)) -> Arm {
    Arm { name: name.clone(), command: command.clone(), samples: Vec::new(), all: None }
}

fn play(
    round: u32,
    plan: &Plan,
    arms: &mut [Arm],
    peers: &mut [rival::Peer],
    random: &mut Random,
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<()> {
    let mut order: Vec<usize> = (0..arms.len()).collect();
    shuffle(&mut order, random);
    for place in order {
        let Some(arm) = arms.get_mut(place) else { continue };
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let server = Watched { server_cmd: Some(arm.command.clone()), server_pid: None };
        let report = server.run(plan, &mut Quiet(Arc::clone(stop)), stop)?;
        arm.samples.push(Sample::of(round, &report));
        match &mut arm.all {
            Some(all) => merge::round(all, report)?,
            None => arm.all = Some(report),
        }
    }
    let Some(first) = arms.first() else { return Ok(()) };
    peers.iter_mut().try_for_each(|peer| peer.play(&first.command, plan, stop))
}
