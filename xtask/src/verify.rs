//! `verify`: all checks and tests in one command. CI runs only this command.

use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::print::say;
use crate::{check, smoke, tools};

/// The name of a step, and its function.
type Step = (&'static str, fn(&Path) -> Result<()>);

const STEPS: &[Step] = &[
    ("tools of Debian", |_| tools::ensure()),
    ("formatting", |root| cargo(root, &["fmt", "--all", "--check"])),
    ("lints", |root| cargo(root, &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])),
    ("rules", |root| check::run(root, &[], false)),
    ("build", |root| cargo(root, &["build", "--workspace", "--bins"])),
    ("tests", |root| cargo(root, &["test", "--workspace", "--no-fail-fast"])),
    ("release build", |root| {
        cargo(root, &["build", "--workspace", "--exclude", "xtask", "--exclude", "testkit", "--bins", "--release"])
    }),
    ("load on the release build", smoke::run),
];

pub fn run(root: &Path) -> Result<()> {
    let mut took: Vec<(&str, Duration)> = Vec::new();
    for (name, step) in STEPS {
        say(&format!("== {name}"));
        let start = Instant::now();
        step(root).with_context(|| format!("verify stops at: {name}"))?;
        took.push((name, start.elapsed()));
    }
    say("");
    for (name, time) in took {
        say(&format!("{name:28} {:7.1} s", time.as_secs_f64()));
    }
    say(&format!("verify: all {} steps passed", STEPS.len()));
    Ok(())
}

/// Runs cargo and prints its output. A skipped test is an error.
fn cargo(root: &Path, args: &[&str]) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // One pipe for both streams keeps the order of the lines.
    let (reader, writer) = io::pipe().context("pipe")?;
    let mut command = Command::new(cargo);
    command.args(args).current_dir(root).env("REQUIRE_ALL_TESTS", "1").env("PATH", tools::path());
    command.stdin(Stdio::null());
    command.stdout(writer.try_clone().context("pipe")?).stderr(writer);
    let mut child = command.spawn().context("cargo")?;
    // The command has copies of the write end: with them, the loop below would never read end of file.
    drop(command);
    let mut skipped = Vec::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line.context("cargo")?).into_owned();
        say(&line);
        if line.contains("SKIPPED:") {
            skipped.push(line);
        }
    }
    let status = child.wait().context("cargo")?;
    ensure!(status.success(), "cargo {}: {status}", args.join(" "));
    match skipped.as_slice() {
        [] => Ok(()),
        lines => bail!("skipped tests: {}", lines.join("; ")),
    }
}
