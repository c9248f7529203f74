//! `demo`: a server, load on it, its processes and threads during the load, and the client's report.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testkit::catalogue::{self, Example};
use testkit::procs::{self, Proc};
use testkit::{Server, describe};

use crate::bound::bound;
use crate::diff;
use crate::print::say;

/// How often the processes are sampled.
const INTERVAL: Duration = Duration::from_millis(20);
const LOAD_TIMEOUT: Duration = Duration::from_secs(20);

pub fn list(root: &Path) -> Result<()> {
    let examples = catalogue::examples(root)?;
    examples.iter().for_each(|example| say(&format!("{:24} {}", example.name, example.description)));
    Ok(())
}

pub fn run(root: &Path, name: &str) -> Result<()> {
    let examples = catalogue::examples(root)?;
    let unknown = || diff::unknown(name, examples.iter().map(|example| example.name.as_str()));
    let example = examples.iter().find(|example| example.name == name).with_context(unknown)?;
    build(root, name)?;
    let target = root.join("target");
    let start = |program: &str, args: &[&str]| {
        let mut command = Command::new(target.join("debug").join(program));
        command.args(args).stdin(Stdio::null());
        command
    };

    say(&format!("{name}: {}\n\n$ {name} -p 0", example.description));
    // A chat may write its log into the current folder.
    let mut command = start(name, &["-p", "0"]);
    let mut server = Server::try_start(bound(command.current_dir(&target))).map_err(anyhow::Error::msg)?;
    say(&format!("listening on {}\n", server.addr));

    let [first, second] = loads(example, &server.addr.port().to_string());
    let line = |load: &[String]| format!("$ client {}", load.join(" "));
    let client = |load: &[String]| start("client", &load.iter().map(String::as_str).collect::<Vec<_>>());
    say(&format!("{}   (in the background, while the processes are sampled)", line(&first)));
    let background = bound(client(&first).stdout(Stdio::null())).spawn().context("client")?;
    print_processes(&server, &largest_sample(&server, background)?);
    say(&format!("\n{}", line(&second)));
    let status = bound(&mut client(&second)).status().context("client")?;

    say(&format!("\n$ kill -TERM {}", server.pid()));
    let stopped = server.stop();
    say(server.log().trim_end());
    stopped.map_err(anyhow::Error::msg)?;
    say("exit status 0, no process left\n");
    ensure!(status.success(), "client: {}", describe(status));
    let other = if example.family == "chat" { "chat -- --nick alice" } else { "client" };
    say(&format!("By hand, in two terminals: cargo run -p {name}\n                           cargo run -p {other}"));
    say(&format!("What to observe:           {name}/README.md"));
    Ok(())
}

fn build(root: &Path, name: &str) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let args = ["build", "--quiet", "-p", name, "-p", "client"];
    ensure!(Command::new(cargo).args(args).current_dir(root).status()?.success(), "the build failed");
    Ok(())
}

/// The arguments of two clients: one that keeps its connections while the processes are sampled, one with a report.
fn loads(example: &Example, port: &str) -> [Vec<String>; 2] {
    let clients = example.slots.clamp(1, 5);
    let loads = match example.family.as_str() {
        "chat" => ["--chat -c 5 -R 20 -d 1s -s 5".to_owned(), "--chat -c 20 -s 10 -R 100 -d 2s".to_owned()],
        _ => [format!("-q -c {clients} -k 0 -d 1s"), "-c 5 -t 200 -b 3000".to_owned()],
    };
    loads.map(|load| ["-p", port].into_iter().chain(load.split(' ')).map(str::to_owned).collect())
}

/// Samples the processes until the load ends. Returns the sample with the most threads.
fn largest_sample(server: &Server, mut load: Child) -> Result<Vec<(Proc, String)>> {
    let mut largest: Vec<(Proc, String)> = Vec::new();
    let threads = |sample: &[(Proc, String)]| sample.iter().map(|(process, _)| process.threads).sum::<i64>();
    let end = Instant::now() + LOAD_TIMEOUT;
    while load.try_wait()?.is_none() && Instant::now() < end {
        let processes = server.family().into_iter().filter(|process| process.state != 'Z');
        let sample: Vec<(Proc, String)> = processes.map(|process| (process.clone(), row(&process))).collect();
        if threads(&sample) > threads(&largest) {
            largest = sample;
        }
        std::thread::sleep(INTERVAL);
    }
    let _ = load.kill();
    ensure!(load.wait()?.success(), "the load in the background failed");
    Ok(largest)
}

fn row(process: &Proc) -> String {
    let Proc { pid, state, threads, .. } = process;
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let wchan = read("wchan");
    // The compiler appends a dot and a suffix to the name of a copied function.
    let sleeps_in = match wchan.split('.').next() {
        None | Some("" | "0") => "(running)",
        Some(function) => function,
    };
    let (descriptors, memory) = (procs::descriptors(*pid).len(), procs::status_kib(*pid, "VmRSS:"));
    let name = read("comm");
    format!("{pid:>7}  {state:<5}  {threads:>7}  {descriptors:>11}  {memory:>7}  {sleeps_in:<18}  {}", name.trim())
}

fn print_processes(server: &Server, sample: &[(Proc, String)]) {
    say("\n    PID  STATE  THREADS  DESCRIPTORS  RSS KiB  SLEEPS IN           PROCESS");
    for (process, row) in sample {
        say(&format!("{row}{}", if process.pid == server.pid() { "" } else { " (child)" }));
    }
}
