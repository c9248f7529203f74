//! The client: asks for numbers, prints them, their sum and their mean.
//!
//! Run: cargo run -p fifo --bin fifo-client
//! Try: cargo run -p fifo --bin fifo-client -- --count 3 -n 5 --json
//! Prev: none
//! Next: none
//! Diff base: none
//! Overload: none (a client)

use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use fifo::client::{Client, Way};
use fifo::record::{Answer, Status};
use fifo::rundir::default_dir;

/// Asks the FIFO server for random numbers; without --count it asks you how many
#[derive(Parser)]
struct Args {
    /// The server's directory
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Ask this often, and end
    #[arg(long)]
    count: Option<u32>,
    /// Numbers a request, 1 to 100 (with --count)
    #[arg(short, long, default_value_t = 5, allow_negative_numbers = true)]
    n: i32,
    /// One JSON object an answer
    #[arg(long)]
    json: bool,
    /// Be woken by SIGUSR1 and acknowledge with it (the server needs --signals too)
    #[arg(long, conflicts_with = "unix")]
    signals: bool,
    /// Ask over the Unix socket
    #[arg(long)]
    unix: bool,
    /// Ask over TCP, where the server was started with --tcp
    #[arg(long, value_name = "ADDR", conflicts_with_all = ["unix", "signals", "dir"])]
    tcp: Option<SocketAddr>,
    /// Give up after so many milliseconds
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    deadline: u64,
    /// Sleep so many milliseconds between the look at the reply FIFO and the wait: naive-pause loses its wake-up there
    #[arg(long, default_value_t = 0, value_name = "MS", value_parser = clap::value_parser!(u64).range(..=60_000))]
    window: u64,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "fifo-client: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let dir = args.dir.clone().unwrap_or_else(default_dir);
    let way = match (args.signals, args.unix, args.tcp) {
        (true, _, _) => Way::Signals,
        (_, true, _) => Way::Unix,
        (_, _, Some(addr)) => Way::Tcp(addr),
        _ => Way::Fifo,
    };
    let mut client = Client::new(&dir, way, Duration::from_millis(args.deadline))?;
    client.window = Duration::from_millis(args.window);
    match args.count {
        Some(count) => (0..count).try_for_each(|_| show(&client.request(args.n)?, args.json)),
        None => interactive(&client, args.json),
    }
}

fn interactive(client: &Client, json: bool) -> Result<()> {
    let mut lines = io::stdin().lock().lines();
    loop {
        write!(io::stderr(), "how many numbers (1-100, n to end)? ").context("stderr")?;
        let Some(line) = lines.next().transpose().context("stdin")? else { return Ok(()) };
        match line.trim().parse() {
            Ok(n) => {
                if let Err(e) = show(&client.request(n)?, json) {
                    writeln!(io::stderr(), "{e:#}").context("stderr")?;
                }
            }
            Err(_) if line.trim() == "n" => return Ok(()),
            Err(_) => writeln!(io::stderr(), "a number from 1 to 100, or n").context("stderr")?,
        }
    }
}

fn show(answer: &Answer, json: bool) -> Result<()> {
    match answer.status {
        Status::Ok => {}
        Status::Range => bail!("the server refused: n is not in 1..=100"),
        Status::Pid => bail!("the server refused: not a client's pid"),
    }
    let sum: i32 = answer.values.iter().sum();
    let mean = f64::from(sum) / answer.values.len() as f64;
    let text = if json {
        serde_json::json!({ "values": answer.values, "sum": sum, "mean": mean }).to_string()
    } else {
        format!("{:?} sum {sum} mean {mean:.2}", answer.values)
    };
    writeln!(io::stdout(), "{text}").context("stdout")
}
