//! A server and a client with the ancestor's mistake: one reply FIFO for all clients, so that any
//! client can read any answer.
//!
//! Run: cargo run -p fifo --bin naive-shared -- --serve
//! Try: cargo run -p fifo --bin naive-shared -- -n 7
//! Prev: none
//! Next: none
//! Diff base: none
//! Overload: queue (in the request FIFO)

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use common::report::Failed;
use fifo::ms;
use fifo::numbers::Numbers;
use fifo::record::{Answer, Decoder, HEAD, Question};
use fifo::rundir::{RunDir, default_dir, make_fifo, open_fifo};
use lifecycle::Signals;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

/// Server and client with one reply FIFO for all clients
#[derive(Parser)]
struct Args {
    /// Directory of the FIFOs [default: $XDG_RUNTIME_DIR/fifo-demo, or one in /tmp]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Run as the server
    #[arg(long)]
    serve: bool,
    /// How many numbers to ask for
    #[arg(short, default_value_t = 5)]
    n: i32,
    /// Give up after this time, in ms
    #[arg(long, default_value_t = 5000, value_name = "MS", value_parser = ms(1))]
    deadline: u64,
}

/// The reply FIFO. Its name begins as other reply FIFOs do, so that RunDir removes it.
const SHARED: &str = "reply.all";

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let dir = args.dir.clone().unwrap_or_else(default_dir);
    if args.serve { serve(&dir) } else { Ok(ask(&args, &dir)?) }
}

fn serve(dir: &Path) -> Result<(), Failed> {
    let stop = Signals::of(&[Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP])?;
    let run = RunDir::claim(dir)?;
    make_fifo(&run.dir.join(SHARED))?;
    let mut req = open_fifo(&run.dir.join("req"), OFlag::O_RDWR).context("open req")?;
    // Read and write: open succeeds although no client waits.
    let mut replies = open_fifo(&run.dir.join(SHARED), OFlag::O_RDWR).context("open replies")?;
    run.report_ready(None);
    let (mut decoder, mut numbers) = (Decoder::default(), Numbers::new(1));
    loop {
        let stop = PollFd::new(stop.as_fd(), PollFlags::POLLIN);
        let mut fds = [stop, PollFd::new(req.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE).context("poll")?;
        if fds.first().and_then(PollFd::any) == Some(true) {
            return Ok(());
        }
        let mut buffer = [0u8; libc::PIPE_BUF];
        let n = req.read(&mut buffer).context("read req")?;
        decoder.feed(buffer.get(..n).unwrap_or_default());
        while let Some(question) = decoder.next_question() {
            // The mistake. The first client that reads gets the answer, also if another one asked.
            let _ = replies.write(&numbers.answer(question.nonce, question.n).to_bytes());
        }
    }
}

fn ask(args: &Args, dir: &Path) -> Result<()> {
    let question = Question::new(args.n).context("getrandom")?;
    let mut replies = open_fifo(&dir.join(SHARED), OFlag::O_RDONLY).context("open replies")?;
    let mut req = open_fifo(&dir.join("req"), OFlag::O_WRONLY).context("no server reads req")?;
    req.write_all(&question.to_bytes()).context("write req")?;
    let timeout = PollTimeout::try_from(args.deadline).unwrap_or(PollTimeout::MAX);
    let mut answer = vec![0u8; HEAD];
    loop {
        let mut fds = [PollFd::new(replies.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, timeout).context("poll")?;
        ensure!(ready > 0, "no answer within {} ms", args.deadline);
        match replies.read_exact(&mut answer) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => {} // another client has read the answer
            read => break read.context("the server ended")?,
        }
    }
    let count = usize::from(answer.get(6).copied().unwrap_or_default());
    answer.resize(HEAD + 4 * count, 0);
    let _ = replies.read(answer.get_mut(HEAD..).unwrap_or_default());
    let answer = Answer::from_bytes(&answer).context("not an answer")?;
    writeln!(io::stdout(), "{:?}", answer.values).context("stdout")?;
    // The ancestor's records have no nonce, so its client does not notice.
    ensure!(answer.nonce == question.nonce, "this is the answer to another client's question");
    Ok(())
}
