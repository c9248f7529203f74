//! `client report`: files and text from saved reports, the same as the run itself would have written.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use clap::builder::styling::Styles;
use client::output::args::{Outputs, read};

/// Shows saved reports again: as text, or as the files asked for. Several are laid over one another.
#[derive(Parser, Debug)]
#[command(name = "client report", max_term_width = 100, styles = Styles::plain())]
pub struct Saved {
    /// Reports that `client --json FILE` has written
    #[arg(required = true, value_name = "FILE.json")]
    reports: Vec<PathBuf>,
    #[command(flatten)]
    output: Outputs,
    #[command(flatten)]
    _help: crate::commands::Help,
}

/// The exit status: 0 whatever the reports say of their runs, for it is this program that went well.
pub fn report(saved: &Saved) -> anyhow::Result<u8> {
    saved.output.check(None).unwrap_or_else(|error| error.exit());
    let runs = read(&saved.reports)?;
    let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
    if saved.output.is_any() {
        saved.output.open(None, &names)?.write(&runs)?;
        return Ok(0);
    }
    let mut out = BufWriter::new(io::stdout());
    for (number, run) in runs.iter().enumerate() {
        let mut written = if number > 0 { writeln!(out) } else { Ok(()) };
        if runs.len() > 1 {
            written = written.and_then(|()| writeln!(out, "== {}", client::output::form::plain(&run.name)));
        }
        written.and_then(|()| client::text::write(&run.report, &mut out)).context("write the report")?;
    }
    out.flush().context("write the report")?;
    Ok(0)
}
