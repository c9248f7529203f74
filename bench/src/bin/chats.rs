//! The chats side by side: what a delivery costs in time, CPU, system calls and memory, in one run of this machine.
//!
//! Run: cargo run --release -p bench --bin chats

use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bench::chats::{self, Chat, Running};
use bench::measure::median;
use clap::Parser;
use client::machine::Machine;
use client::room::{self, Moment, Plan, Report};
use client::stats::percentile;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Characters of what a server said that a row has room for.
const WORDS: usize = 72;
/// A room stands the load if its p99 is below this and nothing is lost.
const GOOD: Duration = Duration::from_millis(50);

/// The chats side by side: delivery latency, CPU, system calls, memory, join storm, capacity
#[derive(Parser)]
struct Args {
    /// Only chats whose name contains one of these words
    only: Vec<String>,
    /// Members of the room
    #[arg(short, long, value_delimiter = ',', default_value = "10,100,1000")]
    members: Vec<u32>,
    /// Milliseconds of each round where latency is measured
    #[arg(short, long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    length: u64,
    /// How often each chat takes its turn where latency is measured; each figure is the median
    #[arg(short, long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=31))]
    rounds: u8,
    /// Messages a second where latency is measured
    #[arg(short = 'R', long, default_value_t = 100.0)]
    rate: f64,
}

/// One server under one load.
struct Run {
    report: Report,
    /// CPU time of the server: joining, talking.
    join: Duration,
    talk: Duration,
    /// PSS for each member who has joined and is silent.
    memory: f64,
    calls: Option<f64>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "chats: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let machine = Machine::here(Duration::ZERO);
    say(&format!("{}, {} CPUs, Linux {}", machine.cpu, machine.cores, machine.kernel));
    let mut all = chats::all(root, &mut |line| say(line))?;
    all.retain(|chat| args.only.is_empty() || args.only.iter().any(|word| chat.name.contains(word)));
    all.iter().filter(|chat| !chat.version.is_empty()).for_each(|chat| say(&chat.version));
    say(
        "Server pinned to one CPU, client to another; messages of 64 bytes, no log. A delivery is one message that came",
    );
    say("to one member; latency runs from the intended send. Our servers run without their rate limit.");
    say(&format!("Where latency is measured: rounds of {} ms, {} in turns; the medians.", args.length, args.rounds));
    for members in &args.members {
        talk(args, &all, *members)?;
    }
    price(&all)?;
    capacity(&all)?;
    dead_reader(args, &all)
}

/// Latency and cost at a rate that is no trouble; joining and memory before it.
fn talk(args: &Args, all: &[Chat], members: u32) -> Result<()> {
    say(&format!("\n{members} members, {}/s from {} of them", args.rate, senders(members)));
    say(&format!(
        "{:22} {:>8} {:>8} {:>8} {:>10} {:>9} {:>9} {:>9} {:>6}",
        "", "p50 ms", "p99 ms", "spread", "CPU s/M", "KiB each", "join ms", "join CPU", "lost"
    ));
    let mut rounds: Vec<Result<Vec<Run>, String>> = all.iter().map(|_| Ok(Vec::new())).collect();
    // In turns, so that what else the machine does for a moment is not one chat's alone.
    for _ in 0..args.rounds {
        for (chat, runs) in all.iter().zip(&mut rounds) {
            let plan = Plan { rate: args.rate, duration: Duration::from_millis(args.length), ..plan(chat, members) };
            once_more(runs, chat, plan);
        }
    }
    for (chat, runs) in all.iter().zip(&rounds) {
        let runs = match runs {
            Ok(runs) => runs,
            Err(why) => {
                say(&format!("{:22} {why}", chat.name));
                continue;
            }
        };
        let of = |figure: &dyn Fn(&Run) -> f64| median(runs.iter().map(figure).collect());
        say(&format!(
            "{:22} {:>8} {:>8} {:>8} {:>10.2} {:>9.1} {:>9.0} {:>9.0} {:>6}",
            chat.name,
            cell(of(&|run| ms(percentile(&run.report.latency, 500)))),
            cell(of(&|run| ms(percentile(&run.report.latency, 990)))),
            cell(of(&|run| ms(percentile(&run.report.spread, 900)))),
            of(&|run| run.talk.as_secs_f64() * 1e6 / run.report.delivered.max(1) as f64),
            of(&|run| run.memory / 1024.0),
            of(&|run| run.report.settled_seconds * 1e3),
            of(&|run| run.join.as_secs_f64() * 1e3),
            runs.iter().map(|run| run.report.lost()).sum::<u64>(),
        ));
    }
    Ok(())
}

/// One more turn of a chat; after one that failed it has no more.
fn once_more(runs: &mut Result<Vec<Run>, String>, chat: &Chat, plan: Plan) {
    let Ok(done) = runs else { return };
    match measure(chat, plan, false) {
        Ok(run) => done.push(run),
        Err(e) => *runs = Err(why(&e)),
    }
}

/// System calls of the whole family per delivery, 10 members: one message at a time, and many at once.
fn price(all: &[Chat]) -> Result<()> {
    say("\nsystem calls per delivery, 10 members (strace)");
    say(&format!("{:22} {:>10} {:>10}", "", "50/s", "5000/s"));
    for chat in all {
        let mut cells = String::new();
        for rate in [50.0, 5000.0] {
            let plan = Plan { rate, duration: Duration::from_secs(1), warmup: Duration::ZERO, ..plan(chat, 10) };
            let cell = measure(chat, plan, true).ok().and_then(|run| run.calls);
            cells += &format!(" {:>10}", cell.map_or_else(|| "-".into(), |calls| format!("{calls:.2}")));
        }
        say(&format!("{:22}{cells}", chat.name));
    }
    Ok(())
}

/// The highest rate that a room of 100 stands: doubled until it does not, then halved in between.
fn capacity(all: &[Chat]) -> Result<()> {
    say(&format!(
        "\ncapacity, 100 members: the most deliveries a second with p99 below {} ms, and none lost",
        GOOD.as_millis()
    ));
    for chat in all {
        let stands = |rate: f64| {
            let plan = Plan {
                rate,
                duration: Duration::from_secs(1),
                warmup: Duration::from_millis(200),
                patience: Duration::from_secs(3),
                ..plan(chat, 100)
            };
            let run = measure(chat, plan, false).ok()?;
            let late = percentile(&run.report.latency, 990).is_none_or(|ns| ns > GOOD.as_nanos() as u64);
            (run.report.is_good() && !late).then(|| (run.report.rate(), run.report.client_share()))
        };
        let (mut rate, mut best) = (200.0, None);
        while let Some(found) = stands(rate) {
            (best, rate) = (Some((rate, found)), rate * 2.0);
        }
        let (mut low, mut high) = (best.map_or(0.0, |(rate, _)| rate), rate);
        for _ in 0..3 {
            let middle = f64::midpoint(low, high);
            match stands(middle) {
                Some(found) => (low, best) = (middle, Some((middle, found))),
                None => high = middle,
            }
        }
        say(&match best {
            Some((rate, (deliveries, share))) => format!(
                "{:22} {deliveries:>10.0}/s ({rate:.0} messages/s); client {:.0} % of its CPU",
                chat.name,
                share * 100.0
            ),
            None => format!("{:22} does not stand {rate} messages/s", chat.name),
        });
    }
    Ok(())
}

/// What one reader that stopped does to the others.
fn dead_reader(args: &Args, all: &[Chat]) -> Result<()> {
    say("\none of 11 members stops reading: p99 in ms of the others, 4000/s of 800 bytes (IRC: 400)");
    say(&format!("{:22} {:>10} {:>10}  what becomes of it", "", "all read", "one dead"));
    let mut rounds: Vec<[Result<Vec<Run>, String>; 2]> = all.iter().map(|_| [Ok(Vec::new()), Ok(Vec::new())]).collect();
    for _ in 0..args.rounds {
        for (chat, both) in all.iter().zip(&mut rounds) {
            for (runs, dead) in both.iter_mut().zip([0, 1]) {
                let duration = Duration::from_millis(args.length);
                let bytes = if chat.wire == room::Wire::Irc { 400 } else { 800 };
                once_more(runs, chat, Plan { rate: 4000.0, duration, bytes, dead, ..plan(chat, 10) });
            }
        }
    }
    for (chat, both) in all.iter().zip(&rounds) {
        match both {
            [Ok(whole), Ok(dead)] => {
                let p99 =
                    |runs: &[Run]| median(runs.iter().map(|run| ms(percentile(&run.report.latency, 990))).collect());
                let lost = match dead.iter().map(|run| run.report.lost()).sum::<u64>() {
                    0 => String::new(),
                    lost => format!("; {lost} deliveries lost"),
                };
                let end = dead.first().and_then(|run| Some(short(run.report.dead.first()?))).unwrap_or_default();
                say(&format!("{:22} {:>10} {:>10}  {end}{lost}", chat.name, cell(p99(whole)), cell(p99(dead))));
            }
            [Err(why), _] | [_, Err(why)] => say(&format!("{:22} {why}", chat.name)),
        }
    }
    Ok(())
}

/// One line: a limit of the model, or what went wrong.
fn why(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    match text.contains("invalid value") {
        true => "refuses so many".into(),
        false => short(text.lines().next().unwrap_or_default()),
    }
}

/// What fits into a row of the table.
fn short(text: &str) -> String {
    match text.char_indices().nth(WORDS) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.into(),
    }
}

fn senders(members: u32) -> u32 {
    members.min(10)
}

fn plan(chat: &Chat, members: u32) -> Plan {
    let (senders, warmup) = (senders(members), Duration::from_millis(300));
    Plan { members, senders, warmup, wire: chat.wire, patience: Duration::from_secs(20), ..Plan::default() }
}

fn measure(chat: &Chat, plan: Plan, count: bool) -> Result<Run> {
    let server = chat.start(plan.members + plan.dead)?;
    let plan = Plan { port: server.port, ..plan };
    let (empty, born) = (server.pss(), server.cpu());
    let (mut join, mut memory, mut start, mut end) = (Duration::ZERO, 0.0, Duration::ZERO, Duration::ZERO);
    let (mut strace, mut counted) = (None, None);
    let folder = tempfile::tempdir()?;
    let counts = folder.path().join("counts");
    let mut at = |moment| {
        match moment {
            Moment::Joined => {
                join = server.cpu().saturating_sub(born);
                memory = server.pss().saturating_sub(empty) as f64 / f64::from(plan.members);
            }
            Moment::Started => {
                strace = if count { Some(attach(&server, &counts)?) } else { None };
                start = server.cpu();
            }
            Moment::Ended => {
                end = server.cpu();
                if let Some(mut strace) = strace.take() {
                    kill(Pid::from_raw(strace.id() as i32), Signal::SIGINT)?;
                    strace.wait()?;
                    counted = total(&std::fs::read_to_string(&counts)?);
                }
            }
        }
        Ok(())
    };
    let report = room::run(&plan, &mut at, &AtomicBool::new(false))?;
    let calls = counted.map(|calls| calls / report.delivered.max(1) as f64);
    Ok(Run { report, join, talk: end.saturating_sub(start), memory, calls })
}

fn attach(server: &Running, counts: &Path) -> Result<std::process::Child> {
    let mut command = Command::new("strace");
    command.args(["-f", "-c", "-U", "calls,name", "-o"]).arg(counts);
    let family = server.family();
    command.args(family.iter().flat_map(|pid| ["-p".to_owned(), pid.to_string()]));
    let mut strace = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().context("strace")?;
    let mut stderr = BufReader::new(strace.stderr.take().context("strace")?);
    for _ in &family {
        let mut line = String::new();
        stderr.read_line(&mut line)?;
        ensure!(line.contains("attached"), "strace: {line}");
    }
    std::thread::spawn(move || stderr.lines().for_each(drop));
    Ok(strace)
}

/// The sum in strace's table.
fn total(table: &str) -> Option<f64> {
    let line = table.lines().find(|line| line.trim_end().ends_with("total"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Milliseconds; not a number where a percentile has too few samples.
fn ms(ns: Option<u64>) -> f64 {
    ns.map_or(f64::NAN, |ns| ns as f64 / 1e6)
}

fn cell(ms: f64) -> String {
    if ms.is_nan() { "-".into() } else { format!("{ms:.2}") }
}

fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}
