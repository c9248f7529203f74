//! The client: one question, one answer. A program that wants numbers calls [`Client::request`].

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::pidfd::{pidfd_open, pidfd_send_signal};
use crate::poll_timeout;
use crate::record::{Answer, HEAD, MAX_N, Question};
use crate::rundir::{make_fifo, open_fifo, reply_path};

/// How to reach the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The request FIFO, and a reply FIFO of this client.
    Fifo,
    /// The same, with SIGUSR1 from the server and to the server.
    Signals,
    /// The Unix socket.
    Unix,
    /// TCP.
    Tcp(SocketAddr),
}

/// A client of the server in one directory.
#[derive(Debug)]
pub struct Client {
    dir: PathBuf,
    way: Way,
    deadline: Duration,
    /// How long to sleep between the read of the reply FIFO and the wait for it. An answer that
    /// arrives in this time is not lost.
    pub window: Duration,
    /// The server's process. None: over TCP it is not known.
    server: Option<OwnedFd>,
    wake: Option<SignalFd>,
}

impl Client {
    /// Finds the server. With [`Way::Signals`] it also blocks SIGUSR1 in the calling thread: a
    /// signal that arrives before the wait then stays pending, and is read from a descriptor.
    ///
    /// # Errors
    /// No server runs in `dir`.
    pub fn new(dir: &Path, way: Way, deadline: Duration) -> Result<Self> {
        let server = match way {
            Way::Tcp(_) => None,
            _ => Some(find_server(dir).with_context(|| format!("no server in {}", dir.display()))?),
        };
        let wake = if way == Way::Signals { Some(block_usr1()?) } else { None };
        Ok(Self { dir: dir.to_owned(), way, deadline, window: Duration::ZERO, server, wake })
    }

    /// Asks for `n` numbers. Returns the answer, or an error at the deadline or when the server
    /// ends.
    ///
    /// # Errors
    /// No server, no answer in time, or an answer that cannot belong to this question.
    pub fn request(&self, n: i32) -> Result<Answer> {
        let question = Question::new(n).context("getrandom")?;
        let until = Instant::now() + self.deadline;
        let bytes = match self.way {
            Way::Fifo | Way::Signals => self.ask_by_fifo(&question, until)?,
            Way::Unix => {
                let path = self.dir.join("sock");
                let addr = SockAddr::unix(&path).with_context(|| path.display().to_string())?;
                self.ask_by_socket(&question, Domain::UNIX, &addr, until)
                    .with_context(|| path.display().to_string())?
            }
            Way::Tcp(addr) => self
                .ask_by_socket(&question, Domain::for_address(addr), &addr.into(), until)
                .with_context(|| addr.to_string())?,
        };
        let answer = Answer::from_bytes(&bytes).context("the answer is not a whole record")?;
        answer.check(&question)?;
        Ok(answer)
    }

    fn ask_by_fifo(&self, question: &Question, until: Instant) -> Result<Vec<u8>> {
        let path = reply_path(&self.dir, question.pid, &question.nonce);
        make_fifo(&path)?;
        // From here on the name is removed, also if the request fails.
        let name = RemoveOnDrop(path);
        // Opened before the question is written: if the server finds no reader, it gets ENXIO.
        let reply = open_fifo(&name.0, OFlag::O_RDONLY)
            .with_context(|| format!("open {}", name.0.display()))?;
        let req = self.dir.join("req");
        let mut req = open_fifo(&req, OFlag::O_WRONLY)
            .with_context(|| format!("no server reads {}", req.display()))?;
        loop {
            match req.write(&question.to_bytes()) {
                Ok(_) => break, // at most PIPE_BUF bytes: all of them, or EAGAIN
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    if let Some(end) = self.wait(&req, PollFlags::POLLOUT, until)? {
                        bail!("{end}");
                    }
                }
                Err(e) => return Err(e).context("write req"),
            }
        }
        let bytes = self.read_reply(reply, until)?;
        // To the pidfd: if the server has died, no other process gets the signal.
        if let (Way::Signals, Some(server)) = (self.way, &self.server) {
            pidfd_send_signal(server, libc::SIGUSR1).context("acknowledge")?;
        }
        Ok(bytes)
    }

    fn read_reply(&self, mut reply: File, until: Instant) -> Result<Vec<u8>> {
        let mut buffer = [0u8; HEAD + 4 * MAX_N as usize];
        let mut end = None;
        loop {
            match reply.read(&mut buffer) {
                Ok(n) if n > 0 => return Ok(buffer.get(..n).unwrap_or_default().to_vec()),
                // 0: no process has the FIFO open for writing. EAGAIN: one has, and it is empty.
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e).context("read the reply FIFO"),
            }
            if let Some(end) = end {
                bail!("{end}");
            }
            // naive-pause loses its signal at this point.
            thread::sleep(self.window);
            end = self.wait(&reply, PollFlags::POLLIN, until)?;
        }
    }

    /// Sleeps until `file` is ready, SIGUSR1 arrives, the server ends, or the deadline passes.
    ///
    /// Some(reason): nothing more will be written. What has been written must still be read: poll
    /// checks one thing after the other without a lock. So an answer may arrive after poll has
    /// checked the bytes of the FIFO, and before it checks the writers of the FIFO or the server.
    fn wait(
        &self,
        file: &impl AsFd,
        interest: PollFlags,
        until: Instant,
    ) -> Result<Option<&'static str>> {
        self.time_left(until)?;
        // Also the end of the server: without it a client would wait until its deadline.
        let mut fds = vec![PollFd::new(file.as_fd(), interest)];
        let others = [self.server.as_ref().map(AsFd::as_fd), self.wake.as_ref().map(AsFd::as_fd)];
        fds.extend(others.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        match poll(&mut fds, poll_timeout(Some(until))) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e).context("poll"),
        }
        let is_ready = |at: usize| fds.get(at).and_then(PollFd::any).unwrap_or(false);
        if let Some(wake) = self.wake.as_ref().filter(|_| is_ready(2)) {
            let _ = wake.read_signal(); // the answer is in the FIFO: the signal carries nothing
        }
        // Only POLLHUP: a process had the FIFO open for writing, and has closed it.
        let revents = fds.first().and_then(PollFd::revents);
        Ok(match (revents == Some(PollFlags::POLLHUP), is_ready(0), is_ready(1)) {
            (true, ..) => Some("the server closed the reply FIFO without an answer"),
            (_, false, true) => Some("the server ended"),
            _ => None,
        })
    }

    /// Over a connection the answer needs no name and no nonce to find its client.
    fn ask_by_socket(
        &self,
        question: &Question,
        domain: Domain,
        addr: &SockAddr,
        until: Instant,
    ) -> Result<Vec<u8>> {
        let mut conn = Socket::new(domain, Type::STREAM, None).context("socket")?;
        // connect and write block at most this long. The question fits into an empty send buffer.
        conn.set_write_timeout(Some(self.time_left(until)?)).context("SO_SNDTIMEO")?;
        conn.connect(addr).context("connect")?;
        conn.write_all(&question.to_bytes()).context("write")?;
        let mut answer = self.read_bytes(&mut conn, HEAD, until)?;
        let count =
            answer.get(6..8).and_then(|bytes| bytes.try_into().ok()).map(u16::from_le_bytes);
        let count = count.map_or(0, usize::from).min(MAX_N as usize);
        answer.extend(self.read_bytes(&mut conn, 4 * count, until)?);
        Ok(answer)
    }

    /// Reads `wanted` bytes. The timeout of each read is the time that is left until the deadline:
    /// a server that sends one byte now and then does not move the deadline.
    fn read_bytes(&self, conn: &mut Socket, wanted: usize, until: Instant) -> Result<Vec<u8>> {
        let (mut bytes, mut got) = (vec![0; wanted], 0);
        while let Some(rest) = bytes.get_mut(got..).filter(|rest| !rest.is_empty()) {
            conn.set_read_timeout(Some(self.time_left(until)?)).context("SO_RCVTIMEO")?;
            match conn.read(rest) {
                Ok(0) => bail!("the server closed the connection without a whole answer"),
                Ok(n) => got += n,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(e) => return Err(e).context("read"),
            }
        }
        Ok(bytes)
    }

    /// At least a millisecond: a socket timeout of zero means that there is no timeout.
    fn time_left(&self, until: Instant) -> Result<Duration> {
        let left = until.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "no answer within {} ms", self.deadline.as_millis());
        Ok(left.max(Duration::from_millis(1)))
    }
}

/// The process that holds the lock of the directory. If no process holds it, the pid in the file is
/// that of a dead server, and may belong to an unrelated process now.
fn find_server(dir: &Path) -> Result<OwnedFd> {
    let mut file = File::open(dir.join("lock")).context("lock")?;
    let mut pid = String::new();
    file.read_to_string(&mut pid).context("lock")?;
    let server = pidfd_open(pid.parse().context("lock")?)?;
    // After pidfd_open: if the lock is held now, its holder was alive then.
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Err((_, Errno::EWOULDBLOCK)) => Ok(server),
        Err((_, errno)) => Err(anyhow!(errno).context("flock")),
        Ok(_) => bail!("the last server has ended"),
    }
}

/// Blocks SIGUSR1 and returns a descriptor to read it from. The server sends the signal only to a
/// process that has a handler, because a process without one could be killed.
fn block_usr1() -> Result<SignalFd> {
    let usr1 = SigSet::from_iter([Signal::SIGUSR1]);
    usr1.thread_block().context("sigprocmask")?;
    // SAFETY: the handler does nothing. It does not even run while the signal is blocked.
    unsafe { signal(Signal::SIGUSR1, SigHandler::Handler(do_nothing)) }.context("signal")?;
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    SignalFd::with_flags(&usr1, flags).context("signalfd")
}

extern "C" fn do_nothing(_: i32) {}

/// Removes the name of the reply FIFO at the end of the request, also after an error.
struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
