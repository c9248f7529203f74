//! The server: random numbers over named pipes, and over a Unix socket beside them.
//!
//! Run: cargo run -p fifo --bin fifo-server
//! Try: cargo run -p fifo --bin fifo-client -- --count 3
//! Prev: none
//! Next: none
//! Diff base: none
//! Overload: queue (in the request FIFO; of the connections, the 65th waits in the listener's backlog)

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use fifo::rundir::default_dir;
use fifo::server::{Event, Options, Server};

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
    /// Serve on this TCP port of 127.0.0.1 too; 0 takes any
    #[arg(long, value_name = "PORT")]
    tcp: Option<u16>,
    /// Milliseconds until a question on a connection must be whole
    #[arg(long, default_value_t = 10_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    line_timeout: u64,
    /// Milliseconds that a connection may rest between two questions
    #[arg(long, default_value_t = 60_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    idle_timeout: u64,
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
        let told = match event {
            _ if args.events => serde_json::to_string(event).map(|line| writeln!(io::stdout(), "{line}")),
            Event::Junk { bytes } => Ok(writeln!(io::stderr(), "fifo-server: {bytes} bytes that are no question")),
            _ => return,
        };
        let _ = told; // a full disk or a closed terminal does not end the service
    };
    let options = Options {
        wake: args.signals,
        seed: args.seed,
        tcp: args.tcp,
        line_timeout: Duration::from_millis(args.line_timeout),
        idle_timeout: Duration::from_millis(args.idle_timeout),
    };
    let mut server = Server::new(&dir, options, Box::new(print))?;
    let tcp = server.tcp_addr().map(|addr| format!(", and on {addr}")).unwrap_or_default();
    let _ = writeln!(io::stdout(), "serving in {} as pid {}{tcp}", dir.display(), std::process::id());
    server.run()
}
