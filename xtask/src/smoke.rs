//! The release build under load: the real client against every byte service, and nc as a second client.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use testkit::oracle::{self, Baseline};
use testkit::{Peer, Server};

use crate::bound::bound;
use crate::print::say;
use crate::tree::{Kind, Tree};

/// 50 clients x 2000 connections x 4000 bytes against every byte service, edge-triggered epoll included.
pub fn run(root: &Path) -> Result<()> {
    let bin = root.join("target/release");
    for (_, program) in Tree::read(root)?.lessons().filter(|(package, _)| package.kind == Kind::Server) {
        smoke(&bin, &program.name).with_context(|| program.name.clone())?;
    }
    Ok(())
}

fn smoke(bin: &Path, name: &str) -> Result<()> {
    let mut server = start(bin, name, &[])?;
    // 50 clients at once leave memory behind, such as the stacks that glibc keeps for the next threads. That is no leak
    // and belongs to the baseline.
    load(bin, &server, "100")?;
    let base = Baseline::of(&server);
    let report = load(bin, &server, "2000")?;
    let rate = report.lines().find(|line| line.starts_with("rate")).unwrap_or_default();
    say(&format!("{name:22} 100000 answers, 0 errors; {rate}"));

    // Without -N, nc waits until the server closes the connection: here after a short idle timeout.
    let waiting = start(bin, name, &["--idle-timeout", "300"])?;
    let line = format!("printf '3000\\n' | nc {} {} | wc -c", waiting.addr.ip(), waiting.addr.port());
    let counted = Command::new("sh").args(["-c", &line]).stdin(Stdio::null()).output().context("sh")?;
    let counted = String::from_utf8_lossy(&counted.stdout).trim().to_owned();
    ensure!(counted == "3000", "`{line}` prints {counted}");

    let faults = oracle::faults(&mut server, &base);
    ensure!(faults.is_empty(), "after the load: {}", faults.join("; "));
    if let Err(fault) = server.stop() {
        bail!("{fault}");
    }
    ensure!(Peer::try_connect(server.addr).is_err(), "the port still accepts connections after the server's exit");
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

fn start(bin: &Path, name: &str, args: &[&str]) -> Result<Server> {
    let mut command = Command::new(bin.join(name));
    Server::try_start(bound(command.args(["-p", "0"]).args(args))).map_err(anyhow::Error::msg)
}
