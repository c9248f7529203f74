//! One request, as a function: whoever wants numbers calls [`Client::request`], nobody reads a program's text.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::record::{Answer, HEAD, MAX_N, Nonce, Question};
use crate::rundir::reply_path;
use crate::sys::{open_fifo, pidfd_open, pidfd_send_signal, random};

/// How to reach the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The request FIFO and a reply FIFO of our own.
    Fifo,
    /// The same, woken by SIGUSR1 and acknowledging with SIGUSR1.
    Signals,
    /// The Unix socket, where the kernel says who asks.
    Unix,
    /// TCP, where nobody does.
    Tcp(SocketAddr),
}

/// A client of the server in one directory.
#[derive(Debug)]
pub struct Client {
    dir: PathBuf,
    way: Way,
    deadline: Duration,
    /// Between a look at the reply FIFO and the wait for it. Whatever comes meanwhile is not lost.
    pub window: Duration,
    /// The server's process; unknown over TCP.
    server: Option<OwnedFd>,
    wake: Option<SignalFd>,
}

/// The process that holds the directory's lock. A number in a file that nobody has locked is that of a dead server, and
/// may be anybody's by now.
fn server_of(dir: &Path) -> Result<OwnedFd> {
    let mut file = File::open(dir.join("lock")).context("lock")?;
    let mut pid = String::new();
    file.read_to_string(&mut pid).context("lock")?;
    let server = pidfd_open(pid.parse().context("lock")?)?;
    // After the open: it was alive while it held the lock, so the descriptor is its own.
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Err((_, Errno::EWOULDBLOCK)) => Ok(server),
        Err((_, errno)) => Err(errno).context("flock"),
        Ok(_) => bail!("the one that was here has ended"),
    }
}

extern "C" fn nothing(_: i32) {}

/// Removes the reply FIFO's name, whichever way the request ends.
struct Name(PathBuf);

impl Drop for Name {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Client {
    /// Finds the server. In [`Way::Signals`] SIGUSR1 is blocked in the calling thread first: a signal that comes
    /// before the wait then stays pending, and is read from a descriptor.
    ///
    /// # Errors
    /// Where no server runs in `dir`.
    pub fn new(dir: &Path, way: Way, deadline: Duration) -> Result<Self> {
        let server = match way {
            Way::Tcp(_) => None,
            _ => Some(server_of(dir).with_context(|| format!("no server in {}", dir.display()))?),
        };
        let wake = match way {
            Way::Signals => {
                let set = SigSet::from_iter([Signal::SIGUSR1]);
                // Never run while the signal is blocked: it is how the server sees that SIGUSR1 cannot kill us.
                // SAFETY: the handler does nothing, which is safe at any moment.
                unsafe { signal(Signal::SIGUSR1, SigHandler::Handler(nothing)) }.context("signal")?;
                set.thread_block().context("sigprocmask")?;
                Some(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).context("signalfd")?)
            }
            _ => None,
        };
        Ok(Self { dir: dir.to_owned(), way, deadline, window: Duration::ZERO, server, wake })
    }

    /// Asks for `n` numbers and waits for them, for the server's end, or for the deadline.
    ///
    /// # Errors
    /// No server, its end, no answer in time, or an answer to something else.
    pub fn request(&self, n: i32) -> Result<Answer> {
        let pid = i32::try_from(std::process::id()).context("pid")?;
        let question = Question { nonce: random().context("getrandom")?, n, pid };
        let bytes = match self.way {
            Way::Unix => {
                let path = self.dir.join("sock");
                let addr = SockAddr::unix(&path).with_context(|| path.display().to_string())?;
                self.over_socket(&question, Domain::UNIX, &addr, &path.display().to_string())?
            }
            Way::Tcp(addr) => {
                self.over_socket(&question, Domain::for_address(addr), &addr.into(), &addr.to_string())?
            }
            Way::Fifo | Way::Signals => self.over_fifo(&question)?,
        };
        let answer = Answer::from_bytes(&bytes).ok_or_else(|| anyhow!("the answer is not a whole record"))?;
        ensure!(answer.nonce == question.nonce, "the answer belongs to another question");
        Ok(answer)
    }

    fn over_fifo(&self, question: &Question) -> Result<Vec<u8>> {
        let path = reply_path(&self.dir, question.pid, &question.nonce);
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).with_context(|| format!("mkfifo {}", path.display()))?;
        let name = Name(path);
        // Opened before the question is sent: the server opens it O_WRONLY | O_NONBLOCK and takes ENXIO for our end.
        let reply = open_fifo(&name.0, true, false).with_context(|| format!("open {}", name.0.display()))?;
        let req = self.dir.join("req");
        let mut req = open_fifo(&req, false, true).with_context(|| format!("no server reads {}", req.display()))?;
        let until = Instant::now() + self.deadline;
        loop {
            match req.write(&question.to_bytes()) {
                Ok(_) => break, // at most PIPE_BUF: all or nothing
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    if let Some(over) = self.wait(&req, PollFlags::POLLOUT, until)? {
                        bail!("{over}");
                    }
                }
                Err(e) => return Err(e).context("write req"),
            }
        }
        let bytes = self.read_reply(reply, until)?;
        if let (Way::Signals, Some(server)) = (self.way, &self.server) {
            // The acknowledgement: to the descriptor, so that it can reach nobody but the server we asked.
            pidfd_send_signal(server, libc::SIGUSR1).context("acknowledge")?;
        }
        Ok(bytes)
    }

    fn read_reply(&self, mut reply: File, until: Instant) -> Result<Vec<u8>> {
        let mut buffer = [0u8; HEAD + 4 * MAX_N as usize];
        let mut over = None;
        loop {
            match reply.read(&mut buffer) {
                Ok(n) if n > 0 => return Ok(buffer.get(..n).unwrap_or_default().to_vec()),
                // 0: no writer yet, or none any more. EAGAIN: a writer, and nothing written yet.
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e).context("read the reply FIFO"),
            }
            if let Some(over) = over {
                bail!("{over}");
            }
            thread::sleep(self.window);
            over = self.wait(&reply, PollFlags::POLLIN, until)?;
        }
    }

    /// Sleeps until `file` is ready, SIGUSR1 came, the server ended, or it is too late. Returns why nothing more will
    /// come than what is there; and that is to be read: poll looks at one thing after the other, without a lock, so an
    /// answer may have come after the look at the FIFO's bytes and before the look at its writers, or at the server.
    fn wait(&self, file: &impl AsFd, what: PollFlags, until: Instant) -> Result<Option<&'static str>> {
        let left = until.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "no answer within {} ms", self.deadline.as_millis());
        let mut fds = vec![PollFd::new(file.as_fd(), what)];
        fds.extend(self.server.iter().map(|server| PollFd::new(server.as_fd(), PollFlags::POLLIN)));
        fds.extend(self.wake.iter().map(|wake| PollFd::new(wake.as_fd(), PollFlags::POLLIN)));
        // Rounded up: with less than a millisecond left, poll would not sleep at all.
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e).context("poll"),
        }
        let ready = |at: usize| fds.get(at).and_then(PollFd::any).unwrap_or(false);
        if let Some(wake) = self.wake.as_ref().filter(|_| ready(2)) {
            let _ = wake.read_signal(); // only a hint to look: the answer is in the FIFO
        }
        // A FIFO hangs up only after somebody has had it open for writing.
        let gone = fds.first().and_then(PollFd::revents).is_some_and(|now| now == PollFlags::POLLHUP);
        Ok(match (gone, ready(0), ready(1)) {
            (true, ..) => Some("the server closed the reply FIFO without an answer"),
            (_, false, true) => Some("the server ended"),
            _ => None,
        })
    }

    /// A connection carries the answer back to whoever asked: no name, no nonce in a name, nothing to remove.
    fn over_socket(&self, question: &Question, domain: Domain, addr: &SockAddr, name: &str) -> Result<Vec<u8>> {
        let mut conn = Socket::new(domain, Type::STREAM, None).context("socket")?;
        let patience = Some(self.deadline.max(Duration::from_millis(1)));
        conn.set_read_timeout(patience).context("SO_RCVTIMEO")?;
        conn.set_write_timeout(patience).context("SO_SNDTIMEO")?;
        conn.connect(addr).with_context(|| format!("connect {name}"))?;
        conn.write_all(&question.to_bytes()).context("write")?;
        let mut head = [0u8; HEAD];
        let late = |e: io::Error| anyhow!("no answer from {name}: {e}");
        conn.read_exact(&mut head).map_err(late)?;
        let count = u16::from_le_bytes([head[6], head[7]]).min(MAX_N as u16);
        let mut bytes = head.to_vec();
        bytes.resize(HEAD + 4 * usize::from(count), 0);
        conn.read_exact(bytes.get_mut(HEAD..).unwrap_or_default()).map_err(late)?;
        Ok(bytes)
    }
}

/// The nonce as the reply FIFO's name has it.
#[must_use]
pub fn hex(nonce: &Nonce) -> String {
    nonce.iter().map(|byte| format!("{byte:02x}")).collect()
}
