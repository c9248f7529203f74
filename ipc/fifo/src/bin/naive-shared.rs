//! Server and client with the ancestor's mistake: one reply FIFO for all, so that any client takes any answer.
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
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use fifo::numbers::Numbers;
use fifo::record::{Answer, Decoder, HEAD, MAX_N, Question};
use fifo::rundir::{RunDir, default_dir};
use fifo::sys::{open_fifo, random};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// The one for all. The name begins as the server's own do, so that it is removed with them.
const SHARED: &str = "reply.all";

/// A server and a client with one reply FIFO for everybody
#[derive(Parser)]
struct Args {
    /// The directory of the FIFOs
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Be the server
    #[arg(long)]
    serve: bool,
    /// Numbers to ask for
    #[arg(short, default_value_t = 5)]
    n: i32,
    /// Ask this often
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// Give up after so many milliseconds
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    deadline: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let dir = args.dir.clone().unwrap_or_else(default_dir);
    let done = if args.serve { serve(&dir) } else { (0..args.count).try_for_each(|_| ask(&args, &dir)) };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "naive-shared: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(dir: &Path) -> Result<()> {
    let set = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    set.thread_block().context("sigprocmask")?;
    let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC).context("signalfd")?;
    let run = RunDir::claim(dir)?;
    mkfifo(&run.dir.join(SHARED), Mode::S_IRUSR | Mode::S_IWUSR).context("mkfifo")?;
    let mut req = open_fifo(&run.dir.join("req"), true, true).context("open req")?;
    // Open for reading too, so that it can be opened while no client waits.
    let mut replies = open_fifo(&run.dir.join(SHARED), true, true).context("open replies")?;
    let _ = writeln!(io::stdout(), "serving in {} as pid {}", dir.display(), std::process::id());
    let (mut decoder, mut numbers) = (Decoder::default(), Numbers::new(1));
    loop {
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(req.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            ready => ready.context("poll")?,
        };
        if fds.first().and_then(PollFd::any) == Some(true) {
            return Ok(());
        }
        let mut buffer = [0u8; libc::PIPE_BUF];
        let n = req.read(&mut buffer).context("read req")?;
        decoder.feed(buffer.get(..n).unwrap_or_default());
        while let Some(question) = decoder.next_question() {
            // The mistake: whoever reads first has it. With the pipe full it is lost.
            let _ = replies.write(&numbers.answer(question.nonce, question.n).to_bytes());
        }
    }
}

fn ask(args: &Args, dir: &Path) -> Result<()> {
    let question = Question { nonce: random().context("getrandom")?, n: args.n, pid: std::process::id() as i32 };
    let mut replies = open_fifo(&dir.join(SHARED), true, false).context("open replies")?;
    let mut req = open_fifo(&dir.join("req"), false, true).context("no server reads req")?;
    req.write_all(&question.to_bytes()).context("write req")?;
    let mut head = [0u8; HEAD];
    let mut answer = loop {
        let mut fds = [PollFd::new(replies.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(args.deadline).unwrap_or(PollTimeout::MAX);
        ensure!(poll(&mut fds, timeout).context("poll")? > 0, "no answer within {} ms", args.deadline);
        match replies.read(&mut head) {
            Ok(HEAD) => break head.to_vec(),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {} // another client was quicker
            read => {
                let n = read.context("read replies")?;
                ensure!(n > 0, "the server ended");
            }
        }
    };
    let mut numbers = vec![0u8; 4 * usize::from(u16::from_le_bytes([head[6], head[7]]).min(MAX_N as u16))];
    let n = replies.read(&mut numbers).unwrap_or(0);
    answer.extend(numbers.get(..n).unwrap_or_default());
    let answer = Answer::from_bytes(&answer).context("half an answer: another client has the rest")?;
    writeln!(io::stdout(), "{:?}", answer.values).context("stdout")?;
    // The ancestor has no nonce, and would not see it.
    ensure!(answer.nonce == question.nonce, "this is the answer to another client's question");
    Ok(())
}
