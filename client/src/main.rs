//! The load client's command: options in, a run of the library, the report out.
//!
//! The report goes to stdout; progress and what went wrong go to stderr. The exit status is 0 only if every answer
//! came and was right.

mod commands;
mod forked;
mod options;
mod progress;
mod saved;
mod watch;

use std::env;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use clap::{Parser, Subcommand};
use client::output::Run;
use client::output::args::Files;
use client::{CouldNotRun, Ended, EngineKind, Report};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::flag;

use commands::once::{Around, judge};
use forked::Crowd;
use options::Cli;
use progress::{Screen, Show};

const FAILED: u8 = 1;
/// The kernel does not have what the run needs, or refuses it.
const UNAVAILABLE: u8 = 69;
/// Nothing failed, and still the figures prove nothing.
const INCONCLUSIVE: u8 = 4;
const INTERRUPTED: u8 = 130;
/// These end a process too. With a live view they end the run instead, so that the terminal is itself again.
const RESTORE: [i32; 2] = [SIGHUP, SIGQUIT];

/// What `client` is told: a run, or a subcommand.
#[derive(Parser, Debug)]
#[command(about = options::ABOUT, args_conflicts_with_subcommands = true, disable_help_subcommand = true, subcommand_help_heading = "Commands")]
struct Top {
    #[command(flatten)]
    run: Cli,
    #[command(flatten)]
    around: Around,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What is done around runs.
#[derive(Subcommand, Debug)]
enum Command {
    /// Which server is better? Rounds in random order, ratios with intervals, a verdict
    #[command(about = "Which server is better? Rounds in random order, ratios with intervals, a verdict")]
    #[command(override_usage = "client bench --server A='CMD' --server B='CMD' [OPTIONS]")]
    #[command(after_help = BENCH_HELP)]
    Bench(Box<commands::bench::Args>),
    /// A chat under load: members, senders, delivery latency, loss
    #[command(about = "A chat under load (also as --chat): members, senders, delivery latency, loss, join storm")]
    #[command(override_usage = "client --chat [-p PORT] [-c MEMBERS] [-s SENDERS] [-R RATE] [OPTIONS]")]
    Chat(Box<commands::chat::Args>),
    /// Compare saved reports
    #[command(about = "Compare saved reports: ratios, intervals, p")]
    Compare(commands::compare::Args),
    /// Find the highest rate that keeps a condition
    #[command(about = "Find the highest rate that keeps a condition")]
    #[command(override_usage = "client find --slo EXPR [-R LOW:HIGH] [OPTIONS]")]
    #[command(after_help = "Exit status: 0 found, 1 failed, 2 usage, 3 even the lowest rate does not keep it")]
    Find(Box<commands::find::Args>),
    /// Make the same load with many rates, or many numbers of clients
    #[command(about = "Make the same load with many rates, or many numbers of clients")]
    #[command(
        override_usage = "client scan --rate FROM:TO:STEP [OPTIONS]\n       client scan --children A,B,C [OPTIONS]"
    )]
    #[command(
        after_help = "Example: client scan --rate 1k:50k:5k -k 0 -d 2s\n\n--html, --svg, --csv and --hgrm have a run per value."
    )]
    Scan(Box<commands::scan::Args>),
    /// Merge reports of the same load from several machines
    #[command(about = "Merge reports of the same load from several machines, exactly")]
    Merge(commands::merge::Args),
    /// Show saved reports again: as text, HTML, SVG, CSV; several over one another
    Report(saved::Saved),
    /// Look at this machine: how many clients and how much rate it lets this client have
    Doctor(commands::doctor::Args),
}

const BENCH_HELP: &str = "\
The first server runs twice in each round, as itself and as its own rival. The noise band is by how much those two
differ in their widest round, or twice as far from 1 as their 95 % interval reaches, whichever is less. A difference
counts if its 95 % interval lies outside that band, and its p (sign flips, Holm over the pairs) is at most 0.05. Where
the interval lies inside the band and holds 1, the two are called the same.

CPU times and percentiles are of the time behind the warm-up (-w; auto with -d). --csv has a row per server and round;
--html, --svg and --hgrm show all rounds of a server as one run.

Example:
  client bench --server fork='target/release/server01-fork -p 0' \\
               --server threads='target/release/server05-threads -p 0' --baseline fork -c 10 -d 2s";

fn main() -> ExitCode {
    let top = Top::parse_from(commands::scan::unfold(commands::chat::unfold(env::args_os().collect())));
    let done = match &top.command {
        None => load(&top.run, &top.around),
        Some(Command::Bench(args)) => commands::bench::run(args),
        Some(Command::Chat(args)) => commands::chat::run(args),
        Some(Command::Compare(args)) => commands::compare::run(args),
        Some(Command::Find(args)) => commands::find::run(args),
        Some(Command::Scan(args)) => commands::scan::run(args),
        Some(Command::Merge(args)) => commands::merge::run(args),
        Some(Command::Report(args)) => saved::report(args),
        Some(Command::Doctor(args)) => commands::doctor::run(args),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            _ = writeln!(io::stderr(), "client: {error:#}");
            let is_missing = matches!(error.downcast_ref(), Some(CouldNotRun::NoRing(_)));
            ExitCode::from(if is_missing { UNAVAILABLE } else { FAILED })
        }
    }
}

fn load(cli: &Cli, around: &Around) -> anyhow::Result<u8> {
    let plan = cli.plan().unwrap_or_else(|error| error.exit());
    cli.output.check(cli.json.as_deref()).unwrap_or_else(|error| error.exit());
    // Before the run: what cannot be written is better known now.
    let mut files = cli.output.open(cli.json.as_deref(), &[String::new()])?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM].into_iter().chain(RESTORE.into_iter().filter(|_| cli.tui)) {
        flag::register(signal, Arc::clone(&stop)).context("sigaction")?;
    }
    // Before the screen, the server and the watch: they start threads.
    let crowd = (plan.engine == EngineKind::Fork).then(|| Crowd::fork(&plan, &stop)).transpose()?;
    let mut lost = false;
    let series = files.take_series()?;
    let show = if crowd.is_some() { Show::Nothing } else { Show::from(cli) };
    let mut screen = Screen::new(&plan, show, cli.interval, series, Arc::clone(&stop))?;
    let report = around.server.run_by(&plan, &mut screen, &stop, |plan, observer| match crowd {
        Some(crowd) => crowd.run(plan, observer, &mut lost),
        None => Ok(client::run(plan, observer)?),
    });
    // The terminal is itself again before a signal can end the process.
    let series = screen.finish();
    for signal in [SIGINT, SIGTERM].into_iter().chain(RESTORE.into_iter().filter(|_| cli.tui)) {
        // From here a signal ends the process: the report may be stuck in a pipe that nobody reads.
        flag::register_conditional_default(signal, Arc::new(AtomicBool::new(true))).context("sigaction")?;
    }
    let report = report?;
    let ended = report.ended;
    let good = report.is_good() && !lost;
    let doubts = if cli.strict { report.doubts() } else { Vec::new() };
    let gates = around.slo.clone();
    let verdict = judged(report, files, cli.explain, &gates)?;
    series?;
    for doubt in &doubts {
        _ = writeln!(io::stderr(), "client: inconclusive: {doubt}");
    }
    Ok(match ended {
        Ended::Interrupted => INTERRUPTED,
        _ if !good => FAILED,
        _ if verdict != 0 => verdict,
        _ if doubts.is_empty() => 0,
        _ => INCONCLUSIVE,
    })
}

/// Prints the report, and says then how it keeps the gates.
fn judged(report: Report, files: Files, explain: bool, gates: &[client::compare::Gate]) -> anyhow::Result<u8> {
    let breaches = gates.iter().filter_map(|gate| gate.check(&report)).collect();
    print(report, files, explain)?;
    Ok(judge(breaches))
}

/// Writes the text, unless one of the files is stdout, and the files.
fn print(report: Report, files: Files, explain: bool) -> anyhow::Result<()> {
    let run = Run { name: report.addr.to_string(), report };
    if !files.use_stdout() {
        let mut out = BufWriter::new(io::stdout());
        let mut written = client::text::write(&run.report, &mut out);
        if explain {
            written = written.and_then(|()| write!(out, "\n{}", client::explain::TEXT));
        }
        written.and_then(|()| out.flush()).context("write the report")?;
    }
    files.write(slice::from_ref(&run))
}
