//! The load client's command: options in, a run of the library, the report out.
//!
//! The report goes to stdout; progress and what went wrong go to stderr. The exit status is 0 only if every answer
//! came and was right.

mod options;
mod progress;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use clap::Parser;
use client::{Ended, Report};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use options::Cli;
use progress::Screen;

const FAILED: u8 = 1;
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match load(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            _ = writeln!(io::stderr(), "client: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn load(cli: &Cli) -> anyhow::Result<u8> {
    let plan = cli.plan().unwrap_or_else(|error| error.exit());
    // Before the run: what cannot be written is better known now.
    let json = cli.json.as_deref().map(open).transpose()?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register(signal, Arc::clone(&stop)).context("sigaction")?;
    }
    let mut screen = Screen::new(&plan, cli.plain, cli.quiet, stop);
    let report = client::run(&plan, &mut screen);
    for signal in [SIGINT, SIGTERM] {
        // From here a signal ends the process: the report may be stuck in a pipe that nobody reads.
        flag::register_conditional_default(signal, Arc::new(AtomicBool::new(true))).context("sigaction")?;
    }
    screen.clear();
    let report = report?;
    print(&report, json, cli.explain)?;
    Ok(match report.ended {
        Ended::Interrupted => INTERRUPTED,
        _ if report.is_good() => 0,
        _ => FAILED,
    })
}

/// Where the JSON goes; `None` is stdout.
fn open(path: &Path) -> anyhow::Result<Option<File>> {
    if path == Path::new("-") {
        return Ok(None);
    }
    File::create(path).map(Some).with_context(|| format!("open {}", path.display()))
}

fn print(report: &Report, json: Option<Option<File>>, explain: bool) -> anyhow::Result<()> {
    let to_stdout = matches!(json, Some(None));
    if let Some(file) = json {
        let mut out: Box<dyn Write> = match file {
            Some(file) => Box::new(BufWriter::new(file)),
            None => Box::new(BufWriter::new(io::stdout())),
        };
        client::json::write(report, &mut out).and_then(|()| out.flush()).context("write JSON")?;
    }
    if !to_stdout {
        let mut out = BufWriter::new(io::stdout());
        let mut written = client::text::write(report, &mut out);
        if explain {
            written = written.and_then(|()| write!(out, "\n{}", client::explain::TEXT));
        }
        written.and_then(|()| out.flush()).context("write the report")?;
    }
    Ok(())
}
