//! The server's loop: one poll over the request FIFO, the signals and the Unix socket. It waits for no client.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::Serialize;

use crate::client::hex;
use crate::record::{Answer, Decoder, MAX_N, Question, Status};
use crate::rundir::{RunDir, reply_path};
use crate::sys::{expects, my_uid, open_fifo, pidfd_open, pidfd_send_signal, random};

const ACK_DEADLINE: Duration = Duration::from_secs(1);
const OUTSTANDING: usize = 64;
const MAX_CONNS: usize = 64;
const IDLE: Duration = Duration::from_secs(60);

/// What happened, one object a line with `--events`.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A question was read.
    Question { pid: i32, nonce: String, n: i32, from: &'static str },
    /// Its answer was written.
    Answer { pid: i32, nonce: String, nb: usize, status: String },
    /// The answer could not be written; the server goes on.
    Dropped { pid: i32, nonce: String, why: String },
    /// SIGUSR1 was sent through a pidfd.
    Signal { pid: i32 },
    /// SIGUSR1 was not sent.
    NoSignal { pid: i32, why: String },
    /// The client acknowledged.
    Ack { pid: u32 },
    /// It did not within the deadline.
    AckLate { pid: i32 },
    /// Bytes in the FIFO that are no question.
    Junk { bytes: u64 },
}

/// The server and what it holds.
pub struct Server<'a> {
    run: RunDir,
    req: File,
    decoder: Decoder,
    signals: SignalFd,
    wake: bool,
    listener: UnixListener,
    conns: Vec<Conn>,
    acks: HashMap<i32, Instant>,
    state: u64,
    junk: u64,
    event: Box<dyn FnMut(&Event) + 'a>,
}

struct Conn {
    stream: UnixStream,
    decoder: Decoder,
    pid: i32,
    since: Instant,
}

impl<'a> Server<'a> {
    /// Blocks the signals first, so that none can end the process between the first file and the last.
    ///
    /// # Errors
    /// Where the directory cannot be had.
    pub fn new(
        dir: &std::path::Path,
        wake: bool,
        seed: Option<u64>,
        event: Box<dyn FnMut(&Event) + 'a>,
    ) -> Result<Self> {
        let set = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGUSR1]);
        set.thread_block().context("sigprocmask")?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).context("signalfd")?;
        let run = RunDir::claim(dir)?;
        // Read and write: our own write end keeps end of file away, so that poll sleeps when nobody asks.
        let req = open_fifo(&run.dir.join("req"), true, true).context("open req")?;
        let listener = UnixListener::bind(run.dir.join("sock")).context("bind sock")?;
        listener.set_nonblocking(true).context("O_NONBLOCK")?;
        let [a, b, c, d, e, f, g, h, ..] = random().context("getrandom")?;
        let state = seed.unwrap_or(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
        let decoder = Decoder::default();
        let (conns, acks) = (Vec::new(), HashMap::new());
        Ok(Self { run, req, decoder, signals, wake, listener, conns, acks, state, junk: 0, event })
    }

    /// Serves until SIGINT, SIGTERM or SIGHUP.
    ///
    /// # Errors
    /// Where poll or the request FIFO fails.
    pub fn run(&mut self) -> Result<()> {
        loop {
            let ready = self.poll()?;
            let is = |at: usize| ready.get(at).copied().unwrap_or(false);
            if is(0) && self.read_signals()? {
                return Ok(());
            }
            if is(1) {
                self.read_requests()?;
            }
            // From the back, so that removing one leaves the places of the others.
            for at in (0..self.conns.len()).rev() {
                let idle = self.conns.get(at).is_some_and(|conn| conn.since.elapsed() > IDLE);
                if idle || (is(3 + at) && !self.read_conn(at)) {
                    self.conns.swap_remove(at);
                }
            }
            if is(2) {
                self.accept();
            }
            self.late_acks();
        }
    }

    fn poll(&self) -> Result<Vec<bool>> {
        let listen = if self.conns.len() < MAX_CONNS { PollFlags::POLLIN } else { PollFlags::empty() };
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.req.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), listen),
        ];
        fds.extend(self.conns.iter().map(|conn| PollFd::new(conn.stream.as_fd(), PollFlags::POLLIN)));
        let quiet = self.acks.is_empty() && self.conns.is_empty();
        let timeout = if quiet { PollTimeout::NONE } else { PollTimeout::from(500u16) };
        match poll(&mut fds, timeout) {
            Ok(_) => Ok(fds.iter().map(|fd| fd.any().unwrap_or(false)).collect()),
            Err(Errno::EINTR) => Ok(Vec::new()),
            Err(e) => Err(e).context("poll"),
        }
    }

    /// True once it is time to end.
    fn read_signals(&mut self) -> Result<bool> {
        while let Some(info) = self.signals.read_signal().context("read signalfd")? {
            if info.ssi_signo != libc::SIGUSR1 as u32 {
                return Ok(true);
            }
            // One bit, not a queue: acknowledgements that come together are one, and the others are late.
            self.acks.remove(&(info.ssi_pid as i32));
            (self.event)(&Event::Ack { pid: info.ssi_pid });
        }
        Ok(false)
    }

    fn read_requests(&mut self) -> Result<()> {
        let mut buffer = [0u8; libc::PIPE_BUF];
        let n = match self.req.read(&mut buffer) {
            Ok(n) => n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(()),
            Err(e) => return Err(e).context("read req"),
        };
        self.decoder.feed(buffer.get(..n).unwrap_or_default());
        while let Some(question) = self.decoder.next_question() {
            self.reply(&question);
        }
        if self.decoder.junk > self.junk {
            (self.event)(&Event::Junk { bytes: self.decoder.junk - self.junk });
            self.junk = self.decoder.junk;
        }
        Ok(())
    }

    fn reply(&mut self, question: &Question) {
        let (pid, nonce) = (question.pid, hex(&question.nonce));
        (self.event)(&Event::Question { pid, nonce: nonce.clone(), n: question.n, from: "fifo" });
        let answer = self.answer(question);
        let path = reply_path(&self.run.dir, pid, &question.nonce);
        // ENXIO: the client left. Its pipe is empty and 64 KiB long: a write of one record never waits.
        let sent = open_fifo(&path, false, true).and_then(|mut fifo| fifo.write(&answer.to_bytes()));
        if let Err(e) = sent {
            (self.event)(&Event::Dropped { pid, nonce, why: e.to_string() });
            return;
        }
        (self.event)(&Event::Answer { pid, nonce, nb: answer.values.len(), status: format!("{:?}", answer.status) });
        if self.wake && answer.status != Status::Pid {
            self.signal(pid);
        }
    }

    /// The guard, in this order: no special number, a descriptor for the process, and only then what it is.
    fn signal(&mut self, pid: i32) {
        let why = if pid <= 1 || pid as u32 == std::process::id() {
            "not a client's pid".to_owned()
        } else {
            match pidfd_open(pid) {
                Err(e) => e.to_string(),
                Ok(_) if !expects(pid, libc::SIGUSR1) => "it does not expect SIGUSR1".to_owned(),
                Ok(fd) => match pidfd_send_signal(&fd, libc::SIGUSR1) {
                    Err(e) => e.to_string(),
                    Ok(()) => {
                        if self.acks.len() < OUTSTANDING {
                            self.acks.insert(pid, Instant::now());
                        }
                        return (self.event)(&Event::Signal { pid });
                    }
                },
            }
        };
        (self.event)(&Event::NoSignal { pid, why });
    }

    fn late_acks(&mut self) {
        let late: Vec<i32> =
            self.acks.iter().filter(|(_, since)| since.elapsed() > ACK_DEADLINE).map(|(pid, _)| *pid).collect();
        for pid in late {
            self.acks.remove(&pid);
            (self.event)(&Event::AckLate { pid });
        }
    }

    fn accept(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        // The kernel's word, taken at connect: this one cannot be claimed.
        let Ok(who) = getsockopt(&stream, PeerCredentials) else { return };
        let ours = who.uid() == my_uid();
        if ours && stream.set_nonblocking(true).is_ok() {
            self.conns.push(Conn { stream, decoder: Decoder::default(), pid: who.pid(), since: Instant::now() });
        }
    }

    /// False once the connection is over.
    fn read_conn(&mut self, at: usize) -> bool {
        let Some(conn) = self.conns.get_mut(at) else { return false };
        let mut buffer = [0u8; libc::PIPE_BUF];
        match conn.stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(n) => conn.decoder.feed(buffer.get(..n).unwrap_or_default()),
            Err(e) => return matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
        conn.since = Instant::now();
        let pid = conn.pid;
        let mut out = Vec::new();
        let mut questions = Vec::new();
        while let Some(question) = conn.decoder.next_question() {
            questions.push(Question { pid, ..question });
        }
        for question in questions {
            let nonce = hex(&question.nonce);
            (self.event)(&Event::Question { pid, nonce, n: question.n, from: "unix" });
            out.extend(self.answer(&question).to_bytes());
        }
        // A client that asks and does not read is let go when its socket is full.
        self.conns.get_mut(at).is_some_and(|conn| conn.stream.write_all(&out).is_ok())
    }

    fn answer(&mut self, question: &Question) -> Answer {
        let status = match question {
            q if q.pid <= 1 => Status::Pid,
            q if !(1..=MAX_N).contains(&q.n) => Status::Range,
            _ => Status::Ok,
        };
        let n = if status == Status::Ok { question.n } else { 0 };
        let values = (0..n).map(|_| self.number()).collect();
        Answer { nonce: question.nonce, status, values }
    }

    /// 1 to 100, each as often as the others: what would favor the low numbers is thrown again. (SplitMix64.)
    fn number(&mut self) -> i32 {
        loop {
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            if z < u64::MAX - u64::MAX % 100 {
                return (z % 100) as i32 + 1;
            }
        }
    }
}
