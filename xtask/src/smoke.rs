//! The release build under real load: what the README promises, with the real client and with nc.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use testkit::catalogue::{self, Example};
use testkit::oracle::{self, Baseline};
use testkit::{Peer, Server};

use crate::bound::bound;

/// 50 clients x 2000 connections x 4000 bytes against every byte service.
pub fn run(root: &Path) -> Result<()> {
    let bin = root.join("target/release");
    for example in catalogue::examples(root)?.iter().filter(|example| example.family == "byte service") {
        smoke(&bin, example).with_context(|| example.name.clone())?;
    }
    Ok(())
}

fn smoke(bin: &Path, example: &Example) -> Result<()> {
    let mut server = start(bin, example)?;
    // Fifty at once have a high-water mark of memory, such as the stacks that glibc keeps for the next thread: that is
    // no leak, and belongs to the base line.
    load(bin, &server, "100")?;
    let base = Baseline::of(&server);
    let report = load(bin, &server, "2000")?;
    let rate = report.lines().find(|line| line.starts_with("rate")).unwrap_or_default();
    crate::print::say(&format!("{:22} 100000 answers, 0 errors; {rate}", example.name));

    // UNP's habit: no -N, so that nc waits for the server, whose idle deadline is a matter of milliseconds here.
    let habit = start_with(bin, example, &["--idle-timeout", "300"])?;
    let line = format!("printf '3000\\n' | nc {} {} | wc -c", habit.addr.ip(), habit.addr.port());
    let counted = Command::new("sh").args(["-c", &line]).stdin(Stdio::null()).output().context("sh")?;
    let counted = String::from_utf8_lossy(&counted.stdout).trim().to_owned();
    ensure!(counted == "3000", "`{line}` says {counted}");

    let faults = oracle::faults(&mut server, &base);
    ensure!(faults.is_empty(), "after the load: {}", faults.join("; "));
    if let Err(fault) = server.stop() {
        bail!("{fault}");
    }
    ensure!(Peer::try_connect(server.addr).is_err(), "it listens after its end");
    Ok(())
}

/// 50 clients, and the client's report.
fn load(bin: &Path, server: &Server, tries: &str) -> Result<String> {
    let port = server.addr.port().to_string();
    let mut client = Command::new(bin.join("client"));
    client.args(["-q", "-p", &port, "-c", "50", "-t", tries, "-b", "4000"]);
    let load = bound(&mut client).output().context("client")?;
    let report = String::from_utf8_lossy(&load.stdout).into_owned();
    ensure!(load.status.success(), "the client failed: {report}{}", String::from_utf8_lossy(&load.stderr));
    Ok(report)
}

fn start(bin: &Path, example: &Example) -> Result<Server> {
    start_with(bin, example, &[])
}

fn start_with(bin: &Path, example: &Example, args: &[&str]) -> Result<Server> {
    let mut command = Command::new(bin.join(&example.name));
    Server::try_start(bound(command.args(["-p", "0"]).args(args))).map_err(anyhow::Error::msg)
}
