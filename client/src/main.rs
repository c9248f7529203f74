//! The load client's command: options in, a run of the library, the report out.
//!
//! The report goes to stdout; progress and what went wrong go to stderr. The exit status is 0 only if every answer
//! came and was right.

mod commands;
mod options;
mod progress;
mod saved;

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use clap::{Parser, Subcommand};
use client::output::Run;
use client::output::args::Files;
use client::{Ended, Report};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::flag;

use options::Cli;
use progress::{Screen, Show};

const FAILED: u8 = 1;
/// Nothing failed, and still the figures prove nothing.
const INCONCLUSIVE: u8 = 4;
const INTERRUPTED: u8 = 130;
/// These end a process too. With a live view they end the run instead, so that the terminal is itself again.
const RESTORE: [i32; 2] = [SIGHUP, SIGQUIT];

/// What `client` is told: a run, or a subcommand.
#[derive(Parser, Debug)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true, subcommand_help_heading = "Commands")]
struct Top {
    #[command(flatten)]
    run: Cli,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What is done around runs.
#[derive(Subcommand, Debug)]
enum Command {
    /// Show saved reports again: as text, HTML, SVG, CSV; several over one another
    Report(saved::Saved),
    /// Look at this machine: how many clients and how much rate it lets this client have
    Doctor(commands::doctor::Args),
}

fn main() -> ExitCode {
    let top = Top::parse();
    let done = match &top.command {
        None => load(&top.run),
        Some(Command::Report(args)) => saved::report(args),
        Some(Command::Doctor(args)) => commands::doctor::run(args),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            _ = writeln!(io::stderr(), "client: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn load(cli: &Cli) -> anyhow::Result<u8> {
    let plan = cli.plan().unwrap_or_else(|error| error.exit());
    cli.output.check(cli.json.as_deref()).unwrap_or_else(|error| error.exit());
    // Before the run: what cannot be written is better known now.
    let mut files = cli.output.open(cli.json.as_deref(), &[String::new()])?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM].into_iter().chain(RESTORE.into_iter().filter(|_| cli.tui)) {
        flag::register(signal, Arc::clone(&stop)).context("sigaction")?;
    }
    let series = files.take_series()?;
    let mut screen = Screen::new(&plan, Show::from(cli), cli.interval, series, stop)?;
    let report = client::run(&plan, &mut screen);
    // The terminal is itself again before a signal can end the process.
    let series = screen.finish();
    for signal in [SIGINT, SIGTERM].into_iter().chain(RESTORE.into_iter().filter(|_| cli.tui)) {
        // From here a signal ends the process: the report may be stuck in a pipe that nobody reads.
        flag::register_conditional_default(signal, Arc::new(AtomicBool::new(true))).context("sigaction")?;
    }
    let report = report?;
    let ended = report.ended;
    let good = report.is_good();
    let doubts = if cli.strict { report.doubts() } else { Vec::new() };
    print(report, files, cli.explain)?;
    series?;
    for doubt in &doubts {
        _ = writeln!(io::stderr(), "client: inconclusive: {doubt}");
    }
    Ok(match ended {
        Ended::Interrupted => INTERRUPTED,
        _ if !good => FAILED,
        _ if doubts.is_empty() => 0,
        _ => INCONCLUSIVE,
    })
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
