//! The server: random numbers over named pipes, and over a Unix socket beside them.
//!
//! Run: cargo run -p fifo --bin fifo-server
//! Try: cargo run -p fifo --bin fifo-client -- --count 3

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use fifo::rundir::default_dir;
use fifo::server::{Event, Server};

/// Random numbers over named pipes
#[derive(Parser)]
struct Args {
    /// The private directory of the FIFOs
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Wake clients with SIGUSR1 and await theirs
    #[arg(long)]
    signals: bool,
    /// Print each step as one JSON object a line
    #[arg(long)]
    events: bool,
    /// The same numbers every time
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match serve(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "fifo-server: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &Args) -> anyhow::Result<()> {
    let dir = args.dir.clone().unwrap_or_else(default_dir);
    let print = |event: &Event| {
        if args.events {
            let _ = writeln!(io::stdout(), "{}", serde_json::to_string(event).unwrap_or_default());
        }
    };
    let mut server = Server::new(&dir, args.signals, args.seed, Box::new(print))?;
    let _ = writeln!(io::stdout(), "serving in {} as pid {}", dir.display(), std::process::id());
    server.run()
}
