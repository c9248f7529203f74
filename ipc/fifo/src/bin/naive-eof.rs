//! A server with the ancestor's mistake: it opens the request FIFO for reading only, and reads end of file for ever.
//!
//! Run: cargo run -p fifo --bin naive-eof
//! Try: cargo run -p fifo --bin fifo-client -- --count 1
//! Prev: none
//! Next: none
//! Diff base: none
//! Overload: queue (in the request FIFO)

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use fifo::numbers::Numbers;
use fifo::record::Decoder;
use fifo::rundir::{RunDir, default_dir, reply_path};
use fifo::sys::open_fifo;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The server that uses a whole CPU as soon as its first client has left
#[derive(Parser)]
struct Args {
    /// The private directory of the FIFOs
    #[arg(long)]
    dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    match serve(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "naive-eof: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &Args) -> Result<()> {
    let set = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    set.thread_block().context("sigprocmask")?;
    let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC).context("signalfd")?;
    let run = RunDir::claim(&args.dir.clone().unwrap_or_else(default_dir))?;
    // The mistake: without a write end of the server's own, the FIFO is hung up whenever no client has it open.
    let req = open_fifo(&run.dir.join("req"), true, false).context("open req")?;
    let _ = writeln!(io::stdout(), "serving in {} as pid {}", run.dir.display(), std::process::id());
    let (mut decoder, mut numbers) = (Decoder::default(), Numbers::new(1));
    loop {
        // POLLHUP needs not be asked for, and stays until somebody opens the FIFO for writing: once the first client has
        // left, poll never sleeps again.
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(req.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            ready => ready.context("poll")?,
        };
        if fds.first().and_then(PollFd::any) == Some(true) {
            return Ok(());
        }
        answer(&run, &req, &mut decoder, &mut numbers)?;
    }
}

/// Reads what has come, nothing as likely as something, and answers the questions in it.
fn answer(run: &RunDir, mut req: &File, decoder: &mut Decoder, numbers: &mut Numbers) -> Result<()> {
    let mut buffer = [0u8; libc::PIPE_BUF];
    match req.read(&mut buffer) {
        Ok(n) => decoder.feed(buffer.get(..n).unwrap_or_default()),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
        Err(e) => return Err(e).context("read req"),
    }
    while let Some(question) = decoder.next_question() {
        let bytes = numbers.answer(question.nonce, question.n).to_bytes();
        let path = reply_path(&run.dir, question.pid, &question.nonce);
        // A client that has left is none of the lesson.
        let _ = open_fifo(&path, false, true).and_then(|mut fifo| fifo.write(&bytes));
    }
    Ok(())
}
