//! The listener, what to do when accept fails, and how to turn a client away.

use std::io;
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use socket2::{Domain, Socket, Type};

use crate::blocking::drive;
use crate::cli::{Limits, Listen};
use crate::report::{self, Failed, Log};
use crate::service::{Conn, Refusal, Stream};

/// First pause after an accept that failed for want of resources; each further one is twice as long ...
pub const BACKOFF_FIRST: Duration = Duration::from_millis(5);
/// ... up to this.
pub const BACKOFF_MOST: Duration = Duration::from_secs(1);

/// Makes the listening socket and prints the ready line. server00-iterative spells these calls out.
///
/// # Errors
/// One line that names the call, the address and the errno.
pub fn listen(at: &Listen, backlog: i32) -> Result<Socket, Failed> {
    let addr = at.addr()?;
    let listener = Socket::new(Domain::for_address(addr), Type::STREAM, None).context("socket")?;
    listener.set_reuse_address(true).context("setsockopt SO_REUSEADDR")?;
    listener.set_tcp_nodelay(true).context("setsockopt TCP_NODELAY")?;
    listener.bind(&addr.into()).with_context(|| format!("bind {addr}"))?;
    listener.listen(backlog).with_context(|| format!("listen {addr}"))?;
    report::ready(&listener);
    Ok(listener)
}

/// Neither done nor broken: not ready, out of time, or interrupted by a signal. Ask again.
pub fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// What an acceptor does after accept failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// That one connection is lost, or another process took it: accept again.
    Next,
    /// The machine or the process is out of something. The connection stays in the queue, so accepting again at once
    /// would spin: pause first.
    Backoff,
    /// The listener is not a listener any more, and never will be.
    Fatal,
}

/// Judges the errno of a failed accept. EINTR is not judged here: that arm is part of every lesson.
///
/// Linux hands errors that are already pending on the new connection out through accept (accept(2), "Error
/// handling"), so all of those mean *next*.
pub fn accept_failed(errno: i32) -> Verdict {
    match errno {
        libc::ECONNABORTED
        | libc::EPROTO
        | libc::EPERM
        | libc::ENETDOWN
        | libc::ENETUNREACH
        | libc::EHOSTDOWN
        | libc::EHOSTUNREACH
        | libc::ENONET
        | libc::ENOPROTOOPT
        | libc::EOPNOTSUPP
        | libc::ETIMEDOUT
        | libc::ENOSPC
        | libc::EAGAIN => Verdict::Next,
        libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => Verdict::Backoff,
        _ => Verdict::Fatal,
    }
}

/// The pauses of an acceptor that is out of descriptors or memory: 5 ms, doubling to 1 s. After two seconds without a
/// pause the next one is 5 ms again.
///
/// A blocking acceptor calls [`accept_failed`](Self::accept_failed), which sleeps. A task sleeps for the duration that
/// [`pause`](Self::pause) returns. An event loop calls `pause` too, does not watch its listener while
/// [`until`](Self::until) returns a time, and calls [`expire`](Self::expire) after each wait.
#[derive(Debug)]
pub struct Backoff {
    /// The length of the next pause.
    next: Duration,
    /// The planned end of the last pause.
    last_end: Instant,
    /// The end of the pause in force.
    until: Option<Instant>,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { next: BACKOFF_FIRST, last_end: Instant::now(), until: None }
    }
}

impl Backoff {
    /// Logs a failed accept and returns how long to wait before the next accept: zero if it may succeed at once. EAGAIN
    /// and EINTR are no failures.
    ///
    /// # Errors
    /// The listener can no longer be used.
    pub fn pause(&mut self, error: &io::Error, log: &Log) -> Result<Duration, Failed> {
        if is_transient(error) {
            return Ok(Duration::ZERO);
        }
        log.repeated("WARN", &format!("accept: {error}"));
        match accept_failed(error.raw_os_error().unwrap_or_default()) {
            Verdict::Next => Ok(Duration::ZERO),
            Verdict::Backoff => Ok(self.start(Instant::now())),
            Verdict::Fatal => Err(Failed::new(format!("accept: {error}"))),
        }
    }

    /// The end of the pause in force. It stays in force until [`expire`](Self::expire) or [`end`](Self::end), so an event
    /// loop that does not watch its listener never sleeps past this time.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Ends the pause if its time has come.
    pub fn expire(&mut self, now: Instant) {
        self.until = self.until.filter(|until| now < *until);
    }

    /// Ends the pause early: a descriptor has become free, so the next accept may succeed.
    pub fn end(&mut self) {
        self.until = None;
    }

    /// What a blocking acceptor does after a failed accept: it sleeps for the [`pause`](Self::pause).
    ///
    /// # Errors
    /// The listener can no longer be used.
    pub fn accept_failed(&mut self, error: &io::Error, log: &Log) -> Result<(), Failed> {
        thread::sleep(self.pause(error, log)?);
        Ok(())
    }

    fn start(&mut self, now: Instant) -> Duration {
        let is_quiet = now.saturating_duration_since(self.last_end) > 2 * BACKOFF_MOST;
        let pause = if is_quiet { BACKOFF_FIRST } else { self.next };
        self.next = BACKOFF_MOST.min(pause * 2);
        self.last_end = now + pause;
        self.until = Some(self.last_end);
        pause
    }
}

/// Turns a client away: one `ERR` line, then a lingering close, since closing on unread bytes would send a reset
/// that can overtake the line. Blocks for at most the linger and the time the line takes: call it where that is no
/// harm to others.
///
/// # Errors
/// Always, in the end: [`Conn::result`] of the refusal, or what the kernel said of the connection.
pub fn refuse(conn: &mut Socket, why: Refusal, limits: &Limits) -> io::Result<()> {
    drive(conn, Conn::refused(why, limits, Instant::now()))
}

impl Stream for Socket {
    fn read_within(&mut self, bound: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(bound))
    }

    fn write_within(&mut self, bound: Duration) -> io::Result<()> {
        self.set_write_timeout(Some(bound))
    }

    fn finish_writing(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! verdicts {
        ($($name:ident: $errno:ident => $verdict:ident;)*) => {
            $(#[test]
            fn $name() {
                assert_eq!(accept_failed(libc::$errno), Verdict::$verdict);
            })*
        };
    }

    verdicts! {
        econnaborted: ECONNABORTED => Next;
        eproto: EPROTO => Next;
        eperm: EPERM => Next;
        enetdown: ENETDOWN => Next;
        enetunreach: ENETUNREACH => Next;
        ehostdown: EHOSTDOWN => Next;
        ehostunreach: EHOSTUNREACH => Next;
        enonet: ENONET => Next;
        enoprotoopt: ENOPROTOOPT => Next;
        eopnotsupp: EOPNOTSUPP => Next;
        etimedout: ETIMEDOUT => Next;
        eagain: EAGAIN => Next;
        emfile: EMFILE => Backoff;
        enfile: ENFILE => Backoff;
        enobufs: ENOBUFS => Backoff;
        enomem: ENOMEM => Backoff;
        ebadf: EBADF => Fatal;
        einval: EINVAL => Fatal;
        enotsock: ENOTSOCK => Fatal;
        efault: EFAULT => Fatal;
    }

    #[test]
    fn backoff_doubles_to_a_second_and_forgets() {
        let mut now = Instant::now();
        let mut backoff = Backoff::default();
        let mut pauses = Vec::new();
        for _ in 0..10 {
            let pause = backoff.start(now);
            pauses.push(pause.as_millis());
            now += pause;
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        assert_eq!(backoff.start(now + Duration::from_secs(3)), BACKOFF_FIRST);
    }

    #[test]
    fn pause_stays_in_force_until_it_is_ended() {
        let log = Log::default();
        let mut backoff = Backoff::default();
        let out_of_descriptors = io::Error::from_raw_os_error(libc::EMFILE);
        assert_eq!(backoff.pause(&io::ErrorKind::WouldBlock.into(), &log).unwrap(), Duration::ZERO);
        assert_eq!(backoff.until(), None);
        assert_eq!(backoff.pause(&out_of_descriptors, &log).unwrap(), BACKOFF_FIRST);
        let end = backoff.until().unwrap();
        backoff.expire(end - Duration::from_millis(1));
        assert_eq!(backoff.until(), Some(end));
        backoff.expire(end);
        assert_eq!(backoff.until(), None);
        assert!(backoff.pause(&out_of_descriptors, &log).unwrap() > BACKOFF_FIRST);
        backoff.end();
        assert_eq!(backoff.until(), None);
        assert!(backoff.pause(&io::Error::from_raw_os_error(libc::EBADF), &log).is_err());
    }
}
