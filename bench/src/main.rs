//! Prints what each design costs, all in one run of this machine.
//!
//! Run: cargo run --release -p bench

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use bench::measure::{self, Cost, Workload, median};
use bench::plot::{self, Line};
use bench::subject::{self, BARE, Subject};
use bench::{against, idle, syscalls};
use clap::Parser;
use client::machine::Machine;

/// Prints what each design costs: rates, server CPU per request, system calls, idle memory
#[derive(Parser)]
struct Args {
    /// Only designs whose name contains one of these words, and the bare loop and server00 beside them
    only: Vec<String>,
    /// Clients at once
    #[arg(short, long, value_delimiter = ',', default_value = "1,10,100,1000")]
    clients: Vec<u32>,
    /// Rounds; the medians are printed
    #[arg(short, long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// Milliseconds of each run
    #[arg(short, long, default_value_t = 700, value_parser = clap::value_parser!(u64).range(50..=60_000))]
    length: u64,
    /// Idle connections to hold
    #[arg(long, default_value_t = 10_000)]
    idle: usize,
    /// Another checkout of this project, such as an older one: only compare its designs with these, in turns
    #[arg(long, value_name = "FOLDER")]
    against: Option<PathBuf>,
    /// Folder for the plots
    #[arg(long, default_value = "target/bench")]
    plots: PathBuf,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "bench: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let mut subjects = subject::all(root)?;
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|word| name.contains(word));
    subjects.retain(|s| s.name == BARE || s.name == "server00-iterative" || wanted(&s.name));
    let machine = Machine::here(Duration::ZERO);
    say(&format!("{}, {} CPUs, Linux {}", machine.cpu, machine.cores, machine.kernel));
    say(
        "Server pinned to one CPU, client to another; answers of 100 bytes. us = CPU time of the server's whole family",
    );
    say("per request; x = that over the bare epoll loop's of the same round; - 00 = that less server00-iterative's.");
    if let Some(other) = &args.against {
        return against::compare(&subjects, &subject::all(other)?, &args.clients, args.rounds, args.length);
    }
    std::fs::create_dir_all(&args.plots)?;
    let mut glance: Vec<String> = subjects.iter().map(|subject| format!("{:30}", subject.name)).collect();
    for workload in [Workload::Kept, Workload::Connect] {
        let mut lines: Vec<Line> = subjects.iter().map(|subject| (subject.name.clone(), Vec::new())).collect();
        for clients in &args.clients {
            let ratios = compare(args, &subjects, workload, *clients, &mut lines)?;
            for (row, ratio) in glance.iter_mut().zip(ratios) {
                *row += &ratio.map_or_else(|| format!("{:>7}", "-"), |x| format!("{x:>7.2}"));
            }
        }
        lines.retain(|(_, points)| !points.is_empty());
        let file =
            args.plots.join(format!("growth-{}.svg", if workload == Workload::Kept { "kept" } else { "connect" }));
        plot::growth(&file, &format!("Server CPU per request, {}", workload.name()), &lines)?;
        say(&format!("\nplot: {}", file.display()));
    }
    say("\nat a glance: server CPU per request over the bare loop's, by clients at once; - where it refuses so many");
    let (each, width) = (args.clients.iter().map(|n| format!("{n:>7}")).collect::<String>(), 7 * args.clients.len());
    say(&format!("{:30}{:>width$}{:>width$}", "", "kept", "one each"));
    say(&format!("{:30}{each}{each}", ""));
    glance.iter().for_each(|row| say(row));
    calls(&subjects)?;
    memory(&subjects, args.idle)
}

/// One table: every design with so many clients, in rounds, so that a drift of the machine meets all of them. The
/// ratios to the bare loop come back.
fn compare(
    args: &Args,
    subjects: &[Subject],
    workload: Workload,
    clients: u32,
    lines: &mut [Line],
) -> Result<Vec<Option<f64>>> {
    let mut rounds: Vec<Vec<Option<Cost>>> = Vec::new();
    for _ in 0..args.rounds {
        let length = Duration::from_millis(args.length);
        let costs = subjects.iter().map(|subject| measure::cost(subject, workload, clients, length));
        rounds.push(costs.collect::<Result<_>>()?);
    }
    say(&format!("\n{}, {clients} at once", workload.name()));
    say(&format!(
        "{:30} {:>10} {:>8} {:>6} {:>8} {:>10} {:>10}",
        "", "requests/s", "us", "x", "- 00", "client us", "median us"
    ));
    let figure = |index: usize, of: &dyn Fn(&Cost, &Cost, &Cost) -> f64| {
        let of_round = |round: &Vec<Option<Cost>>| {
            let bare = round.first()?.as_ref()?;
            let base =
                subjects.iter().position(|s| s.name == "server00-iterative").and_then(|at| round.get(at)?.as_ref());
            Some(of(round.get(index)?.as_ref()?, bare, base.unwrap_or(bare)))
        };
        let values: Vec<f64> = rounds.iter().filter_map(of_round).collect();
        (!values.is_empty()).then(|| median(values))
    };
    let mut ratios = Vec::new();
    for (index, subject) in subjects.iter().enumerate() {
        let Some(us) = figure(index, &|cost, _, _| cost.server_us) else {
            say(&format!("{:30} {:>10}", subject.name, "refuses"));
            ratios.push(None);
            continue;
        };
        let get = |of: &dyn Fn(&Cost, &Cost, &Cost) -> f64| figure(index, of).unwrap_or(f64::NAN);
        let ratio = get(&|cost, bare, _| cost.server_us / bare.server_us);
        ratios.push(Some(ratio));
        say(&format!(
            "{:30} {:>10.0} {us:>8.2} {ratio:>6.2} {:>8.2} {:>10.2} {:>10.1}",
            subject.name,
            get(&|cost, _, _| cost.rate),
            get(&|cost, _, base| cost.server_us - base.server_us),
            get(&|cost, _, _| cost.client_us),
            get(&|cost, _, _| cost.median_us),
        ));
        if let Some((_, points)) = lines.get_mut(index) {
            points.push((clients, us));
        }
    }
    Ok(ratios)
}

fn calls(subjects: &[Subject]) -> Result<()> {
    say("\nsystem calls of the server per request (strace)");
    say(&format!("{:30} {:>18} {:>18}", "", "kept, 100 clients", "connect, 10"));
    for subject in subjects {
        let cell = |count: Option<f64>| count.map_or("refuses".into(), |calls| format!("{calls:.2}"));
        let kept = syscalls::per_request(subject, Workload::Kept, 100)?;
        let connect = syscalls::per_request(subject, Workload::Connect, 10)?;
        say(&format!("{:30} {:>18} {:>18}", subject.name, cell(kept), cell(connect)));
    }
    Ok(())
}

fn memory(subjects: &[Subject], idle: usize) -> Result<()> {
    say("\nidle connections: user memory of the server for each");
    for subject in subjects {
        match idle::bytes_per_connection(subject, idle)? {
            Some((count, bytes)) => say(&format!("{:30} {count:>8} held, {bytes:>8.0} bytes each", subject.name)),
            None => say(&format!("{:30} {:>8}", subject.name, "does not hold so many")),
        }
    }
    Ok(())
}

fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}
