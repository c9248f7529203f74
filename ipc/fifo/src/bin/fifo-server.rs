//! A server over named pipes: one request FIFO, one reply FIFO per client, one poll.
//!
//! Run: cargo run -p fifo --bin fifo-server
//! Try: cargo run -p fifo --bin fifo-client -- --count 3
//! Prev: none
//! Next: none
//! Diff base: none
//! Overload: queue (in the request FIFO; of the connections of a socket, the 65th in its backlog)

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use common::report::Failed;
use fifo::events::{Event, Events};
use fifo::numbers::Numbers;
use fifo::record::{Answer, Decoder, Question, Status};
use fifo::rundir::{RunDir, default_dir, open_fifo, reply_path};
use fifo::sockets::{SocketOptions, Sockets};
use fifo::{poll_timeout, wake::Wake};
use lifecycle::Signals;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;

/// Server that sends random numbers over named pipes
#[derive(Parser)]
struct Args {
    /// Private directory of the FIFOs [default: $XDG_RUNTIME_DIR/fifo-demo, or one in /tmp]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Wake clients with SIGUSR1 and expect SIGUSR1 as the acknowledgement
    #[arg(long)]
    signals: bool,
    /// Seed of the random number generator: the same seed gives the same numbers
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    sockets: SocketOptions,
    /// Print each step as one JSON object per line
    #[arg(long)]
    events: bool,
}

fn main() -> Result<(), Failed> {
    let args = Args::parse();
    // Blocked before the first file is made: otherwise a signal could end the process here, and the
    // file would stay.
    let stop = Signals::of(&[Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP])?;
    let wake = Wake::new(args.signals)?;
    let run = RunDir::claim(&args.dir.unwrap_or_else(default_dir))?;
    // Read and write: while the server itself has the FIFO open for writing, read does not return
    // end of file when the last client closes it, and poll sleeps.
    let req = open_fifo(&run.dir.join("req"), OFlag::O_RDWR).context("open req")?;
    let sockets = Sockets::listen(&run.dir, args.sockets)?;
    let numbers = Numbers::seeded(args.seed)?;
    let (decoder, events) = (Decoder::default(), Events::new(args.events));
    // The last line before the loop: everything that can fail at the start has succeeded.
    run.report_ready(sockets.tcp_addr());

    let mut server = Server { run, req, decoder, wake, sockets, numbers, events };
    loop {
        let watch = |fd| PollFd::new(fd, PollFlags::POLLIN);
        // The order of the descriptors here is the order in which they are served below.
        let mut fds = [stop.as_fd(), server.req.as_fd(), server.wake.as_fd()].map(watch).to_vec();
        fds.extend(server.sockets.poll_fds());
        if let Err(errno) = poll(&mut fds, poll_timeout(server.deadline())) {
            // A signal, or out of memory: then it sleeps before it tries again.
            server.sockets.backoff.sleep("poll", &errno.into(), server.events.log())?;
            continue;
        }
        let mut ready = fds.iter().map(|fd| fd.any() == Some(true)).collect::<Vec<_>>().into_iter();
        if ready.next() == Some(true) {
            return Ok(()); // drop removes the FIFOs
        }
        server.serve(&mut ready)?;
    }
}

/// What the server has open, and what it has read and not answered.
struct Server {
    run: RunDir,
    req: File,
    decoder: Decoder,
    wake: Wake,
    sockets: Sockets,
    numbers: Numbers,
    events: Events,
}

impl Server {
    /// The first time at which something has to be done although no descriptor is ready.
    fn deadline(&self) -> Option<Instant> {
        let deadlines = [self.wake.deadline(), self.sockets.deadline(), self.events.deadline()];
        deadlines.into_iter().flatten().min()
    }

    /// One iteration: serves what is ready, then what is late. It waits for no client.
    fn serve(&mut self, ready: &mut impl Iterator<Item = bool>) -> Result<(), Failed> {
        if ready.next() == Some(true) {
            self.read_questions()?;
        }
        if ready.next() == Some(true) {
            self.wake.read_acks(&mut self.events);
        }
        self.sockets.serve(ready, &mut self.numbers, &mut self.events)?;
        self.wake.report_late(&mut self.events);
        self.events.report_junk();
        Ok(())
    }

    /// One read may return several questions, and bytes that are not a question.
    fn read_questions(&mut self) -> Result<(), Failed> {
        let mut buffer = [0u8; libc::PIPE_BUF];
        let n = match self.req.read(&mut buffer) {
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            read => read.context("read req")?,
        };
        // A killed client may have left a part of a question. The decoder skips it.
        self.decoder.feed(buffer.get(..n).unwrap_or_default());
        while let Some(question) = self.decoder.next_question() {
            self.reply(&question);
        }
        self.events.add_junk(std::mem::take(&mut self.decoder.junk));
        self.run.remove_stale();
        Ok(())
    }

    /// Writes the answer into the client's reply FIFO. O_WRONLY with O_NONBLOCK: open does not wait
    /// for a reader, and write does not wait for room.
    fn reply(&mut self, question: &Question) {
        let (pid, nonce) = (question.pid, question.nonce);
        self.events.emit(&Event::question(pid, question, "fifo"));
        // kill(2) gives these numbers another meaning; no client has one.
        let answer = match pid {
            ..=1 => Answer::error(nonce, Status::Pid),
            _ => self.numbers.answer(nonce, question.n),
        };
        let path = reply_path(&self.run.dir, pid, &nonce);
        // At most PIPE_BUF bytes: written as a whole, or not at all (EAGAIN).
        let fifo = open_fifo(&path, OFlag::O_WRONLY);
        if let Err(e) = fifo.and_then(|mut fifo| fifo.write(&answer.to_bytes())) {
            // ENXIO: no reader. The client opened the FIFO before it asked, so it has left.
            if e.raw_os_error() == Some(libc::ENXIO) {
                let _ = fs::remove_file(&path);
            }
            self.events.emit(&Event::dropped(pid, &nonce, &e));
            return;
        }
        self.events.emit(&Event::answer(pid, &answer));
        if answer.status != Status::Pid {
            self.wake.notify(pid, &mut self.events);
        }
    }
}
