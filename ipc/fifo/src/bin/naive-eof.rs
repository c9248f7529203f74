//! A server with the ancestor's mistake: it opens the request FIFO for reading only. After its
//! first client has left, it reads end of file again and again.
//!
//! Run: cargo run -p fifo --bin naive-eof
//! Try: cargo run -p fifo --bin fifo-client -- --count 1
//! Prev: none
//! Next: none
//! Diff base: none
//! Overload: queue (in the request FIFO)

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use common::report::Failed;
use fifo::numbers::Numbers;
use fifo::record::Decoder;
use fifo::rundir::{RunDir, default_dir, open_fifo, reply_path};
use lifecycle::Signals;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

/// Server that uses a whole CPU after its first client has left
#[derive(Parser)]
struct Args {
    /// Private directory of the FIFOs [default: $XDG_RUNTIME_DIR/fifo-demo, or one in /tmp]
    #[arg(long)]
    dir: Option<PathBuf>,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    let stop = Signals::of(&[Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP])?;
    let run = RunDir::claim(&args.dir.unwrap_or_else(default_dir))?;
    // The mistake. Whenever no client has the FIFO open for writing, poll reports POLLHUP, and read
    // returns end of file. fifo-server opens it with O_RDWR.
    let req = open_fifo(&run.dir.join("req"), OFlag::O_RDONLY).context("open req")?;
    run.report_ready(None);
    let (mut decoder, mut numbers) = (Decoder::default(), Numbers::new(1));
    loop {
        // poll reports POLLHUP even if it is not asked for, until a client opens the FIFO.
        let stop = PollFd::new(stop.as_fd(), PollFlags::POLLIN);
        let mut fds = [stop, PollFd::new(req.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            polled => polled.context("poll")?,
        };
        if fds.first().and_then(PollFd::any) == Some(true) {
            return Ok(());
        }
        answer(&run, &req, &mut decoder, &mut numbers)?;
    }
}

/// Reads once, which often returns nothing, and answers the questions that are complete.
fn answer(
    run: &RunDir,
    mut req: &File,
    decoder: &mut Decoder,
    numbers: &mut Numbers,
) -> Result<(), Failed> {
    let mut buffer = [0u8; libc::PIPE_BUF];
    match req.read(&mut buffer) {
        Ok(n) => decoder.feed(buffer.get(..n).unwrap_or_default()),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
        Err(e) => Err(e).context("read req")?,
    }
    while let Some(question) = decoder.next_question() {
        let bytes = numbers.answer(question.nonce, question.n).to_bytes();
        let path = reply_path(&run.dir, question.pid, &question.nonce);
        // An error means that the client has left.
        let _ = open_fifo(&path, OFlag::O_WRONLY).and_then(|mut fifo| fifo.write(&bytes));
    }
    Ok(())
}
