//! The subcommands: what is done around runs.

pub mod bench;
pub mod chat;
pub mod compare;
pub mod doctor;
pub mod find;
pub mod merge;
pub mod once;
pub mod scan;

use std::fs;
use std::path::Path;

use anyhow::Context;
use client::Report;

/// Exit status of a command that could not do its work, or found something wrong.
pub const FAILED: u8 = 1;
/// A gate is breached.
pub const BREACHED: u8 = 3;
/// Nothing is proved.
pub const INCONCLUSIVE: u8 = 4;
/// Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// The help of a subcommand that has none of the run's options: clap takes its own away below the command that has
/// written one itself.
#[derive(clap::Args, Debug)]
pub struct Help {
    /// Print this help
    #[arg(short, long, action = clap::ArgAction::HelpShort)]
    help: Option<bool>,
}

/// The reports of a file: one document or several, one after the other.
pub fn read(path: &Path) -> anyhow::Result<Vec<Report>> {
    let name = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("read {name}"))?;
    let reports: Result<Vec<Report>, _> = serde_json::Deserializer::from_str(&text).into_iter().collect();
    let reports = reports.with_context(|| format!("read {name}"))?;
    if reports.is_empty() {
        anyhow::bail!("read {name}: no report in it");
    }
    Ok(reports)
}

/// A report's percentile in microseconds.
pub fn micros(report: &Report, p: u64) -> Option<f64> {
    client::stats::percentile(&report.latency.response, p).map(|ns| ns as f64 / 1e3)
}

/// A number for a table, or a dash.
pub fn cell(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.1}"))
}
