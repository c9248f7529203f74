//! `demo`: a server, a load, the process tree while it lasts, and the report.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use procfs::process::Process;
use testkit::procs::{self, Proc};
use testkit::{Server, describe};

use crate::bound::bound;
use crate::print::say;
use crate::{diff, table};

pub fn list(root: &Path) -> Result<()> {
    for line in table::render(&testkit::catalogue::examples(root)?).lines().skip(2) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let name = cells.get(1).and_then(|cell| cell.split(['[', ']']).nth(1)).unwrap_or_default();
        say(&format!("{name:24} {}", cells.get(2).unwrap_or(&"")));
    }
    Ok(())
}

pub fn run(root: &Path, name: &str) -> Result<()> {
    let examples = testkit::catalogue::examples(root)?;
    let example = examples
        .iter()
        .find(|example| example.name == name)
        .with_context(|| diff::unknown(name, examples.iter().map(|example| example.name.as_str())))?;
    build(root, name)?;
    let bin = root.join("target/debug");

    let is_chat = example.family == "chat";
    // A log would stay behind.
    let args = if is_chat { &["-p", "0", "--no-log"][..] } else { &["-p", "0"] };
    say(&format!("{name}: {}\n\n$ {name} {}", example.description, args.join(" ")));
    let mut server = Server::try_start(bound(Command::new(bin.join(name)).args(args))).map_err(anyhow::Error::msg)?;
    say(&format!("listening on {}\n", server.addr));
    let port = server.addr.port().to_string();

    // Clients that stay, so that there is something to see: a place for each of them where the model has several.
    let crowd = example.slots.clamp(1, 5).to_string();
    let load = match is_chat {
        true => vec!["--chat", "-p", &port, "-c", "5", "-R", "20", "-d", "1s", "-s", "5"],
        false => vec!["-q", "-p", &port, "-c", &crowd, "-k", "0", "-d", "1s"],
    };
    say(&format!("$ client {}   (in the background, while the processes are looked at)", load.join(" ")));
    let mut background =
        bound(Command::new(bin.join("client")).args(&load).stdout(Stdio::null())).spawn().context("client")?;
    let widest = widest(&server, &mut background)?;
    tree(&server, &widest);

    let load = match is_chat {
        true => vec!["--chat", "-p", &port, "-c", "20", "-s", "10", "-R", "100", "-d", "2s"],
        false => vec!["-p", &port, "-c", "5", "-t", "200", "-b", "3000"],
    };
    say(&format!("\n$ client {}", load.join(" ")));
    let status = bound(Command::new(bin.join("client")).args(&load).stdin(Stdio::null())).status().context("client")?;

    say(&format!("\n$ kill -TERM {}", server.pid()));
    let stopped = server.stop();
    say(server.log().trim_end());
    stopped.map_err(anyhow::Error::msg)?;
    say("exit 0, no process left\n");
    ensure!(status.success(), "client: {}", describe(status));
    let other = if is_chat { "chat -- --nick alice" } else { "client" };
    say(&format!("By hand, in two terminals: cargo run -p {name}\n                           cargo run -p {other}"));
    say(&format!("What to look at:           {name}/README.md"));
    Ok(())
}

fn build(root: &Path, name: &str) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status =
        Command::new(cargo).args(["build", "--quiet", "-p", name, "-p", "client"]).current_dir(root).status()?;
    ensure!(status.success(), "the build failed");
    Ok(())
}

/// A process at one moment.
struct Look {
    proc: Proc,
    name: String,
    descriptors: usize,
    memory_kib: u64,
    sleeps_in: String,
}

/// Looks at the family until the load ends, and keeps the look that saw the most processes and threads.
fn widest(server: &Server, load: &mut std::process::Child) -> Result<Vec<Look>> {
    let mut widest: Vec<Look> = Vec::new();
    let size = |looks: &[Look]| looks.iter().map(|look| look.proc.threads).sum::<i64>();
    let end = Instant::now() + Duration::from_secs(20);
    while load.try_wait()?.is_none() && Instant::now() < end {
        let now: Vec<Look> = server.family().into_iter().filter(|proc| proc.state != 'Z').map(look).collect();
        if size(&now) > size(&widest) {
            widest = now;
        }
        std::thread::sleep(Duration::from_millis(20)); // the rate of looking
    }
    let _ = load.kill();
    ensure!(load.wait()?.success(), "the load in the background failed");
    Ok(widest)
}

fn look(proc: Proc) -> Look {
    let pid = proc.pid;
    let name = Process::new(pid).and_then(|process| process.stat()).map(|stat| stat.comm).unwrap_or_default();
    let sleeps_in = std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    // The compiler names its copies of a function behind a dot.
    let sleeps_in = sleeps_in.split_once('.').map_or(sleeps_in.clone(), |(name, _)| name.to_owned());
    let sleeps_in = if sleeps_in.is_empty() || sleeps_in == "0" { "(running)".to_owned() } else { sleeps_in };
    let memory_kib = procs::status_kib(pid, "VmRSS:");
    Look { proc, name, descriptors: procs::descriptors(pid).len(), memory_kib, sleeps_in }
}

fn tree(server: &Server, looks: &[Look]) {
    say("\n    PID  STATE  THREADS  DESCRIPTORS  RSS KiB  SLEEPS IN           PROCESS");
    for look in looks {
        let indent = if look.proc.pid == server.pid() { "" } else { "  └ " };
        say(&format!(
            "{:>7}  {:<5}  {:>7}  {:>11}  {:>7}  {:<18}  {indent}{}",
            look.proc.pid,
            look.proc.state,
            look.proc.threads,
            look.descriptors,
            look.memory_kib,
            look.sleeps_in,
            look.name
        ));
    }
}
