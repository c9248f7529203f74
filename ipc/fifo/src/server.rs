//! The server's loop: one poll over the request FIFO, the signals and the sockets. It waits for no client.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::Serialize;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::client::hex;
use crate::numbers::Numbers;
use crate::record::{Answer, Decoder, Question, Status};
use crate::rundir::{RunDir, reply_path};
use crate::sys::{expects, my_uid, open_fifo, pidfd_open, pidfd_send_signal, random};

const ACK_DEADLINE: Duration = Duration::from_secs(1);
const OUTSTANDING: usize = 64;
const MAX_CONNS: usize = 64;
const BACKLOG: i32 = 1024;
/// Without a descriptor to be had, accept would fail at once again and again: so long it is not tried.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Junk is told of so often at most, with the number of bytes since: nobody fills the log through the FIFO.
const JUNK_PAUSE: Duration = Duration::from_secs(1);
/// So often at most the directory is searched for what killed clients left.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

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
    /// A connection is over.
    Closed { pid: i32, why: &'static str },
    /// Bytes that are no question, since this was last said.
    Junk { bytes: u64 },
}

/// How to serve.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Wake clients with SIGUSR1, and await theirs.
    pub wake: bool,
    /// The same numbers every time.
    pub seed: Option<u64>,
    /// Serve on this TCP port of 127.0.0.1 too; 0 takes any.
    pub tcp: Option<u16>,
    /// A question on a connection must be whole so long after the connect, or after its first byte.
    pub line_timeout: Duration,
    /// A connection may rest so long between an answer and the next question.
    pub idle_timeout: Duration,
}

/// The server and what it holds.
pub struct Server<'a> {
    run: RunDir,
    req: File,
    decoder: Decoder,
    signals: SignalFd,
    options: Options,
    listeners: Vec<Socket>,
    accept_after: Option<Instant>,
    conns: Vec<Conn>,
    acks: HashMap<i32, Instant>,
    numbers: Numbers,
    junk: u64,
    junk_told: Option<Instant>,
    swept: Instant,
    event: Box<dyn FnMut(&Event) + 'a>,
}

struct Conn {
    stream: Socket,
    decoder: Decoder,
    pid: i32,
    from: &'static str,
    deadline: Instant,
}

impl<'a> Server<'a> {
    /// Blocks the signals first, so that none can end the process between the first file and the last.
    ///
    /// # Errors
    /// Where the directory, or the port, cannot be had.
    pub fn new(dir: &Path, options: Options, event: Box<dyn FnMut(&Event) + 'a>) -> Result<Self> {
        let set = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGUSR1]);
        set.thread_block().context("sigprocmask")?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).context("signalfd")?;
        let run = RunDir::claim(dir)?;
        // Read and write: our own write end keeps end of file away, so that poll sleeps when nobody asks.
        let req = open_fifo(&run.dir.join("req"), true, true).context("open req")?;
        let mut listeners = vec![listen_unix(&run.dir.join("sock"))?];
        if let Some(port) = options.tcp {
            listeners.push(listen_tcp(port)?);
        }
        let [a, b, c, d, e, f, g, h, ..] = random().context("getrandom")?;
        let numbers = Numbers::new(options.seed.unwrap_or(u64::from_le_bytes([a, b, c, d, e, f, g, h])));
        Ok(Self {
            run,
            req,
            decoder: Decoder::default(),
            signals,
            options,
            listeners,
            accept_after: None,
            conns: Vec::new(),
            acks: HashMap::new(),
            numbers,
            junk: 0,
            junk_told: None,
            swept: Instant::now(),
            event,
        })
    }

    /// Where the TCP twin listens.
    #[must_use]
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        self.listeners.iter().find_map(|listener| listener.local_addr().ok()?.as_socket())
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
            let first = 2 + self.listeners.len();
            // From the back, so that removing one leaves the places of the others.
            for at in (0..self.conns.len()).rev() {
                let over = match is(first + at) {
                    true => self.read_conn(at).err(),
                    false => self.late_conn(at),
                };
                if let Some(why) = over {
                    let conn = self.conns.swap_remove(at);
                    (self.event)(&Event::Closed { pid: conn.pid, why });
                }
            }
            for at in (0..self.listeners.len()).filter(|at| is(2 + at)) {
                self.accept(at);
            }
            self.late_acks();
            self.tell_junk();
        }
    }

    fn poll(&mut self) -> Result<Vec<bool>> {
        let now = Instant::now();
        self.accept_after = self.accept_after.filter(|after| *after > now);
        let full = self.conns.len() >= MAX_CONNS || self.accept_after.is_some();
        let listen = if full { PollFlags::empty() } else { PollFlags::POLLIN };
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.req.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(self.listeners.iter().map(|listener| PollFd::new(listener.as_fd(), listen)));
        fds.extend(self.conns.iter().map(|conn| PollFd::new(conn.stream.as_fd(), PollFlags::POLLIN)));
        let timeout = match self.next_deadline() {
            None => PollTimeout::NONE,
            // Rounded up: woken a fraction too early, it would go round until the deadline.
            Some(at) => PollTimeout::try_from(at.saturating_duration_since(now) + Duration::from_millis(1))
                .unwrap_or(PollTimeout::MAX),
        };
        match poll(&mut fds, timeout) {
            Ok(_) => Ok(fds.iter().map(|fd| fd.any().unwrap_or(false)).collect()),
            Err(Errno::EINTR) => Ok(Vec::new()),
            Err(e) => Err(e).context("poll"),
        }
    }

    /// With nothing under way there is none, and poll sleeps until somebody asks.
    fn next_deadline(&self) -> Option<Instant> {
        let acks = self.acks.values().map(|since| *since + ACK_DEADLINE);
        let conns = self.conns.iter().map(|conn| conn.deadline);
        let junk = self.junk_told.filter(|_| self.junk > 0).map(|told| told + JUNK_PAUSE);
        acks.chain(conns).chain(junk).chain(self.accept_after).min()
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
        self.junk += std::mem::take(&mut self.decoder.junk);
        if self.swept.elapsed() > SWEEP_PAUSE {
            self.run.sweep_stale();
            self.swept = Instant::now();
        }
        Ok(())
    }

    fn reply(&mut self, question: &Question) {
        let (pid, nonce) = (question.pid, hex(&question.nonce));
        (self.event)(&Event::Question { pid, nonce: nonce.clone(), n: question.n, from: "fifo" });
        let answer = match pid {
            ..=1 => Answer { nonce: question.nonce, status: Status::Pid, values: Vec::new() },
            _ => self.numbers.answer(question.nonce, question.n),
        };
        let path = reply_path(&self.run.dir, pid, &question.nonce);
        // Its pipe is empty and 64 KiB long: a write of one record never waits, and never goes in half.
        let sent = open_fifo(&path, false, true).and_then(|mut fifo| fifo.write(&answer.to_bytes()));
        if let Err(e) = sent {
            // ENXIO: the client left. It opened its end before it asked, so nobody will ever open this one.
            if e.raw_os_error() == Some(libc::ENXIO) {
                let _ = fs::remove_file(&path);
            }
            (self.event)(&Event::Dropped { pid, nonce, why: e.to_string() });
            return;
        }
        (self.event)(&Event::Answer { pid, nonce, nb: answer.values.len(), status: format!("{:?}", answer.status) });
        if self.options.wake && answer.status != Status::Pid {
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

    fn tell_junk(&mut self) {
        if self.junk > 0 && self.junk_told.is_none_or(|told| told.elapsed() >= JUNK_PAUSE) {
            (self.event)(&Event::Junk { bytes: std::mem::take(&mut self.junk) });
            self.junk_told = Some(Instant::now());
        }
    }

    fn accept(&mut self, at: usize) {
        let Some(listener) = self.listeners.get(at) else { return };
        let (stream, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(e) => {
                if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)) {
                    self.accept_after = Some(Instant::now() + ACCEPT_PAUSE);
                }
                return;
            }
        };
        let (pid, from) = match peer.is_unix() {
            // The kernel's word, taken at connect: this one cannot be claimed.
            true => match getsockopt(&stream, PeerCredentials) {
                Ok(who) if who.uid() == my_uid() => (who.pid(), "unix"),
                _ => return,
            },
            // TCP names an address and no process: any user of this machine may ask.
            false => (0, "tcp"),
        };
        if stream.set_nonblocking(true).is_ok() {
            let deadline = Instant::now() + self.options.line_timeout;
            self.conns.push(Conn { stream, decoder: Decoder::default(), pid, from, deadline });
        }
    }

    fn late_conn(&self, at: usize) -> Option<&'static str> {
        let late = self.conns.get(at).is_some_and(|conn| conn.deadline <= Instant::now());
        late.then_some("no whole question in time")
    }

    /// The error says why the connection is over.
    fn read_conn(&mut self, at: usize) -> Result<(), &'static str> {
        let Some(conn) = self.conns.get_mut(at) else { return Ok(()) };
        let mut buffer = [0u8; libc::PIPE_BUF];
        let n = match conn.stream.read(&mut buffer) {
            Ok(0) => return Err("the client left"),
            Ok(n) => n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(()),
            Err(_) => return Err("read failed"),
        };
        let begins = conn.decoder.is_empty();
        conn.decoder.feed(buffer.get(..n).unwrap_or_default());
        let mut out = Vec::new();
        while let Some(question) = conn.decoder.next_question() {
            let (pid, nonce) = (conn.pid, hex(&question.nonce));
            (self.event)(&Event::Question { pid, nonce: nonce.clone(), n: question.n, from: conn.from });
            let answer = self.numbers.answer(question.nonce, question.n);
            let status = format!("{:?}", answer.status);
            (self.event)(&Event::Answer { pid, nonce, nb: answer.values.len(), status });
            out.extend(answer.to_bytes());
        }
        // A deadline is for a whole question: a byte now and then does not move it.
        let now = Instant::now();
        match (out.is_empty(), conn.decoder.is_empty()) {
            (false, true) => conn.deadline = now + self.options.idle_timeout,
            (false, false) => conn.deadline = now + self.options.line_timeout,
            (true, _) if begins => conn.deadline = conn.deadline.min(now + self.options.line_timeout),
            (true, _) => {}
        }
        // A client that asks and does not read is let go when its socket is full.
        conn.stream.write_all(&out).map_err(|_| "it does not read its answers")?;
        self.junk += conn.decoder.junk;
        // On a connection there is one sender, and nothing of it is a question after this.
        if conn.decoder.junk > 0 { Err("not a question") } else { Ok(()) }
    }
}

fn listen_unix(path: &Path) -> Result<Socket> {
    let listen = || -> io::Result<Socket> {
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        listener.bind(&SockAddr::unix(path)?)?;
        listener.listen(BACKLOG)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    listen().with_context(|| format!("listen {}", path.display()))
}

fn listen_tcp(port: u16) -> Result<Socket> {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listen = || -> io::Result<Socket> {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        listener.set_reuse_address(true)?;
        listener.bind(&addr.into())?;
        listener.listen(BACKLOG)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    listen().with_context(|| format!("listen {addr}"))
}
