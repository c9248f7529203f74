//! The client: asks for numbers and prints them with their sum and their mean.
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
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use common::report::Failed;
use fifo::client::{Client, Way};
use fifo::ms;
use fifo::record::{Answer, Status};
use fifo::rundir::default_dir;

/// Asks the FIFO server for random numbers; without --count it prompts for how many
#[derive(Parser)]
struct Args {
    /// Directory of the server [default: $XDG_RUNTIME_DIR/fifo-demo, or one in /tmp]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Ask this many questions and exit
    #[arg(long)]
    count: Option<u32>,
    /// How many numbers per question, 1 to 100 (with --count)
    #[arg(short, long, default_value_t = 5, allow_negative_numbers = true)]
    n: i32,
    /// Print one JSON object per answer
    #[arg(long)]
    json: bool,
    /// Wait for SIGUSR1 too, and acknowledge with SIGUSR1 (needs fifo-server --signals)
    #[arg(long, conflicts_with = "unix")]
    signals: bool,
    /// Ask over the Unix socket
    #[arg(long)]
    unix: bool,
    /// Ask over TCP (needs fifo-server --tcp)
    #[arg(long, value_name = "ADDR", conflicts_with_all = ["unix", "signals", "dir"])]
    tcp: Option<SocketAddr>,
    /// Give up if the answer is not complete after this time, in ms
    #[arg(long, default_value_t = 5000, value_name = "MS", value_parser = ms(1))]
    deadline: u64,
    /// Sleep this long between the read of the reply FIFO and the wait for it, in ms. naive-pause
    /// loses its signal in this window
    #[arg(long, default_value_t = 0, value_name = "MS", value_parser = ms(0))]
    window: u64,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let dir = args.dir.clone().unwrap_or_else(default_dir);
    let way = match (args.signals, args.unix, args.tcp) {
        (true, _, _) => Way::Signals,
        (_, true, _) => Way::Unix,
        (_, _, Some(addr)) => Way::Tcp(addr),
        _ => Way::Fifo,
    };
    let mut client = Client::new(&dir, way, Duration::from_millis(args.deadline))?;
    client.window = Duration::from_millis(args.window);
    Ok(match args.count {
        Some(count) => (0..count).try_for_each(|_| show(&client.request(args.n)?, args.json)),
        None => prompt(&client, args.json),
    }?)
}

/// Asks the user how many numbers, again and again. An error of one question does not end the
/// client.
fn prompt(client: &Client, json: bool) -> Result<()> {
    let mut lines = io::stdin().lock().lines();
    loop {
        write!(io::stderr(), "how many numbers (1-100, n to end)? ").context("stderr")?;
        let Some(line) = lines.next().transpose().context("stdin")? else { return Ok(()) };
        match line.trim().parse() {
            Ok(n) => {
                if let Err(e) = client.request(n).and_then(|answer| show(&answer, json)) {
                    writeln!(io::stderr(), "{e:#}").context("stderr")?;
                }
            }
            Err(_) if line.trim() == "n" => return Ok(()),
            Err(_) => {
                writeln!(io::stderr(), "type a number from 1 to 100, or n").context("stderr")?;
            }
        }
    }
}

/// `Client::request` has checked that the answer has at least one number and how large they are.
fn show(answer: &Answer, json: bool) -> Result<()> {
    match answer.status {
        Status::Ok => {}
        Status::Range => bail!("the server rejected the question: n is not in 1..=100"),
        Status::Pid => bail!("the server rejected the question: not the pid of a client"),
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
